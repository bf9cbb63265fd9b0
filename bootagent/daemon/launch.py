"""From the command line to the daemon's own process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn


def become(place: Sequence[str], words: Sequence[str]) -> NoReturn:
    """Turn this process into the daemon; the process id stays, what was imported goes.

    ``place`` are the options that say where the machine is (``--root``, ``--config``), ``words`` further ones for
    every run it starts. Children are started the way this process was.
    """
    arguments = len(sys.argv) - 1
    launcher = [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - arguments]]
    program = Path(__file__).with_name("__main__.py")
    argv = [sys.executable, "-I", "-S", str(program), *place, "--", *words, "--", *launcher]
    sys.stderr.flush()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it has a handler: a reload must not end it
    os.execv(sys.executable, argv)
