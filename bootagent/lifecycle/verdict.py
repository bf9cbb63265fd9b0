"""What the ends of runs say of a launch: continue it, give it up, or wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bootagent import journal
from bootagent.agent import CONFIGURING
from bootagent.errors import EXIT_DEGRADED, EXIT_DONE, EXIT_FAILED, EXIT_USAGE
from bootagent.journal import Record
from bootagent.machine import Machine
from bootagent.report import of_run

Verdict = Literal["wait", "continue", "give up"]


@dataclass(frozen=True)
class RunEnd:
    """How a run ended. ``readiness`` is what a launch may rely on; ``transient``: another try may end better."""

    exit_code: int
    transient: bool
    readiness: str | None
    problems: tuple[str, ...] = ()
    records: Sequence[Record] = ()


def judge(end: RunEnd | None, *, pooled: bool, late: bool, at_work: bool = False) -> Verdict:
    """What becomes of a launch after its last run; ``late``: it has been tried for as long as it may.

    ``at_work``: another run is under way, which may end better than the last one did.

    Degraded, the instance serves what its image or an earlier release has. It is no reason to continue while a try may
    end better; once none may, or it is late, an instance that serves is better than none.
    """
    ready = end is not None and end.readiness == ("prepared" if pooled else "sustained")
    if end and ready and end.exit_code == EXIT_DONE:
        return "continue"
    if end and ready and end.exit_code == EXIT_DEGRADED and (late or not end.transient):
        return "continue"
    failed = end is not None and end.exit_code in (EXIT_FAILED, EXIT_USAGE) and not end.transient
    if late or (failed and not at_work):
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
        self._begun: list[str] = []  # the processes of those that have not ended

    def last(self) -> RunEnd | None:
        """The one of them that has ended last, and was to configure the instance.

        It need not have begun last: a run that waits for its tags lets others have their turn.
        """
        self._look()
        return self._last

    def are_at_work(self) -> bool:
        """Whether one of them has not ended yet; what was killed is not at work any more."""
        self._look()
        return any(Path(f"/proc/{pid}").exists() for pid in self._begun)

    def _look(self) -> None:
        try:
            found = self._path.stat()
        except OSError:
            return
        if (found.st_mtime_ns, found.st_size) != self._seen:
            self._seen = (found.st_mtime_ns, found.st_size)
            boot_id = journal.boot_id()
            runs = [records for records in journal.read_runs(self._machine) if self._counts(records[0], boot_id)]
            ended = sorted(filter(of_run.is_finished, runs), key=_ended_at)
            self._last = _end(ended[-1]) if ended else None
            self._begun = [records[0]["run"].rpartition("-")[2] for records in runs if not of_run.is_finished(records)]

    def _counts(self, first: Record, boot_id: str) -> bool:
        if first["event"] != "run-begin" or first.get("command") not in CONFIGURING:
            return False
        return first.get("boot_id") == boot_id and float(first.get("uptime", 0.0)) >= self._since


def failure(end: RunEnd) -> dict[str, Any]:
    """The phase, the step and the sentence of a run's first failure; empty when it tells of none."""
    for record in end.records:
        if record["event"] == "failed":
            return {"phase": record.get("phase"), "step": record.get("step"), "sentence": record.get("error")}
    return {}


def _ended_at(records: Sequence[Record]) -> float:
    """When a run ended, in seconds of uptime: the clock may have been set meanwhile."""
    return float(records[-1].get("uptime", 0.0))


def _end(records: Sequence[Record]) -> RunEnd:
    last = records[-1]
    return RunEnd(
        exit_code=last["exit_code"],
        transient=last.get("transient", True),
        readiness=last.get("readiness"),
        problems=tuple(last.get("problems", ())),
        records=tuple(records),
    )
