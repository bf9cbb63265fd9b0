"""How this machine is: the last run, each app's releases and services, and what is under way."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bootagent import journal, lock, release, state
from bootagent.console import table
from bootagent.errors import EXIT_DEGRADED, EXIT_DONE, EXIT_FAILED, EXIT_TRY_LATER, EXIT_USAGE, BootagentError, plain
from bootagent.machine import Machine
from bootagent.plan.volumes import is_snapshot
from bootagent.report import Facts
from bootagent.services import runit, servicedir
from bootagent.survey import traffic_told

WAIT_POLL_SECONDS = 0.5

#: What is told of a call to AWS that failed.
_OF_AWS = {"code": "code", "request": "request_id", "needs": "iam_action"}


def facts(machine: Machine, definitions: str) -> Facts:
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


def wait(machine: Machine, definitions: str, seconds: float, *, serving: bool = False) -> Facts:
    """As :func:`facts`, once no run is under way and one has finished, or after so many ``seconds`` in any case.

    With ``serving``, a run that left nothing to serve is not the end: the daemon may try again.
    """
    deadline = time.monotonic() + seconds
    enough = {EXIT_DONE, EXIT_DEGRADED} if serving else {EXIT_DONE, EXIT_DEGRADED, EXIT_FAILED, EXIT_USAGE}
    while (left := deadline - time.monotonic()) > 0:
        if _verdict(state.load(machine), running=_is_running(machine))[1] in enough:
            break
        time.sleep(min(WAIT_POLL_SECONDS, left))
    return facts(machine, definitions)


def _under_way(machine: Machine) -> Facts:
    runs = journal.read_runs(machine)
    waiting = [records for records in runs if _is_at_rest(records)]
    records = waiting[-1] if waiting and not lock.is_held(machine) else runs[-1] if runs else []
    steps = [record for record in records if record["event"] in ("begin", "satisfied", "done", "waiting")]
    last = steps[-1] if steps else {}
    return {"run": last.get("run"), "phase": last.get("phase"), "app": last.get("app"), "step": last.get("step")}


def _app_status(machine: Machine, name: str, app: state.AppState, definitions: str) -> Facts:
    layout, seen = release.Layout(), True
    if app.in_place:  # where it is read from may hang whoever looks; what serves has been written down
        if app.proven and app.proven in app.releases:
            layout = release.Layout(app.proven, releases=(app.proven,))
    else:
        try:
            layout = release.observe(machine, app.deploy_to)
        except (BootagentError, OSError):  # what is wrong with it, the next run will say
            seen = False
    known = {name for name in app.releases if not seen or _is_to_be_told(name, app)}
    shown = sorted({*layout.releases, *known})
    return {
        "deploy_to": app.deploy_to,
        "current": layout.current,
        "releases": {one: _release_status(one, layout, app) for one in shown},
        "services": {
            service: _service_status(machine, definitions, service)
            for service in servicedir.installed(machine, definitions, name)
        },
    }


def _is_to_be_told(name: str, app: state.AppState) -> bool:
    """Whether a release that is not on the disk means something yet."""
    record, pending = app.releases[name], app.pending
    return record.state == "bad" or is_snapshot(record.revision) or (pending is not None and pending.release == name)


def _release_status(name: str, layout: release.Layout, app: state.AppState) -> Facts:
    record = app.releases.get(name)
    return {
        "state": record.state if record else "foreign",
        "revision": record.label if record else None,
        "current": name == layout.current,
        "present": name in layout.releases,
        "restorable": record is not None and is_snapshot(record.revision),
        "at": record.at if record else None,
        "reason": record.reason if record else None,
    }


def _service_status(machine: Machine, definitions: str, service: str) -> Facts:
    found = runit.status(machine.real(definitions) / service / "service")
    if found is None:
        return {"state": "unsupervised", "pid": None, "seconds": None}
    return {"state": found.state, "pid": found.pid or None, "seconds": round(found.uptime())}


def text(found: Facts) -> str:
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
            facts["state"] + _whereabouts(facts),
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


def _whereabouts(facts: Facts) -> str:
    if facts["present"]:
        return ""
    return " (in a snapshot)" if facts["restorable"] else " (gone)"


def _failure_lines(failure: Facts) -> list[str]:
    """Where it failed, what AWS said of it, and what the program or service said last."""
    told = [f"  failed in {failure['phase']}" + (f", {failure['app']}" if failure["app"] else "")]
    told += [f"step: {failure['step']}"] if failure["step"] else []
    told += [f"{name}: {failure[key]}" for name, key in _OF_AWS.items() if failure[key]]
    return [plain("; ".join(told)), *(f"    | {plain(line)}" for line in failure["tail"].strip().splitlines())]
