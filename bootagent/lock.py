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
    try:
        found = path.stat()
        locks = Path("/proc/locks").read_text().splitlines()
        holder = str(json.loads(path.read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return False
    # Looked up in proc_locks(5), not tried: to take the lock, even for a moment, could turn a boot away.
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    for fields in map(str.split, locks):
        ours = len(fields) > 5 and fields[1] == "FLOCK" and fields[5].endswith(f":{found.st_ino}")
        # Some filesystems show another device there; then the process tells.
        if ours and (fields[5].startswith(device) or fields[4] == holder):
            return True
    return False


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
        return f"pid {found['pid']}, {found['command']}, since {found['since']}"
    except (OSError, ValueError, KeyError):
        return "it does not say which"
