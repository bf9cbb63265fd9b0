"""Every run that the journal still holds."""

from __future__ import annotations

from collections.abc import Sequence

from bootagent import journal
from bootagent.console import table
from bootagent.machine import Machine
from bootagent.report import Facts
from bootagent.report.of_run import head, is_finished, lanes


def facts(machine: Machine) -> list[Facts]:
    """Every run the journal still holds, oldest first, with what it meant to do to each app."""
    return [_told(records) for records in journal.read_runs(machine)]


def _told(records: Sequence[Facts]) -> Facts:
    end, finished = records[-1], is_finished(records)
    return {
        **head(records),
        "outcome": end["outcome"] if finished else "interrupted",
        "exit_code": end["exit_code"] if finished else None,
        "apps": lanes(records, "intent", "release", "revision", "reason"),
        "failures": _failures(records),
    }


def _failures(records: Sequence[Facts]) -> list[Facts]:
    """What went wrong: as the run's end has it, or of a run without one, each step that failed."""
    end = records[-1]
    if "failures" in end:
        tails = end.get("tails", {})
        return [{**one, "tail": tails.get(one["app"], "")} for one in end["failures"]]
    return [
        {"app": one.get("app"), "phase": one["phase"], "step": one["step"], "sentence": one["error"]}
        for one in records
        if one["event"] == "failed"
    ]


def text(runs: Sequence[Facts]) -> str:
    """History for people, newest first."""
    rows = [
        [
            run["started"],
            run["command"] or "-",
            run["outcome"],
            f"{run['seconds']:.1f} s",
            ", ".join(sorted({one["phase"] for one in run["failures"]})) or "-",
            ", ".join(f"{name}: {app['intent']} {app['release'] or ''}".strip() for name, app in run["apps"].items())
            or "-",
        ]
        for run in reversed(runs)
    ]
    return table(rows, ["STARTED", "COMMAND", "OUTCOME", "TOOK", "FAILED IN", "APPS"]) if rows else "no run yet"
