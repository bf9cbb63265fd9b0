"""Nothing is left of services that are down: no child that outlived its parent, nothing that made itself a daemon."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bootagent.deadline import NO_HURRY, Deadline
from bootagent.errors import ServiceError
from bootagent.machine import Machine
from bootagent.services import leftovers


@dataclass(frozen=True)
class NoOrphans:
    """No process has the environment of one of these services, but what its runsv has started and runs.

    ``services`` are the names of their directories below ``definitions``, each with the seconds it may take.
    A process that has cleared its environment is not known to be theirs. ``until`` may leave them less time.
    """

    app: str
    definitions: str
    services: tuple[tuple[str, float], ...]
    until: Deadline = NO_HURRY

    def __str__(self) -> str:
        return f"end what the services of {self.app} have left behind"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether there is none."""
        return not any(leftovers.find(machine.real(self.definitions) / name) for name, _ in self.services)

    def apply(self, machine: Machine) -> None:
        """TERM, and KILL to those that take longer than their service may. Raises ServiceError for what stays."""
        with ThreadPoolExecutor(max(1, len(self.services))) as pool:
            left = list(pool.map(lambda one: self._end(machine, *one), self.services))
        if any(left):
            raise ServiceError(f"left behind, and even KILL does not end it: {', '.join(filter(None, left))}")

    def _end(self, machine: Machine, name: str, within: float) -> str:
        """End what one service has left behind; who is left even so."""
        still = leftovers.end(machine, machine.real(self.definitions) / name, self.until.grant(within))
        return f"{leftovers.shown(still)} of {name}" if still else ""
