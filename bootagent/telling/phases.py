"""How long each phase of a run took."""

from __future__ import annotations

from collections.abc import Mapping

from bootagent.journal import Hearer, Record


class Phases:
    """Hears a run's journal on its way to ``hearer`` and adds up the seconds."""

    def __init__(self, hearer: Hearer) -> None:
        self._hearer = hearer
        self._seconds: dict[tuple[str, str | None], float] = {}

    def __call__(self, record: Record) -> None:
        """One record of the journal."""
        if record["event"] in ("done", "failed"):
            key = record["phase"], record.get("app")
            self._seconds[key] = self._seconds.get(key, 0.0) + record["seconds"]
        self._hearer(record)

    def seconds(self) -> Mapping[str, float]:
        """By phase; where lanes run side by side, those of the longest."""
        longest: dict[str, float] = {}
        for (phase, _), seconds in sorted(self._seconds.items(), key=lambda item: item[1]):
            longest[phase] = round(seconds, 3)
        return longest
