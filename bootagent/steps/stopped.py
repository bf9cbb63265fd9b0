"""The services of one app are down, for now: what a machine about to go away wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bootagent.deadline import NO_HURRY, Deadline
from bootagent.errors import ServiceError
from bootagent.machine import Machine
from bootagent.services import takedown


@dataclass(frozen=True)
class Stopped:
    """No service of ``app`` runs. ``services`` are the names of their directories, each with the seconds it may take.

    They stay installed: a reboot, or the next run, starts them again. ``after`` says of services what they come after:
    these are stopped once they are down themselves. Where ``until`` leaves less time, each gets less.
    """

    app: str
    definitions: str
    services: tuple[tuple[str, float], ...]
    after: tuple[tuple[str, tuple[str, ...]], ...] = ()
    until: Deadline = NO_HURRY

    def __str__(self) -> str:
        return f"stop the services of {self.app} ({', '.join(name for name, _ in self.services)})"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether none of them has a process, or will be given one."""
        return not self._left(machine)

    def apply(self, machine: Machine) -> None:
        """TERM to all of a turn at once, KILL to those that take longer than they may. Raises ServiceError."""
        takedown.take_down(machine, self.definitions, dict(self.services), dict(self.after), self.until)
        if left := self._left(machine):
            raise ServiceError(f"still running: {', '.join(left)}")

    def _left(self, machine: Machine) -> Sequence[str]:
        root = machine.real(self.definitions)
        return [name for name, _ in self.services if not takedown.is_down(root / name / "service")]
