"""What a run says while it works: lines and a progress bar for people, JSON for machines."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from typing import Any, Literal, TextIO

from bootagent.errors import plain
from bootagent.journal import Record
from bootagent.machine import Note, Transfer

LogFormat = Literal["auto", "text", "json"]
BAR_WIDTH = 28
#: Without a terminal, progress of a transfer is a log line now and then.
TRANSFER_LINE_SECONDS = 5.0


class Console:
    """Hears a run's journal records and transfers, and tells them to ``stream``."""

    def __init__(self, stream: TextIO, form: LogFormat, verbose: bool = False) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._json = form == "json" or (form == "auto" and not self._terminal)
        self._verbose = verbose
        self._bar = False
        self._transfer_told = time.monotonic()
        self._log: Any = _structured(stream) if self._json else None

    def hear_record(self, record: Record) -> None:
        """One record of the journal."""
        if self._json:
            level = {"failed": "error", "fault": "error", "satisfied": "debug", "begin": "debug"}
            if (named := level.get(record["event"], "info")) != "debug" or self._verbose:
                fields = {
                    key: value for key, value in record.items() if key not in ("event", "at") and value is not None
                }
                getattr(self._log, named)(record["event"], **fields)
            return
        if line := _line(record, self._verbose):
            self.close()
            self._stream.write(f"{plain(line)}\n")
            self._stream.flush()

    def hear(self, event: Transfer | Note) -> None:
        """Progress; notes come by the journal."""
        if isinstance(event, Transfer):
            with contextlib.suppress(OSError, ValueError):  # nobody listens any more, and the work goes on
                self._show(event)

    def _show(self, event: Transfer) -> None:
        if self._terminal and not self._json:
            self._stream.write(f"\r\x1b[K{bar(event, shutil.get_terminal_size().columns - 1)}")
            self._stream.flush()
            self._bar = True
        elif time.monotonic() - self._transfer_told > TRANSFER_LINE_SECONDS:
            self._transfer_told = time.monotonic()
            if self._json:
                self._log.info("progress", step=event.label, done=event.done, total=event.total)
            else:
                self._stream.write(f"  {event.label}: {amount(event)}\n")

    def close(self) -> None:
        """Take the progress bar away."""
        if self._bar:
            self._bar = False
            with contextlib.suppress(OSError, ValueError):
                self._stream.write("\r\x1b[K")


def bar(event: Transfer, width: int) -> str:
    """One line of progress, e.g. ``  pull web.tar.zst [=====>    ]  54 %  62.4 of 115.3 MB``."""
    if not event.total:
        return f"  {event.label} {amount(event)}"[:width]
    share = min(1.0, event.done / event.total)
    filled = int(share * BAR_WIDTH)
    drawn = "=" * filled + (">" if filled < BAR_WIDTH else "") + " " * (BAR_WIDTH - filled - 1)
    told = f" [{drawn}] {share * 100:3.0f} %  {amount(event)}"
    label = event.label if len(event.label) + len(told) + 2 <= width else event.label[: width - len(told) - 3] + "…"
    return f"  {label}{told}"[:width]


def amount(event: Transfer) -> str:
    """How much of a transfer is done, e.g. ``62.4 of 115.3 MB``."""
    scale, unit = (1e6, "MB") if (event.total or event.done) >= 1e6 else (1e3, "kB")
    done = f"{event.done / scale:.1f}"
    return f"{done} of {event.total / scale:.1f} {unit}" if event.total else f"{done} {unit}"


def _line(record: Record, verbose: bool) -> str | None:
    event = record["event"]
    app = f"{record['app']}: " if record.get("app") else ""
    stamp = f"{record['t']:7.2f}s  "
    if event == "lane":
        release = f" release {record['release']}" if record.get("release") else ""
        return f"{stamp}{app}{record['intent']}{release}: {record['reason']}"
    if event == "done" or (event == "satisfied" and verbose):
        took = f"  ({record['seconds']:.2f} s)" if event == "done" else "  (already so)"
        return f"{stamp}{app}{record['step']}{took}"
    if event == "failed":
        return f"{stamp}{app}FAILED: {record['step']}: {record['error']}"
    if event == "waiting":
        return f"{stamp}waiting: {record['step']}"
    if event == "note":
        return f"{stamp}  {record['step']}"
    if event == "begin" and verbose:
        return f"{stamp}{app}{record['step']} …"
    return None


def _structured(stream: TextIO) -> Any:
    import structlog  # here: `status` and `check` need not wait for it

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger()


def table(rows: list[list[str]], header: list[str]) -> str:
    """A plain table for people; columns as wide as they need."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def stderr(form: LogFormat, verbose: bool) -> Console:
    """The console of a command."""
    return Console(sys.stderr, form, verbose)
