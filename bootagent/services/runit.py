"""runit, as it really behaves: what runsv(8) writes down, and what sv(8) is asked to do.

sv's own exit codes are not used to judge health: ``sv status`` exits 0 for a service that is down, and ``sv start``
calls a crash-looper ok.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bootagent import processes
from bootagent.machine import Identity, Machine, Note

#: runsvdir(8) looks at its directory at least every five seconds.
SCAN_SECONDS = 5.0
#: runsv(8) sleeps for a second before it starts a service again that ended at once.
ORDER_SECONDS = 3.0
#: How long KILL may take to have its effect, and a stop that takes longer than this is worth a line.
KILLED_SECONDS = 5.0
LONG_SECONDS = 5.0
#: In ``supervise/``: the exit code of the stop script that ran last.
STOP_RESULT = "stop-script"
#: Of the time a service may take to stop, the part that its stop script leaves to TERM: half, or these seconds.
TERM_SECONDS = 2.0
POLL_SECONDS = 0.05

Signal = Literal["HUP", "USR1", "USR2"]
_ORDERS: Mapping[Signal, str] = {"HUP": "hup", "USR1": "1", "USR2": "2"}
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


def stop(machine: Machine, directory: Path, *, within: float, identity: Identity | None, cut: str = "") -> bool:
    """The stop script, TERM and CONT; after ``within`` seconds KILL. Whether it came to that; a note tells of it.

    ``cut`` is what is to be said of a time that is shorter than the service may take.

    Acts as the service's user, who may own ``supervise/``. A finish script is waited for as long, and left alone.
    """
    with contextlib.suppress(OSError):
        (directory / "supervise" / STOP_RESULT).unlink()
    _sv(machine, ["down"], directory, identity)
    left = _wait_for_down(machine, directory, within)
    killed = left is not None and left.state == "run"
    if killed:
        for pid in control_scripts(directory):  # runsv heeds no order before they end
            machine.run(["sh", "-c", 'kill -9 "$1"', "sh", str(pid)], timeout=10, identity=identity, check=False)
            machine.tell(Note(f"a control script of {_name(directory)} did not end, and was killed"))
        _sv(machine, ["kill"], directory, identity)
        _wait_for_down(machine, directory, KILLED_SECONDS)
        about = {"service": _name(directory), "killed_after": within}
        machine.tell(Note(f"{_name(directory)} had to be killed after {within:g} s{cut}", about))
    if problem := _stop_problem(directory):
        machine.tell(Note(f"the stop script of {_name(directory)} {problem}", {"service": _name(directory)}))
    return killed


def _wait_for_down(machine: Machine, directory: Path, within: float) -> Status | None:
    """Wait until the service has no process, and is not to get one; what there is still after ``within`` seconds."""
    began = time.monotonic()
    told = False
    # Between two crashes runsv sleeps, and the service is down before the order is read. An order to start would then
    # be dropped by sv itself, which still sees the service wanted up.
    while (found := status(directory)) and (found.pid or found.wants_up):
        took = time.monotonic() - began
        if took > (within if found.pid else max(within, ORDER_SECONDS)):
            return found
        if took > LONG_SECONDS and not told:
            machine.tell(Note(f"waiting for {_name(directory)} to stop", {"within": within}))
            told = True
        time.sleep(POLL_SECONDS)
    return None


def _stop_problem(directory: Path) -> str | None:
    code = (_read(directory / "supervise" / STOP_RESULT) or b"0").strip()
    if code in (b"124", b"137"):  # timeout(1)
        return "took too long, and was ended"
    return None if code == b"0" else f"failed with exit code {code.decode(errors='replace')}"


def _name(directory: Path) -> str:
    """What people call the service whose directory this is, or whose inner one."""
    return directory.parent.name if directory.name == "service" else directory.name


def control_scripts(directory: Path) -> list[int]:
    """The scripts of ``control/`` that run now. While there is one, runsv heeds nothing else."""
    service, log = status(directory), status(directory / "log")
    known = processes.all()
    if service is None or service.pid not in known:
        return []
    others = {service.pid, log.pid if log else 0}
    runsv = known[service.pid].parent
    return [pid for pid, process in known.items() if process.parent == runsv and pid not in others]


def stop_script(directory: Path, command: Sequence[str], within: float) -> bytes:
    """A ``control/t`` that runs ``command`` in ``directory`` before TERM; it fails, so that TERM follows: runsv(8).

    It gets the greater part of the ``within`` seconds that the service may take to stop.
    """
    rest = min(TERM_SECONDS, within / 2)
    limit = f"timeout --kill-after={rest / 2:g} {within - rest:g}"
    return "\n".join(
        [
            "#!/bin/sh",
            "exec 2>&1",
            f"(cd {shlex.quote(str(directory))} && exec {limit} {shlex.join(command)})",
            f"echo $? >supervise/{STOP_RESULT}",
            "exit 1",
            "",
        ]
    ).encode()


def reload(machine: Machine, directory: Path, signal: Signal, *, identity: Identity | None) -> None:
    """Send a signal, through the service's ``control/`` script for it if there is one, and return at once."""
    _sv(machine, [_ORDERS[signal]], directory, identity)


def start(machine: Machine, directory: Path, *, identity: Identity | None) -> None:
    """Ask for the service to be up and return at once."""
    _sv(machine, ["up"], directory, identity)


def restart(machine: Machine, directory: Path, *, within: float) -> None:
    """Stop what runsv runs and start it anew from its present ``run`` file."""
    stop(machine, directory, within=within, identity=None)
    start(machine, directory, identity=None)


def leave(machine: Machine, directory: Path, *, within: float) -> None:
    """Stop the service and its runsv."""
    _sv(machine, ["-w", str(max(1, round(within))), "force-shutdown"], directory, None, within + 10)


def _sv(machine: Machine, words: list[str], directory: Path, identity: Identity | None, timeout: float = 10.0) -> None:
    machine.run(["sv", *words, directory], timeout=timeout, identity=identity, check=False)


def environment_directory(variables: Mapping[str, str | None]) -> dict[str, bytes]:
    """Files for ``chpst -e``: an empty one unsets its variable, for None, and a newline is written as NUL; chpst(8)."""
    return {
        name: b"" if value is None else value.replace("\n", "\0").encode(errors="surrogateescape") + b"\n"
        for name, value in variables.items()
    }
