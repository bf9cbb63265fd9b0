"""A stop: what it is to take down, from what was noted, and taking it down whatever else fails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from bootagent import leaving, plan, state, telling
from bootagent.agent.request import Ending, Outcome, Request, worst
from bootagent.agent.work import Work
from bootagent.deadline import NO_HURRY, Deadline
from bootagent.environment import checkout
from bootagent.errors import EXIT_DONE, EXIT_FAILED, BootagentError, ConfigError, UsageError
from bootagent.machine import Machine, Note
from bootagent.plan import Lane, Phase, Plan
from bootagent.survey import around_a_stop, load_document, services_to_stop, side_by_side, traffic_told


def planned(work: Work) -> Plan:
    """The plan of a stop.

    A machine that goes down has no time for metadata; nor must a broken configuration keep services up.
    """
    try:
        work.document = load_document(work.request.config)
    except ConfigError as error:
        work.journal.record("fault", error=str(error))
    work.memory.stopped()
    services = services_to_stop(work.document, work.memory.state, work.machine)
    around = around_a_stop(work.document, work.memory.state, work.machine, work.request.extent, _until(work))
    made = plan.stop(services, around, work.request.reason)
    return replace(made, lanes=(*_traffic_off(work, plan.before_services(services, around)), *made.lanes))


def refuse_nowhere(request: Request, machine: Machine) -> None:
    """Raise UsageError where no bootagent has ever been, and none is configured: the root was mistyped."""
    place = str(PurePosixPath(state.PATH).parent)  # it is there though the state itself may be lost
    if not any(os.path.lexists(path) for path in (machine.real(place), request.config)):
        raise UsageError(
            f"nothing to stop at {machine.root}: there is neither {place} nor {request.config}",
            remedy="correct --root, or name the configuration with --config",
        )


def take_down(work: Work, made: Plan) -> Outcome:
    """Carry out a stop: whatever one step could not do, every other has its turn."""
    errors: dict[str, list[BootagentError]] = {lane.app: [] for lane in made.lanes}
    notes: list[Note] = []
    work.machine = work.machine.heard_by(notes.append)
    for phase in plan.STOPPING:
        for turn in reversed(plan.in_turns(made.lanes)) if phase == "stop" else [made.lanes]:
            found = side_by_side(lambda lane, phase=phase: _errors(work, lane, phase), turn)
            for lane, failed in zip(turn, found, strict=True):
                errors[lane.app] += failed
    endings = {lane.app: _ending(lane, errors[lane.app], work.request.extent, notes) for lane in made.lanes}
    if work.request.extent == "reset" and not any(errors.values()):
        _forget(work)
    code = worst(endings)
    return Outcome(code, endings, transient=code != EXIT_DONE)


def _forget(work: Work) -> None:
    """Of apps that are gone nothing is known, nor kept for a run without a network, nor is there a hook to run."""
    leaving.forget(work.machine)
    checkout.forget_all(work.machine)
    work.memory.forget_all()


def _until(work: Work) -> Deadline:
    """When all has to be over; there is no hurry while heartbeats have the group wait."""
    lifecycle = work.document.tables.get("lifecycle") if work.document else None
    if work.request.escorted and lifecycle and lifecycle.get("terminating"):
        return NO_HURRY
    return Deadline(work.request.over_at)


def _traffic_off(work: Work, until: Deadline) -> tuple[Lane, ...]:
    try:
        told = traffic_told(work.machine, None)
    except BootagentError as error:
        work.journal.record("fault", error=str(error))
        return ()
    if not told.names:
        return ()
    return (plan.off(told, work.request.reason, until),)


def _errors(work: Work, lane: Lane, phase: Phase) -> list[BootagentError]:
    failures = [work.run_steps((step,), phase, lane.app) for step in lane.steps.get(phase, ())]
    return [error for error in failures if error]


def _ending(lane: Lane, errors: Sequence[BootagentError], extent: plan.Extent, notes: Sequence[Note]) -> Ending:
    own = [note for note in notes if str(note.details.get("service")).startswith(f"{lane.app}.")]
    killed = "".join(f"; {note.label}" for note in own if "killed_after" in note.details)
    if errors:
        failures = [telling.failure_of(error, lane.app) for error in errors]
        tail = "\n".join(failure.tail for failure in failures if failure.tail)
        return Ending(EXIT_FAILED, "; ".join(map(str, errors)) + killed, tail, transient=True, failure=failures[0])
    if lane.intent == "withdraw":
        return Ending(EXIT_DONE, lane.reason)
    if lane.app != plan.MACHINE:
        return Ending(EXIT_DONE, f"its services are down{killed}; {lane.reason}")
    removed = [str(note.details["what"]) for note in notes if note.label == "removed"]
    if extent == "reset" and removed:
        return Ending(EXIT_DONE, f"it is as before its first boot; removed {', '.join(removed)}")
    said = {"shutdown": "nothing is mounted", "stop": "it is as before the boot", "reset": "as before its first boot"}
    return Ending(EXIT_DONE, said[extent])
