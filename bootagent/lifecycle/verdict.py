"""What the ends of runs say of a launch: continue it, give it up, or wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bootagent import journal
from bootagent.agent import CONFIGURING
from bootagent.errors import EXIT_DEGRADED, EXIT_DONE, EXIT_FAILED, EXIT_USAGE
from bootagent.journal import Record
from bootagent.machine import Machine

Verdict = Literal["wait", "continue", "give up"]


@dataclass(frozen=True)
class RunEnd:
    """How a run ended. ``readiness`` is what a launch may rely on; ``transient``: another try may end better."""

    exit_code: int
    transient: bool
    readiness: str | None
    problems: tuple[str, ...] = ()
    records: Sequence[Record] = ()


def judge(end: RunEnd | None, *, pooled: bool, late: bool) -> Verdict:
    """What becomes of a launch after its last run; ``late``: it has been tried for as long as it may.

    Degraded, the instance serves what its image or an earlier release has. It is no reason to continue while a try may
    end better; once none may, or it is late, an instance that serves is better than none.
    """
    ready = end is not None and end.readiness == ("prepared" if pooled else "sustained")
    if end and ready and end.exit_code == EXIT_DONE:
        return "continue"
    if end and ready and end.exit_code == EXIT_DEGRADED and (late or not end.transient):
        return "continue"
    if late or (end and end.exit_code in (EXIT_FAILED, EXIT_USAGE) and not end.transient):
        return "give up"
    return "wait"


class Runs:
    """The runs that began in this boot and at this uptime or later, in seconds, as the journal tells of them.

    One may have ended before anybody looked: it counts. One that began earlier knew of no launch, or of another.
    """

    def __init__(self, machine: Machine, since: float) -> None:
        self._machine, self._since = machine, since
        self._path = machine.real(journal.PATH)
        self._seen: tuple[int, int] = (0, 0)
        self._last: RunEnd | None = None

    def last(self) -> RunEnd | None:
        """The last of them that was to configure the instance, and has ended."""
        try:
            found = self._path.stat()
        except OSError:
            return self._last
        if (found.st_mtime_ns, found.st_size) != self._seen:
            self._seen = (found.st_mtime_ns, found.st_size)
            boot_id = journal.boot_id()
            ended = [records for records in journal.read_runs(self._machine) if self._counts(records, boot_id)]
            self._last = _end(ended[-1]) if ended else None
        return self._last

    def _counts(self, records: Sequence[Record], boot_id: str) -> bool:
        first, last = records[0], records[-1]
        if first["event"] != "run-begin" or last["event"] != "run-end" or first.get("command") not in CONFIGURING:
            return False
        return first.get("boot_id") == boot_id and float(first.get("uptime", 0.0)) >= self._since


def failure(end: RunEnd) -> dict[str, Any]:
    """The phase, the step and the sentence of a run's first failure; empty when it tells of none."""
    for record in end.records:
        if record["event"] == "failed":
            return {"phase": record.get("phase"), "step": record.get("step"), "sentence": record.get("error")}
    return {}


def _end(records: Sequence[Record]) -> RunEnd:
    last = records[-1]
    return RunEnd(
        exit_code=last["exit_code"],
        transient=last.get("transient", True),
        readiness=last.get("readiness"),
        problems=tuple(last.get("problems", ())),
        records=tuple(records),
    )
