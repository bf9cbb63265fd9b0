"""What a plan would do, and what is so already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bootagent.agent.deployment import POOLED, PREPARING
from bootagent.console import table
from bootagent.errors import BootagentError, plain
from bootagent.machine import Machine
from bootagent.plan import PHASES, Attachment, Lane, Plan
from bootagent.report import Facts
from bootagent.steps.base import Step
from bootagent.steps.fetched_secrets import FetchedSecrets


def facts(
    made: Plan, machine: Machine, before: Sequence[Attachment] = (), down: Sequence[Step] | None = None
) -> list[Facts]:
    """What the plan would do, the mounts and volumes that come ``before`` first.

    ``down`` is what takes the services down of an instance that the warm pool has; None: no pool has it. Past a lane's
    first step that is not satisfied, it can only say "would check", and so it does of secrets, which are not asked for.
    """
    if down is not None:
        made = replace(made, lanes=tuple(map(_pooled, made.lanes)))
    pool: Facts = {"app": "warm pool", "intent": "stop", "release": None, "revision": None, "reason": POOLED}
    kept_down = [{**pool, "steps": _looked_at({"attach": down}, machine)}] if down is not None else []
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
    return [*kept_down, *attached] + [
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


def _pooled(lane: Lane) -> Lane:
    """What is done of a lane in the warm pool."""
    steps = {phase: found for phase, found in lane.steps.items() if phase in PREPARING}
    return replace(lane, steps=steps, reason=f"{lane.reason}; {POOLED}")


def _looked_at(steps: Mapping[Any, Sequence[Any]], machine: Machine) -> list[Facts]:
    told, sure = [], True
    for phase in PHASES:
        for step in steps.get(phase, ()):
            if sure and isinstance(step, FetchedSecrets):
                sure = step.are_there(machine)
                verdict = "would check" if sure else "would do"
            elif sure:
                try:
                    sure = step.is_satisfied(machine)
                    verdict = "is so" if sure else "would do"
                except (BootagentError, OSError) as error:
                    sure, verdict = False, f"cannot tell: {error}"
            else:
                verdict = "would check"
            told.append({"phase": phase, "step": str(step), "verdict": verdict})
    return told


def text(lanes: Sequence[Facts]) -> str:
    """The plan for people."""
    blocks = []
    for lane in lanes:
        head = f"{lane['app']}: {lane['intent']} {lane['release'] or ''}".rstrip() + f" ({lane['reason']})"
        blocks.append("\n".join([head, *_lines(lane["steps"])]))
    return "\n\n".join(blocks)


def _lines(steps: Sequence[Facts]) -> list[str]:
    """A table of the steps; why one cannot be told of is below it, for that may be long."""
    if not steps:
        return []
    told = [step["verdict"].partition(": ") for step in steps]
    rows = [[f"  {step['phase']}", verdict, step["step"]] for step, (verdict, _, _) in zip(steps, told, strict=True)]
    head, *lines = table(rows, ["  PHASE", "VERDICT", "STEP"]).split("\n")
    reasons = [[f"    | {line}" for line in plain(why).splitlines()] for _, _, why in told]
    return [head, *(line for row, why in zip(lines, reasons, strict=True) for line in (row, *why))]
