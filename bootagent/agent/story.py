"""The story of a run: lock, plan, carry out, record, tell."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from bootagent import __version__, telling
from bootagent.agent import reading, stopping
from bootagent.agent.deployment import deploy, withdraw
from bootagent.agent.request import CONFIGURING, Outcome, Request
from bootagent.agent.work import Work
from bootagent.config import resolve
from bootagent.errors import (
    EXIT_DEGRADED,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_USAGE,
    BootagentError,
    ConfigError,
    UsageError,
    plain,
)
from bootagent.journal import Hearer, Journal, boot_id, timestamp, uptime
from bootagent.lock import Lock
from bootagent.machine import Machine, Note
from bootagent.plan import Plan
from bootagent.state import Failure, LastRun

#: One line on how the last run ended, for whoever would not read the state.
SUMMARY = "/run/bootagent/summary"
OUTCOMES = {EXIT_DONE: "done", EXIT_DEGRADED: "degraded", EXIT_FAILED: "failed"}


def run(request: Request, machine: Machine, hearer: Hearer) -> Outcome:
    """Do what is asked, under the lock, and record it. Raises LockedError; every other failure is in the outcome."""

    if request.command == "stop":
        try:
            stopping.refuse_nowhere(request, machine)
        except UsageError as error:  # and nothing is written, not even this
            return _refused(error)

    def wait(holder: str) -> None:
        hearer({"event": "waiting", "t": 0.0, "step": f"another bootagent is at work ({holder})"})

    with Lock(machine, request.command, request.lock_wait, wait, force=request.force) as lock:
        phases = telling.Phases(hearer)
        journal = Journal(machine, phases, only_changes=request.command == "watch")
        machine = machine.heard_by(lambda note: journal.record("note", step=note.label, **note.details))
        started = timestamp()
        journal.record(
            "run-begin", command=request.command, version=__version__, boot_id=boot_id(), uptime=round(uptime(), 2)
        )
        work, quiet, refused = Work(request, machine, journal, lock), False, False
        outcome = _outcome(work)
        watch_seconds = resolve.watch_interval(work.document) if work.document else None
        outcome = replace(outcome, seconds=round(journal.elapsed(), 3), watch_seconds=watch_seconds)
        try:
            quiet = journal.is_quiet and _ended_so_before(work, outcome)
            refused = (outcome.exit_code == EXIT_USAGE and work.config is not None) or quiet or outcome.left_alone
            last = _last_run(work, started, outcome)
            work.memory.finish(None if refused else replace(last, phases=phases.seconds()))
        except BootagentError as error:  # on a full disk, too, the exit code is to be the truth
            outcome = replace(outcome, problems=(*outcome.problems, str(error)))
        if quiet:
            telling.looked(machine, work.memory.state)
        elif not refused:
            _tell(work)
        journal.record(
            "run-end",
            uptime=round(uptime(), 2),
            exit_code=outcome.exit_code,
            outcome=_named(request, outcome),
            transient=outcome.transient,
            readiness=work.readiness,
            problems=outcome.sentences() if outcome.exit_code else [],
            tails={name: ending.tail for name, ending in outcome.endings.items() if ending.tail},
            failures=[{**vars(failure), "tail": ""} for failure in outcome.all_failures()],
        )
        journal.close()
        if not (outcome.left_alone or quiet):
            _summarize(request, machine, outcome)
        return outcome


def _outcome(work: Work) -> Outcome:
    try:
        if work.request.command != "watch":  # which mostly finds nothing to do, and each write waits for the disk
            work.memory.save()
        if work.request.command == "stop":
            return stopping.take_down(work, _recorded(work, stopping.planned(work)))
        return deploy(work, _recorded(work, reading.planned(work)))
    except reading.LeftAloneError as error:
        return Outcome(EXIT_DONE, {}, (str(error),), left_alone=True)
    except ConfigError as error:
        failures = tuple(Failure(str(problem)) for problem in error.problems)
        return Outcome(error.exit_code, {}, tuple(map(str, error.problems)), failures=failures)
    except UsageError as error:
        return _refused(error)
    except BootagentError as error:
        if work.request.command in CONFIGURING:
            work.memory.wanted()  # the next try, which nobody has to ask for, is not to leave it alone
        serves = work.something_serves()
        if not serves:
            withdraw(work)
        code, failure = EXIT_DEGRADED if serves else EXIT_FAILED, telling.failure_of(error)
        return Outcome(code, {}, (str(error),), transient=True, failures=(failure,))
    except Exception as error:
        said = str(work.fault(error))
        return Outcome(EXIT_FAILED, {}, (said,), failures=(Failure(said),))


def _refused(error: UsageError) -> Outcome:
    return Outcome(error.exit_code, {}, (str(error),), failures=(telling.failure_of(error),))


def _recorded(work: Work, made: Plan) -> Plan:
    for lane in made.lanes:
        about = {"intent": lane.intent, "release": lane.release, "revision": lane.label, "reason": lane.reason}
        work.journal.record("lane", app=lane.app, **about)
    return made


# --- its end -------------------------------------------------------------------------------------------------


def _ended_so_before(work: Work, outcome: Outcome) -> bool:
    """Whether the last run that is told of ended the same way."""
    last = work.memory.state.last_run
    return last is not None and last.exit_code == outcome.exit_code


def _last_run(work: Work, started: str, outcome: Outcome) -> LastRun:
    sentences = [*outcome.problems, *(e.sentence for e in outcome.endings.values() if e.exit_code != EXIT_DONE)]
    return LastRun(
        run=work.journal.run,
        command=work.request.command,
        started=started,
        finished=timestamp(),
        exit_code=outcome.exit_code,
        outcome=_named(work.request, outcome),
        error="; ".join(sentences) or None,
        role=work.config.role if work.config else None,
        environment=work.config.environment if work.config else None,
        apps={name: ending.sentence for name, ending in outcome.endings.items()},
        boot_id=boot_id(),
        mode=work.config.mode if work.config else None,
        seconds=outcome.seconds,
        exit_codes={name: ending.exit_code for name, ending in outcome.endings.items()},
        failures=outcome.all_failures(),
    )


def _tell(work: Work) -> None:
    """Tell whoever wants to know how the run ended. It is a courtesy, and none of it fails a run."""
    here, known = work.instance, work.memory.state
    try:
        how = resolve.telling(work.document) if work.document else telling.as_before(known.told)
        if work.request.extent == "reset" and known.last_run and known.last_run.exit_code == EXIT_DONE:
            how = replace(how, metrics=None)  # of an image made now it would tell what another instance was
        region = here.region if here else None
        told = telling.tell(work.machine, known, how, region, boot_id=boot_id(), seen=here is not None)
        work.memory.save(replace(known, told=told))
    except BootagentError as error:
        work.machine.tell(Note(f"what was told cannot be remembered: {error}"))
    except Exception as error:
        work.fault(error)


def _summarize(request: Request, machine: Machine, outcome: Outcome) -> None:
    """Leave the summary; it is a courtesy, and on a full disk there is none."""
    said = "; ".join(outcome.sentences()) or "this role runs nothing"
    line = plain(" ".join(f"{_named(request, outcome)}: {said}".split()))
    with contextlib.suppress(OSError):
        machine.write(machine.real(SUMMARY), line.encode() + b"\n")


def _named(request: Request, outcome: Outcome) -> str:
    if request.command == "stop" and outcome.exit_code == EXIT_DONE:
        return "stopped"
    return OUTCOMES.get(outcome.exit_code, "refused")
