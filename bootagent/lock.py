"""One bootagent at a time: flock(2) on a file that names its holder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from bootagent.errors import LockedError
from bootagent.journal import timestamp
from bootagent.machine import Machine

PATH = "/run/bootagent/lock"
POLL_SECONDS = 0.2
#: How long a run may take to end when it is told to.
END_SECONDS = 5.0


class Lock:
    """Held inside ``with``, waited for up to ``wait`` seconds. Raises LockedError naming the holder.

    ``tell`` hears who is waited for, once. With ``force`` the one that has the lock is ended after the wait, and if
    even that does not help, because it hangs in the kernel, we go on without.
    """

    def __init__(
        self,
        machine: Machine,
        command: str,
        wait: float,
        tell: Callable[[str], None] = lambda holder: None,
        *,
        force: bool = False,
    ) -> None:
        self._machine = machine
        self._path = machine.real(PATH)
        self._command = command
        self._wait = wait
        self._tell = tell
        self._force = force
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Lock:
        try:
            self._take(self._wait)
        except LockedError:
            if not self._force:
                raise
            self._take_by_force()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @contextlib.contextmanager
    def given_up(self) -> Iterator[None]:
        """Let another run have its turn meanwhile; its work is waited for, however long it takes."""
        self._held.close()
        yield
        self._take(float("inf"))

    def _take_by_force(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if holder := holder_of(self._machine):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(holder, number)
            with contextlib.suppress(LockedError):
                self._take(END_SECONDS)
                return

    def _take(self, wait: float) -> None:
        deadline = time.monotonic() + wait
        told = False
        while True:
            file = self._held.enter_context(self._machine.locked(self._path))
            if file:
                file.truncate(0)
                file.write(json.dumps({"pid": os.getpid(), "command": self._command, "since": timestamp()}))
                file.flush()
                return
            self._held.close()
            if time.monotonic() >= deadline:
                raise LockedError(
                    f"another bootagent is at work ({_holder(self._path)})",
                    remedy="wait for it with --lock-wait SECONDS",
                )
            if not told:
                told = True
                self._tell(_holder(self._path))
            time.sleep(POLL_SECONDS)


def is_held(machine: Machine) -> bool:
    """Whether a bootagent is at work."""
    return holder_of(machine) is not None


def holder_of(machine: Machine) -> int | None:
    """The process that holds the lock."""
    path = machine.real(PATH)
    try:
        found = path.stat()
        locks = Path("/proc/locks").read_text().splitlines()
        holder = str(json.loads(path.read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return None
    # Looked up in proc_locks(5), not tried: to take the lock, even for a moment, could turn a boot away.
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    for fields in map(str.split, locks):
        ours = len(fields) > 5 and fields[1] == "FLOCK" and fields[5].endswith(f":{found.st_ino}")
        # Some filesystems show another device there; then the process tells.
        if ours and (fields[5].startswith(device) or fields[4] == holder):
            return int(holder)
    return None


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
        return f"pid {found['pid']}, {found['command']}, since {found['since']}"
    except (OSError, ValueError, KeyError):
        return "it does not say which"
