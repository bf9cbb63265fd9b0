"""The journal: one line of JSON for everything a run begins and ends, in order.

It tells people where the seconds went and what happened; recovery reads the state and the disk instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bootagent.machine import Machine

PATH = "/var/lib/bootagent/journal.jsonl"
#: Past this size the journal is set aside as ``journal.1.jsonl`` when the next run begins.
ROTATE_BYTES = 1024 * 1024

Record = dict[str, Any]
Hearer = Callable[[Record], None]


class Journal:
    """Appends records of one run. ``hearer`` gets each of them too.

    With ``only_changes`` nothing is written unless the run does more than look: what looks every few minutes must not
    crowd out what was done.
    """

    def __init__(self, machine: Machine, hearer: Hearer = lambda record: None, *, only_changes: bool = False) -> None:
        self._held: list[bytes] | None = [] if only_changes else None
        self._path = machine.real(PATH)
        self._hearer = hearer
        self._started = time.monotonic()
        self.run = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{os.getpid()}"
        try:
            machine.make_directory(self._path.parent, mode=0o700)
            if self._path.exists() and self._path.stat().st_size > ROTATE_BYTES:
                self._path.replace(self._path.with_name("journal.1.jsonl"))
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._end_torn_line()
        except OSError:  # a disk gone read-only: what is to be stopped must be stopped all the same
            self._descriptor = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def record(self, event: str, **fields: Any) -> None:
        """Append one record: run, event, ``at`` (RFC 3339 UTC), ``t`` (seconds since the run began) and the fields."""
        entry = {"run": self.run, "event": event, "at": timestamp(), "t": round(self.elapsed(), 4), **fields}
        # A full disk or a reader that has gone must not stop a run half-way: what is told is not what is done.
        line = json.dumps(entry, default=str).encode() + b"\n"
        if self._held is not None:
            self._held.append(line)
            if event in ("failed", "fault", "waiting") or (event == "begin" and entry["phase"] != "read"):
                line, self._held = b"".join(self._held), None
        if self._held is None:
            with contextlib.suppress(OSError):
                # One write(2) on an O_APPEND descriptor: lines of threads never mix.
                os.write(self._descriptor, line)
        with contextlib.suppress(OSError, ValueError):
            self._hearer(entry)

    @contextlib.contextmanager
    def span(self, phase: str, doing: str, app: str | None = None) -> Iterator[None]:
        """Record the begin and the end of a piece of work, and its failure if it fails."""
        began = self.elapsed()
        about = {"phase": phase, "step": doing, "app": app}
        self.record("begin", **about)
        try:
            yield
        except BaseException as error:
            self.record("failed", **about, seconds=round(self.elapsed() - began, 4), error=str(error))
            raise
        self.record("done", **about, seconds=round(self.elapsed() - began, 4))

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has been written: the run has only looked."""
        return self._held is not None

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def close(self) -> None:
        """Make the journal durable and close it."""
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)
        os.close(self._descriptor)

    def _end_torn_line(self) -> None:
        """After a power cut the last line may be half written; start on a new one."""
        size = self._path.stat().st_size
        with self._path.open("rb") as file:
            file.seek(max(0, size - 1))
            if file.read(1) not in (b"", b"\n"):
                os.write(self._descriptor, b"\n")


def read_runs(machine: Machine) -> list[list[Record]]:
    """The records of every run still in the journal, oldest first; lines that are no JSON are skipped."""
    runs: dict[str, list[Record]] = {}
    path = machine.real(PATH)
    for file in (path.with_name("journal.1.jsonl"), path):
        for record in _records(file):
            runs.setdefault(record["run"], []).append(record)
    return list(runs.values())


def _records(file: Path) -> Iterator[Record]:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and "run" in record:
                yield record


def timestamp() -> str:
    """Now, as RFC 3339 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def boot_id() -> str:
    """The kernel's identity of this boot: random_id in proc_sys_kernel(5)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def uptime() -> float:
    """Seconds since the kernel started: proc_uptime(5)."""
    return float(Path("/proc/uptime").read_text().split()[0])
