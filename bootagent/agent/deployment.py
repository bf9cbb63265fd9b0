"""Carrying out a plan that brings releases up: phase by phase, lanes side by side, and back where one fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bootagent import plan, readiness, release, telling
from bootagent.agent.request import CONFIGURING, Ending, Outcome, worst
from bootagent.agent.work import Work
from bootagent.errors import (
    EXIT_DEGRADED,
    EXIT_DONE,
    EXIT_FAILED,
    BootagentError,
    BundleError,
    MachineError,
    StepError,
    UnfitError,
)
from bootagent.machine import Note
from bootagent.plan import DEPLOYING, Lane, Phase, Plan
from bootagent.state import Failure
from bootagent.survey import side_by_side, with_traffic

#: As far as an instance in the warm pool gets, and why.
PREPARING: tuple[Phase, ...] = ("stage",)
POOLED = "not serving: the warm pool has it"


def deploy(work: Work, made: Plan) -> Outcome:
    """Carry the plan out, and see to the last that what serves stays healthy where a launch waits for it."""
    endings: dict[str, Ending] = {}
    going = [lane for lane in made.lanes if lane.intent != "nothing"]
    for lane in made.lanes:
        if lane.intent == "nothing":
            endings[lane.app] = Ending(EXIT_FAILED, f"nothing to run: {lane.reason}", transient=lane.unread)
    for phase in PREPARING if work.pooled else DEPLOYING:
        work.memory.trying(phase, [(lane, work.app(lane)) for lane in going if lane.intent != "retire"])
        for turn in plan.turns_of(phase, going):
            _take_turn(work, phase, turn, endings)
        going = [lane for lane in going if lane.app not in endings]
    for lane in going:
        endings[lane.app] = _prepared(work, lane) if work.pooled else _succeeded(work, lane)
    endings.update(_announced(work, made, endings))
    if not work.pooled:
        _retire(work, going, endings)
    for lane in made.lanes:  # what was so before a step was tried
        if (ending := endings[lane.app]).exit_code != EXIT_DONE and ending.failure is None:
            endings[lane.app] = replace(ending, failure=_planned_failure(work, lane))
    transient = any(ending.transient for ending in endings.values())
    return _seen_to_last(work, Outcome(worst(endings), endings, transient=transient))


def withdraw(work: Work) -> None:
    """Have no more traffic come to a node that serves nothing, and for which there is not even a plan."""
    if work.config is None or work.instance is None:
        return
    try:
        lane = with_traffic(Plan(()), work.config, work.instance, work.machine).withdraw
        if lane and (error := work.run_phase(lane, "announce")):
            work.machine.tell(Note(str(error)))
    except BootagentError as error:
        work.machine.tell(Note(f"traffic cannot be sent elsewhere: {error}"))


# --- lanes ---------------------------------------------------------------------------------------------------


def _take_turn(work: Work, phase: Phase, turn: Sequence[Lane], endings: dict[str, Ending]) -> None:
    """Carry out a phase of some lanes side by side; those that fail end here."""
    failures = side_by_side(lambda lane: _held_up(lane, phase, endings) or work.run_phase(lane, phase), turn)
    for lane, error in zip(turn, failures, strict=True):
        if error:
            failure = telling.failure_of(error, lane.app, phase)
            endings[lane.app] = replace(_fall_back(work, lane, phase, error), failure=failure)


def _held_up(lane: Lane, phase: Phase, endings: Mapping[str, Ending]) -> MachineError | None:
    """Why the services of a lane are not begun: others that must be up first are not."""
    down = [app for app in lane.after if app in endings and endings[app].exit_code == EXIT_FAILED]
    if phase != "serve" or not down or not lane.steps.get(phase):
        return None
    return MachineError(f"its services are not begun: they come after those of {', '.join(down)}, which does not serve")


def _prepared(work: Work, lane: Lane) -> Ending:
    """A lane that ends before its release is switched to; the run that is to serve takes it up from there."""
    if lane.intent == "retire":
        return _succeeded(work, lane)
    work.memory.staged(lane, work.app(lane))
    code = EXIT_DEGRADED if lane.degraded else EXIT_DONE
    return Ending(code, f"release {lane.release} is prepared; {POOLED}", transient=lane.unread)


def _succeeded(work: Work, lane: Lane) -> Ending:
    if lane.intent == "retire":
        work.memory.forget(lane.app)
        return Ending(EXIT_DONE, "its services are removed; the role does not run it")
    work.serving[lane.app] = lane.steps.get("serve", ())
    work.memory.good(lane, work.app(lane))
    code = EXIT_DEGRADED if lane.degraded else EXIT_DONE
    return Ending(code, f"{_said(lane)}; {lane.reason}", transient=lane.unread)


def _fall_back(work: Work, lane: Lane, phase: Phase, error: BootagentError) -> Ending:
    """A lane failed: mark its release, and go back to (or stay on) the one that worked."""
    tail = telling.failure_of(error).tail
    if lane.intent == "retire":
        return Ending(EXIT_FAILED, str(error), tail, transient=True)
    cause = _cause(error)
    # What has served may serve again, once what it needs is there: it is no worse than it was.
    blamed = phase != "stage" and not isinstance(cause, MachineError) and work.memory.is_on_trial(lane, work.app(lane))
    if blamed:
        work.memory.bad(lane, work.app(lane), str(error))
    # What was published wrong stays wrong, and so does a machine that was made otherwise; what a hook could not do, it
    # may be able to do later. And where the source did not answer, it may answer yet.
    transient = lane.unread or (not blamed and not isinstance(cause, BundleError | UnfitError))
    fallback = lane.fallback or (lane.release if lane.intent in ("keep", "hotfix") and phase == "stage" else None)
    if fallback is None or work.pooled:
        serving = phase != "serve" and work.something_serves()  # such as what another source brought
        return Ending(EXIT_DEGRADED if serving else EXIT_FAILED, str(error), tail, transient=transient)
    return _put_back(work, lane, phase, error, fallback, transient)


def _put_back(work: Work, lane: Lane, phase: Phase, error: BootagentError, fallback: str, transient: bool) -> Ending:
    tail, app = telling.failure_of(error).tail, work.app(lane)
    assert work.config is not None  # the lane was made from it
    left = lane.release if phase != "stage" and lane.release != fallback else None
    known = work.memory.app(lane, app)
    back = plan.put_back(work.config, app, known, fallback, left=left, reason="the activation failed")
    for later in DEPLOYING:
        if again := work.run_phase(back, later):
            if phase != "serve" and work.something_serves():  # nothing was stopped
                return Ending(EXIT_DEGRADED, f"{error}; what ran still serves", tail, transient=transient)
            sentence = f"{error}; and release {fallback} could not be put back: {again}"
            return Ending(EXIT_FAILED, sentence, tail, transient=transient or not isinstance(_cause(again), UnfitError))
    work.serving[lane.app] = back.steps.get("serve", ())
    kept = "still serves" if phase == "stage" else "was put back and serves"
    return Ending(EXIT_DEGRADED, f"{error}; release {fallback} {kept}", tail, transient=transient)


def _cause(error: BootagentError) -> BootagentError:
    return error.cause if isinstance(error, StepError) else error


def _retire(work: Work, going: Sequence[Lane], endings: dict[str, Ending]) -> None:
    """Take away what is left over. The app serves, but that costs money: when it fails, the next run tries again."""
    failures = side_by_side(lambda lane: work.run_phase(lane, "retire"), going)
    for lane, error in zip(going, failures, strict=True):
        if error:
            ending, failure = endings[lane.app], telling.failure_of(error, lane.app)
            said = f"{ending.sentence}; {error}"
            endings[lane.app] = replace(ending, sentence=said, transient=True, failure=failure)


# --- the node as a whole -------------------------------------------------------------------------------------


def _announced(work: Work, made: Plan, endings: Mapping[str, Ending]) -> dict[str, Ending]:
    """Have traffic come once all of the role serves, and keep it away when some of it does not serve at all."""
    names = [app.name for app in work.config.apps] if work.config else []
    failed = [name for name in names if name in endings and endings[name].exit_code == EXIT_FAILED]
    # What could not even be planned may still serve as before: that is no reason to take the node out.
    begun = {lane.app for lane in made.lanes if lane.intent != "nothing"}
    failed = [name for name in failed if name in begun or not work.still_serves(name)]
    whole = all(name in endings for name in names) or work.something_serves()
    lane = made.withdraw if failed else made.announce if whole else None
    if lane is None:
        return {}
    work.journal.record("lane", app=lane.app, intent=lane.intent, reason=lane.reason)
    if lane.intent == "nothing":
        return {lane.app: Ending(EXIT_FAILED, lane.reason, failure=Failure(lane.reason, lane.app, phase="plan"))}
    if error := work.run_phase(lane, "announce"):
        failure = telling.failure_of(error, lane.app)
        return {lane.app: Ending(EXIT_FAILED, str(error), transient=True, failure=failure)}
    return {lane.app: Ending(EXIT_DONE, lane.reason)}


def _seen_to_last(work: Work, outcome: Outcome) -> Outcome:
    """While a launch waits for it, see that what serves stays healthy for as long as the configuration wants."""
    config = work.config
    if outcome.exit_code == EXIT_FAILED or work.request.command not in CONFIGURING or not (config and config.lifecycle):
        return outcome
    if work.pooled:
        work.readiness = "prepared"
    elif config.lifecycle.launching and readiness.is_launching(work.machine):
        seconds, definitions = config.lifecycle.sustained, config.runit.definitions
        with work.journal.span("serve", f"launch: waiting {seconds:g} s of health"):
            problem = readiness.lasting_problem(work.machine, work.serving, definitions, seconds)
        if problem:
            said = (*outcome.problems, problem)
            failures = (*outcome.failures, Failure(problem, phase="serve"))
            return replace(outcome, exit_code=EXIT_FAILED, problems=said, transient=True, failures=failures)
        if readiness.is_launching(work.machine):  # nobody cut it short
            work.readiness = "sustained"
    return outcome


# --- words ---------------------------------------------------------------------------------------------------


def _planned_failure(work: Work, lane: Lane) -> Failure:
    """Why a lane was less than what was asked for from the beginning."""
    if error := work.unread.get(lane.app):
        return telling.failure_of(error, lane.app)
    return Failure(lane.reason, lane.app, phase="plan")


def _said(lane: Lane) -> str:
    verb = {"deploy": "now runs", "rollback": "is back on"}.get(lane.intent, "stays on")
    return f"{verb} release {lane.release}" + (f" ({release.short(lane.label)})" if lane.label else "")
