"""Where the seconds of a run, and of the boot before it, went."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from bootagent import boottime, journal
from bootagent.console import table
from bootagent.errors import EXIT_DONE, BootagentError
from bootagent.machine import Machine
from bootagent.report import Facts
from bootagent.report.of_run import head, is_finished, lanes

BAR_WIDTH = 32
#: A run that begins later than this after the kernel did is no longer the boot's.
BOOT_SECONDS = 900.0


def facts(machine: Machine) -> Facts:
    """Where the last run's seconds went: every step with its begin and end, in seconds since the run began.

    ``boot`` is how the machine came that far, if the run is the first of this boot; see :func:`_boot`.
    """
    runs = _runs(machine)
    first = _first_of_boot(runs)
    return _timeline(runs[-1], _boot(machine, runs[-1]) if runs[-1] is first else None)


def of_boot(machine: Machine) -> Facts:
    """As :func:`facts`, but of the run this boot began with, if the journal still has it."""
    runs = _runs(machine)
    first = _first_of_boot(runs)
    return _timeline(first, _boot(machine, first)) if first else _timeline(runs[-1], None)


def _runs(machine: Machine) -> list[list[journal.Record]]:
    runs = journal.read_runs(machine)
    if not runs:
        raise BootagentError("no run yet", remedy="bootagent reconfigure")
    return runs


def _first_of_boot(runs: Sequence[list[journal.Record]]) -> list[journal.Record] | None:
    """The run the service manager began at boot; one long after the kernel started was somebody's own."""
    of_boot = [run for run in runs if run[0].get("boot_id") == journal.boot_id() and run[0].get("command") == "run"]
    return of_boot[0] if of_boot and of_boot[0][0].get("uptime", BOOT_SECONDS) < BOOT_SECONDS else None


def _boot(machine: Machine, records: Sequence[journal.Record]) -> Facts:
    """The way to a boot's run, on an axis that starts with the kernel.

    ``stages`` lead to the run without a gap. ``finish`` is when systemd was done with the boot, ``healthy`` when the
    run was; either may be None.
    """
    begun, end = records[0]["uptime"], records[-1]
    marks = boottime.ask(machine)
    return {
        "stages": [vars(stage) for stage in boottime.stages(marks, begun)],
        "finish": marks.finish,
        "healthy": round(begun + end["t"], 4) if end.get("exit_code") == EXIT_DONE else None,
    }


def _timeline(records: Sequence[journal.Record], boot: Facts | None) -> Facts:
    finished = is_finished(records)
    return {
        **head(records),
        "uptime_at_start": records[0].get("uptime"),
        "finished": finished,
        "outcome": records[-1]["outcome"] if finished else "not finished",
        "apps": lanes(records, "intent", "release"),
        "spans": sorted(_spans(records), key=lambda span: (span["begin"], span["end"])),
        "waits": _waits(records),
        "boot": boot,
    }


def _spans(records: Sequence[journal.Record]) -> Iterator[Facts]:
    """Every step that was begun; of those without an end, as far as the journal goes."""
    at_work: dict[tuple[Any, ...], journal.Record] = {}
    for record in records:
        if record["event"] not in ("begin", "done", "failed"):
            continue
        about = record["phase"], record["app"], record["step"]
        if record["event"] == "begin":
            at_work[about] = record
            continue
        at_work.pop(about, None)
        yield {
            "phase": record["phase"],
            "app": record["app"],
            "step": record["step"],
            "begin": round(record["t"] - record["seconds"], 4),
            "end": record["t"],
            "failed": record["event"] == "failed",
            "error": record.get("error"),
            "unfinished": False,
        }
    for record in at_work.values():
        yield {
            "phase": record["phase"],
            "app": record["app"],
            "step": record["step"],
            "begin": record["t"],
            "end": records[-1]["t"],
            "failed": False,
            "error": None,
            "unfinished": True,
        }


def _waits(records: Sequence[journal.Record]) -> list[Facts]:
    """When the run waited for tags: each time until it next had something to say."""
    waits: list[Facts] = []
    for record, then in itertools.pairwise(records):
        if record["event"] == "waiting":
            if waits and waits[-1]["end"] == record["t"]:
                waits[-1]["end"] = then["t"]
            else:
                waits.append({"step": record["step"], "begin": record["t"], "end": then["t"]})
    return waits


def text(found: Facts) -> str:
    """The timeline for people: a bar for every step."""
    total = max(found["seconds"], 0.001)
    rows = []
    for span in found["spans"]:
        left = int(span["begin"] / total * BAR_WIDTH)
        width = max(1, round((span["end"] - span["begin"]) / total * BAR_WIDTH))
        mark = "x" if span["failed"] else ">" if span["unfinished"] else "#"
        drawn = (" " * left + mark * width)[:BAR_WIDTH].ljust(BAR_WIDTH)
        took = f"{span['end'] - span['begin']:7.2f} s"
        about = f"{span['app']}: {span['step']}" if span["app"] else span["step"]
        rows.append([span["phase"], f"|{drawn}|", took, about])
    spent = sum(span["end"] - span["begin"] for span in found["spans"] if span["phase"] == "read")
    ended = "" if found["finished"] else ", not finished"
    head = f"{found['command']} of {found['started']}: {total:.2f} s{ended} (reading {spent:.2f} s)"
    if found["uptime_at_start"] is not None:
        head += f", begun {found['uptime_at_start']:.0f} s after the kernel started"
    if found["boot"]:
        head += "\n" + _boot_text(found["boot"])
    return head + "\n\n" + (table(rows, ["PHASE", "", "TOOK", "STEP"]) if rows else "nothing had to be done")


def _boot_text(boot: Facts) -> str:
    told = [f"{stage['name']} {stage['end'] - stage['begin']:.2f} s" for stage in boot["stages"]]
    healthy = [] if boot["healthy"] is None else [f"healthy {boot['healthy']:.2f} s after the kernel started"]
    return "; ".join(told + healthy)
