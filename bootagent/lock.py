"""One bootagent at a time: flock(2) on a file that names its holder."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from bootagent.errors import LockedError
from bootagent.journal import timestamp
from bootagent.machine import Machine

PATH = "/run/bootagent/lock"
POLL_SECONDS = 0.2


@contextlib.contextmanager
def held(machine: Machine, command: str, wait: float) -> Iterator[None]:
    """Hold the lock, waiting up to ``wait`` seconds for it. Raises LockedError naming the holder."""
    path = machine.real(PATH)
    deadline = time.monotonic() + wait
    while True:
        with machine.locked(path) as file:
            if file:
                file.truncate(0)
                file.write(json.dumps({"pid": os.getpid(), "command": command, "since": timestamp()}))
                file.flush()
                yield
                return
        if time.monotonic() >= deadline:
            raise LockedError(
                f"another bootagent is at work ({_holder(path)})", remedy="wait for it with --lock-wait SECONDS"
            )
        time.sleep(POLL_SECONDS)


def is_held(machine: Machine) -> bool:
    """Whether a bootagent is at work."""
    path = machine.real(PATH)
    if not path.exists():
        return False
    with machine.locked(path) as file:
        return file is None


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
        return f"pid {found['pid']}, {found['command']}, since {found['since']}"
    except (OSError, ValueError, KeyError):
        return "it does not say which"
