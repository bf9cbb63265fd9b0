"""The lanes of a stop: services down, hooks run, and what this agent has put on the machine taken off it again.

In a stop every step has its turn, whatever became of those before it: each looks for itself whether it may.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bootagent.plan.lane import Lane, Phase, Plan
from bootagent.steps.base import Step
from bootagent.steps.stopped import Stopped

#: How far a stop goes. ``shutdown`` leaves what the next boot needs, ``stop`` what a run without a network needs, and
#: ``reset`` nothing that this agent has made.
Extent = Literal["shutdown", "stop", "reset"]


@dataclass(frozen=True)
class ToStop:
    """An app's service directories below ``definitions``, each with the seconds it may take to stop."""

    app: str
    definitions: str
    services: tuple[tuple[str, float], ...]


def stop(services: Sequence[ToStop], reason: str) -> Plan:
    """The plan that takes services down, and why."""
    return Plan(tuple(_apps(services, reason)))


def services_down(services: Sequence[ToStop]) -> tuple[Step, ...]:
    """What takes these services down, in order, and nothing else."""
    return tuple(Stopped(one.app, one.definitions, one.services) for one in services)


def _apps(services: Sequence[ToStop], reason: str) -> Iterator[Lane]:
    for one in services:
        steps: dict[Phase, tuple[Step, ...]] = {"stop": services_down([one])}
        yield Lane(one.app, "stop", steps, reason=reason)
