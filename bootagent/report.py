"""What can be told without changing anything: status, history, timeline, plan. Facts as plain data, and as text."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bootagent import boottime, journal, lock, release, state
from bootagent.console import table
from bootagent.errors import EXIT_DEGRADED, EXIT_DONE, EXIT_FAILED, EXIT_TRY_LATER, EXIT_USAGE, BootagentError, plain
from bootagent.machine import Machine
from bootagent.plan import PHASES, Attachment, Plan
from bootagent.services import runit, servicedir
from bootagent.survey import traffic_told

WAIT_POLL_SECONDS = 0.5
BAR_WIDTH = 32
#: A run that begins later than this after the kernel did is no longer the boot's.
BOOT_SECONDS = 900.0

#: What is told of a call to AWS that failed.
_OF_AWS = {"code": "code", "request": "request_id", "needs": "iam_action"}

Facts = dict[str, Any]


# --- status ------------------------------------------------------------------------------------------------------


def status(machine: Machine, definitions: str) -> Facts:
    """The state as data: the run under way or the last one, each app's releases and services."""
    known, running = state.load(machine), _is_running(machine)
    last = known.last_run
    outcome, exit_code = _verdict(known, running=running)
    return {
        "running": _under_way(machine) if running else None,
        "outcome": outcome,
        "exit_code": exit_code,
        "instance_id": known.instance_id,
        "last_run": asdict(last) if last else None,
        "apps": {name: _app_status(machine, name, app, definitions) for name, app in known.apps.items()},
        "traffic": list(traffic_told(machine, known.instance_id).names),
    }


def _is_running(machine: Machine) -> bool:
    return lock.is_held(machine) or _is_waiting(machine)


def _is_waiting(machine: Machine) -> bool:
    """Whether a run waits for tags; it gives up the lock meanwhile."""
    return any(_is_at_rest(records) for records in journal.read_runs(machine))


def _is_at_rest(records: Sequence[journal.Record]) -> bool:
    if records[-1]["event"] != "waiting" or records[0].get("boot_id") != journal.boot_id():
        return False
    return Path(f"/proc/{records[-1]['run'].rpartition('-')[2]}").exists()


def _verdict(known: state.State, *, running: bool) -> tuple[str, int]:
    """What to answer somebody who decides by it: only a run that ended, in this boot, and was the last to begin."""
    last = known.last_run
    if running:
        return "running", EXIT_TRY_LATER
    if known.stopped == journal.boot_id() and (last is None or last.exit_code == EXIT_DONE):
        return "stopped", EXIT_TRY_LATER
    if last is None:
        return ("interrupted" if known.begun else "never ran"), EXIT_TRY_LATER
    if known.begun not in (None, last.run):
        return "interrupted", EXIT_TRY_LATER
    if last.boot_id not in (None, journal.boot_id()):
        return "not yet in this boot", EXIT_TRY_LATER
    return last.outcome, last.exit_code


def wait_for_status(machine: Machine, definitions: str, wait: float, *, serving: bool = False) -> Facts:
    """As :func:`status`, once no run is under way and one has finished, or after ``wait`` seconds in any case.

    With ``serving``, a run that left nothing to serve is not the end: the daemon may try again.
    """
    deadline = time.monotonic() + wait
    enough = {EXIT_DONE, EXIT_DEGRADED} if serving else {EXIT_DONE, EXIT_DEGRADED, EXIT_FAILED, EXIT_USAGE}
    while (left := deadline - time.monotonic()) > 0:
        if _verdict(state.load(machine), running=_is_running(machine))[1] in enough:
            break
        time.sleep(min(WAIT_POLL_SECONDS, left))
    return status(machine, definitions)


def _under_way(machine: Machine) -> Facts:
    runs = journal.read_runs(machine)
    waiting = [records for records in runs if _is_at_rest(records)]
    records = waiting[-1] if waiting and not lock.is_held(machine) else runs[-1] if runs else []
    steps = [record for record in records if record["event"] in ("begin", "satisfied", "done", "waiting")]
    last = steps[-1] if steps else {}
    return {"run": last.get("run"), "phase": last.get("phase"), "app": last.get("app"), "step": last.get("step")}


