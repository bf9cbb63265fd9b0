"""What a run tells the daemon that started it, through a pipe; ``daemon/child.py`` says how."""

from __future__ import annotations

import contextlib
import os
import time

from bootagent.agent import Outcome
from bootagent.console import amount
from bootagent.errors import plain
from bootagent.journal import Record
from bootagent.machine import Note, Transfer

#: Progress of a transfer is told no more often than this.
PROGRESS_SECONDS = 0.5


class Relay:
    """Writes to ``descriptor``; when nobody reads there, the run goes on all the same."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)
        os.set_inheritable(descriptor, False)
        self._told = 0.0

    def hear_record(self, record: Record) -> None:
        """What the run is at, from a record of its journal."""
        if record["event"] in ("begin", "waiting"):
            app = f"{record['app']}: " if record.get("app") else ""
            self._status(f"{app}{record['step']}")

    def hear(self, event: Transfer | Note) -> None:
        """How far a transfer is."""
        if isinstance(event, Transfer) and time.monotonic() - self._told >= PROGRESS_SECONDS:
            self._told = time.monotonic()
            share = f" {100 * min(1.0, event.done / event.total):.0f} %," if event.total else ""
            self._status(f"{event.label}{share} {amount(event)}")

    def say(self, sentence: str) -> None:
        """One sentence for the status line."""
        self._status(sentence)

    def end(self, outcome: Outcome) -> None:
        """How the run ended."""
        watch = "-" if outcome.watch_seconds is None else f"{outcome.watch_seconds:g}"
        self._write(f"outcome {outcome.exit_code} {int(outcome.transient)} {watch}")

    def _status(self, text: str) -> None:
        self._write(f"status {plain(text)}".replace("\n", " ")[:500])

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):  # it has gone, or does not keep up
            os.write(self._descriptor, line.encode(errors="replace") + b"\n")
