"""The stand-in for the machine's init: starts runsvdir, and lets nothing that descends from it survive the sandbox.

A process of its own (``python -m bootagent.sandbox.init DIRECTORY``), so that "nothing is left" is exact: it adopts
whatever its descendants orphan, and it is done when the kernel says it has no child. It ends when its standard
input does, which the kernel sees to even if the sandbox is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bootagent.machine import MINIMAL_ENVIRONMENT

#: How long the services have to stop by themselves and then after a TERM.
STOP_SECONDS = 15.0
TERM_SECONDS = 3.0

_PR_SET_CHILD_SUBREAPER = 36


def main(directory: str) -> None:
    """Run runsvdir on ``directory`` till standard input ends, then end everything that came of it."""
    adopt_orphans()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    runsvdir = subprocess.Popen(
        ["runsvdir", "-P", directory],
        stdin=subprocess.DEVNULL,
        env=dict(MINIMAL_ENVIRONMENT),
        start_new_session=True,
        preexec_fn=_default_signals,
    )
    while not _input_ended(0.2):
        _reap()
    with contextlib.suppress(ProcessLookupError):
        os.kill(runsvdir.pid, signal.SIGHUP)
    deadline = time.monotonic() + STOP_SECONDS
    while _reap() and _supervised() and time.monotonic() < deadline:
        time.sleep(0.02)
    end_descendants()  # what no supervisor answers for will not end by itself


def adopt_orphans() -> None:
    """Become the parent of every process our descendants leave behind, prctl(2)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants() -> None:
    """TERM every descendant, and KILL those that do not heed it.

    For a process that adopts orphans and waits for no child elsewhere.
    """
    deadline = time.monotonic() + TERM_SECONDS
    for pid in descendants(os.getpid()):
        _signal(pid, signal.SIGTERM)
    while _reap() and time.monotonic() < deadline:
        time.sleep(0.02)
    while _reap():  # again and again: a process may have forked just before it was killed
        for pid in descendants(os.getpid()):
            _signal(pid, signal.SIGKILL)
        time.sleep(0.02)


def descendants(of: int) -> list[int]:
    """The processes that descend from ``of``, parents first, as /proc tells it."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found, queue = [], [of]
    while queue:
        born = children.get(queue.pop(0), [])
        found += born
        queue += born
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name before it, in parentheses, may hold blanks and parentheses of its own.
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                yield int(entry.name), int(fields[1])


def _supervised() -> bool:
    """Whether a runsv is still at work, stopping its service."""
    return any(_name(pid) == "runsv" for pid in descendants(os.getpid()))


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _reap() -> bool:
    """Collect what has ended; False once no child is left."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _input_ended(wait: float) -> bool:
    ready, _, _ = select.select([0], [], [], wait)
    return bool(ready) and not os.read(0, 4096)


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main(sys.argv[1])
