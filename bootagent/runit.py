"""runit, as it really behaves: what runsv(8) writes down, and what sv(8) is asked to do.

sv's own exit codes are not used to judge health: ``sv status`` exits 0 for a service that is down, and ``sv start``
calls a crash-looper ok.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bootagent.machine import Identity, Machine

#: runsvdir(8) looks at its directory at least every five seconds.
SCAN_SECONDS = 5.0
#: runsv(8) sleeps for a second before it starts a service again that ended at once.
ORDER_SECONDS = 3.0
_TAI_OFFSET = 2**62 + 10  # TAI64 label of the Unix epoch, as runit's tai_now() has it
_STATUS_BYTES = 20


@dataclass(frozen=True)
class Status:
    """One service's ``supervise/status``: ``state`` is down, run or finish, ``since`` the Unix time it changed."""

    pid: int
    state: str
    since: float
    wants_up: bool

    def uptime(self) -> float:
        """Seconds since the last change."""
        return max(0.0, time.time() - self.since)


def parse_status(record: bytes) -> Status | None:
    """Read the 20 bytes runsv writes; None when they are not that."""
    if len(record) != _STATUS_BYTES or record[19] > 2:
        return None
    seconds = int.from_bytes(record[0:8], "big") - _TAI_OFFSET
    nanoseconds = int.from_bytes(record[8:12], "big")
    return Status(
        pid=int.from_bytes(record[12:16], "little"),
        state=("down", "run", "finish")[record[19]],
        since=seconds + nanoseconds / 1e9,
        wants_up=record[17:18] == b"u",
    )


def status(directory: Path) -> Status | None:
    """The status of the service in ``directory``; None when no runsv supervises it."""
    if not is_supervised(directory):
        return None
    content = _read(directory / "supervise" / "status")
    return parse_status(content) if content is not None else None


def is_supervised(directory: Path) -> bool:
    """Whether a runsv is there: it alone holds the FIFO ``supervise/ok`` open for reading."""
    try:
        descriptor = os.open(directory / "supervise" / "ok", os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, _STATUS_BYTES + 1)
    except OSError:  # a directory, or a FIFO nobody writes
        return None
    finally:
        os.close(descriptor)


def stop(machine: Machine, directory: Path, *, within: float, identity: Identity | None) -> None:
    """TERM and CONT; after ``within`` seconds KILL. Acts as the service's user, who may own ``supervise/``."""
    _sv(machine, ["-w", str(max(1, round(within))), "force-stop"], directory, identity, within + 10)
    # Between two crashes runsv sleeps, and sv calls that down before the order is read. An order to start would then
    # be dropped by sv itself, which still sees the service wanted up.
    deadline = time.monotonic() + ORDER_SECONDS
    while (found := status(directory)) and found.wants_up and time.monotonic() < deadline:
        time.sleep(0.02)


def start(machine: Machine, directory: Path, *, identity: Identity | None) -> None:
    """Ask for the service to be up and return at once."""
    _sv(machine, ["up"], directory, identity, 10)


def restart(machine: Machine, directory: Path, *, within: float) -> None:
    """Stop what runsv runs and start it anew from its present ``run`` file."""
    stop(machine, directory, within=within, identity=None)
    start(machine, directory, identity=None)


def leave(machine: Machine, directory: Path, *, within: float) -> None:
    """Stop the service and its runsv."""
    _sv(machine, ["-w", str(max(1, round(within))), "force-shutdown"], directory, None, within + 10)


def _sv(machine: Machine, words: list[str], directory: Path, identity: Identity | None, timeout: float) -> None:
    machine.run(["sv", *words, directory], timeout=timeout, identity=identity, check=False)


def environment_directory(variables: Mapping[str, str]) -> dict[str, bytes]:
    """Files for ``chpst -e``: an empty file would unset its variable, and a newline is written as NUL; chpst(8)."""
    return {name: (value.replace("\n", "\0") + "\n").encode() for name, value in variables.items()}
