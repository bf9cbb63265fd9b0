"""How services are taken down: in which order, and how long that may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bootagent.deadline import NO_HURRY, Deadline
from bootagent.steps.base import Step
from bootagent.steps.no_orphans import NoOrphans
from bootagent.steps.removed_services import RemovedServices
from bootagent.steps.stopped import Stopped
from bootagent.turns import turns


@dataclass(frozen=True)
class ToStop:
    """An app's service directories below ``definitions``, each with the seconds it may take to stop.

    ``order`` says of services, ``after`` of the app, what they were started after: it is stopped after them.
    """

    app: str
    definitions: str
    services: tuple[tuple[str, float], ...]
    order: tuple[tuple[str, tuple[str, ...]], ...] = ()
    after: tuple[str, ...] = ()

    def seconds(self) -> float:
        """How long it takes to stop them all, at worst."""
        within, after = dict(self.services), dict(self.order)
        return sum(max(within[name] for name in names) for names in turns({n: after.get(n, ()) for n in within}))


def services_down(services: Sequence[ToStop]) -> tuple[Step, ...]:
    """What takes these services down, in order, and ends what they leave behind: they stay installed."""
    return tuple(step for one in services for step in down(one, NO_HURRY))


def down(one: ToStop, until: Deadline) -> tuple[Step, ...]:
    """What takes the services of one app down, and ends what they leave behind."""
    return (
        Stopped(one.app, one.definitions, one.services, one.order, until),
        NoOrphans(one.app, one.definitions, one.services, until),
    )


def no_services(one: ToStop, service_dir: str) -> tuple[Step, ...]:
    """What takes the services of one app down and away, and whatever else of it is there."""
    removed = RemovedServices(one.app, one.definitions, service_dir, one.services)
    return (*down(one, NO_HURRY), removed) if one.services else (removed,)
