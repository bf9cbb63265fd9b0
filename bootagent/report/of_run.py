"""What every report tells of a run, from its records in the journal."""

from __future__ import annotations

from collections.abc import Sequence

from bootagent.journal import Record
from bootagent.report import Facts


def head(records: Sequence[Record]) -> Facts:
    """Which run it is, and how many seconds its records span."""
    begin = records[0]
    return {
        "run": begin["run"],
        "command": begin.get("command"),
        "started": begin["at"],
        "seconds": records[-1]["t"],
    }


def is_finished(records: Sequence[Record]) -> bool:
    """Whether it came to its end."""
    return bool(records[-1]["event"] == "run-end")


def lanes(records: Sequence[Record], *keys: str) -> Facts:
    """What it meant to do to each app, as far as ``keys`` name it."""
    return {one["app"]: {key: one.get(key) for key in keys} for one in records if one["event"] == "lane"}