def _app_status(machine: Machine, name: str, app: state.AppState, definitions: str) -> Facts:
    layout = release.Layout()
    if app.in_place:  # where it is read from may hang whoever looks; what serves has been written down
        if app.proven and app.proven in app.releases:
            layout = release.Layout(app.proven, releases=(app.proven,))
    else:
        with contextlib.suppress(BootagentError, OSError):  # what is wrong with it, the next run will say
            layout = release.observe(machine, app.deploy_to)
    shown = sorted({*layout.releases, *app.releases})
    return {
        "deploy_to": app.deploy_to,
        "current": layout.current,
        "releases": {one: _release_status(one, layout, app) for one in shown},
        "services": {
            service: _service_status(machine, definitions, service)
            for service in servicedir.installed(machine, definitions, name)
        },
    }


def _release_status(name: str, layout: release.Layout, app: state.AppState) -> Facts:
    record = app.releases.get(name)
    return {
        "state": record.state if record else "foreign",
        "revision": record.label if record else None,
        "current": name == layout.current,
        "present": name in layout.releases,
        "at": record.at if record else None,
        "reason": record.reason if record else None,
    }


def _service_status(machine: Machine, definitions: str, service: str) -> Facts:
    found = runit.status(machine.real(definitions) / service / "service")
    if found is None:
        return {"state": "unsupervised", "pid": None, "seconds": None}
    return {"state": found.state, "pid": found.pid or None, "seconds": round(found.uptime())}


def status_text(found: Facts) -> str:
    """Status for people."""
    last = found["last_run"]
    lines = []
    if found["running"]:
        now = found["running"]
        lines.append(f"running: {now['phase'] or 'starting'} {now['app'] or ''} {now['step'] or ''}".rstrip())
    elif last and found["outcome"] != last["outcome"]:
        lines.append(f"{found['outcome']}; before that:")
    if last:
        role = f", role {last['role']}" if last["role"] else ""
        place = f" in {last['environment']}" if last["role"] and last["environment"] else ""
        mode = f", mode {last['mode']}" if last["mode"] else ""
        ended = f"{last['outcome']}: {last['command']} of {last['finished']}"
        lines.append(f"{ended}{role}{place}{mode} (exit {last['exit_code']})")
        lines += [f"  {name}: {sentence}" for name, sentence in last["apps"].items()]
        if last["error"] and not last["apps"]:
            lines.append(f"  {last['error']}")
        lines += dict.fromkeys(itertools.chain.from_iterable(map(_failure_lines, last["failures"])))
    elif not found["running"]:
        lines.append(found["outcome"])
    rows = [
        [
            name,
            one + (" *" if facts["current"] else ""),
            facts["state"],
            release.short(facts["revision"] or "-"),
            facts["at"] or "-",
        ]
        for name, app in found["apps"].items()
        for one, facts in app["releases"].items()
    ]
    if rows:
        lines += ["", table(rows, ["APP", "RELEASE", "STATE", "REVISION", "SINCE"])]
    services = [
        [
            service,
            facts["state"],
            str(facts["pid"] or "-"),
            "-" if facts["seconds"] is None else f"{facts['seconds']} s",
        ]
        for app in found["apps"].values()
        for service, facts in app["services"].items()
    ]
    if services:
        lines += ["", table(services, ["SERVICE", "STATE", "PID", "FOR"])]
    if found["traffic"]:
        lines += ["", f"traffic comes by {', '.join(found['traffic'])}"]
    return "\n".join(lines)


def _failure_lines(failure: Facts) -> list[str]:
    """Where it failed, what AWS said of it, and what the program or service said last."""
    told = [f"  failed in {failure['phase']}" + (f", {failure['app']}" if failure["app"] else "")]
    told += [f"step: {failure['step']}"] if failure["step"] else []
    told += [f"{name}: {failure[key]}" for name, key in _OF_AWS.items() if failure[key]]
    return [plain("; ".join(told)), *(f"    | {plain(line)}" for line in failure["tail"].strip().splitlines())]


# --- history -----------------------------------------------------------------------------------------------------


def history(machine: Machine) -> list[Facts]:
    """Every run the journal still holds, oldest first, with what it meant to do to each app."""
    return [_told(records) for records in journal.read_runs(machine)]


def _told(records: Sequence[Facts]) -> Facts:
    begin, end = records[0], records[-1]
    finished = end["event"] == "run-end"
    return {
        "run": begin["run"],
        "command": begin.get("command"),
        "started": begin["at"],
        "seconds": end["t"],
        "outcome": end["outcome"] if finished else "interrupted",
        "exit_code": end["exit_code"] if finished else None,
        "apps": {
            one["app"]: {key: one.get(key) for key in ("intent", "release", "revision", "reason")}
            for one in records
            if one["event"] == "lane"
        },
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


def history_text(runs: Sequence[Facts]) -> str:
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


# --- timeline ----------------------------------------------------------------------------------------------------


def timeline(machine: Machine) -> Facts:
    """Where the last run's seconds went: every step with its begin and end, in seconds since the run began.

    ``boot`` is how the machine came that far, if the run is the first of this boot; see :func:`_boot`.
    """
    runs = _runs(machine)
    first = _first_of_boot(runs)
    return _timeline(runs[-1], _boot(machine, runs[-1]) if runs[-1] is first else None)


def boot_timeline(machine: Machine) -> Facts:
    """As :func:`timeline`, but of the run this boot began with, if the journal still has it."""
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
    begin, end = records[0], records[-1]
    finished = end["event"] == "run-end"
    return {
        "run": begin["run"],
        "command": begin.get("command"),
        "started": begin["at"],
        "uptime_at_start": begin.get("uptime"),
        "seconds": end["t"],
        "finished": finished,
        "outcome": end["outcome"] if finished else "not finished",
        "apps": {
            one["app"]: {"intent": one.get("intent"), "release": one.get("release")}
            for one in records
            if one["event"] == "lane"
        },
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


def timeline_text(found: Facts) -> str:
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


# --- plan --------------------------------------------------------------------------------------------------------


def planned(made: Plan, machine: Machine, before: Sequence[Attachment] = ()) -> list[Facts]:
    """What the plan would do, the mounts and volumes that come ``before`` first.

    Past a lane's first step that is not satisfied, it can only say "would check".
    """
    attached = [
        {
            "app": one.name,
            "intent": "attach",
            "release": None,
            "revision": None,
            "reason": f"read by {', '.join(one.apps)}" if one.apps else "the role has it",
            "steps": _looked_at({"attach": one.steps}, machine),
        }
        for one in before
    ]
    return attached + [
        {
            "app": lane.app,
            "intent": lane.intent,
            "release": lane.release,
            "revision": lane.label,
            "reason": lane.reason,
            "steps": _looked_at(lane.steps, machine),
        }
        for lane in (*made.lanes, *([made.announce] if made.announce else []))
    ]


def _looked_at(steps: Mapping[Any, Sequence[Any]], machine: Machine) -> list[Facts]:
    told, sure = [], True
    for phase in PHASES:
        for step in steps.get(phase, ()):
            if sure:
                try:
                    sure = step.is_satisfied(machine)
                    verdict = "is so" if sure else "would do"
                except (BootagentError, OSError) as error:
                    sure, verdict = False, f"cannot tell: {error}"
            else:
                verdict = "would check"
            told.append({"phase": phase, "step": str(step), "verdict": verdict})
    return told


def plan_text(lanes: Sequence[Facts]) -> str:
    """The plan for people."""
    blocks = []
    for lane in lanes:
        head = f"{lane['app']}: {lane['intent']} {lane['release'] or ''}".rstrip() + f" ({lane['reason']})"
        rows = [[f"  {step['phase']}", step["verdict"], step["step"]] for step in lane["steps"]]
        blocks.append(head + ("\n" + table(rows, ["  PHASE", "VERDICT", "STEP"]) if rows else ""))
    return "\n\n".join(blocks)
