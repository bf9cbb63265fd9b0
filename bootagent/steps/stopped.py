"""The services of one app are down, for now: what a machine about to go away wants."""

from __future__ import annotations

import pwd
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bootagent import runit
from bootagent.errors import ServiceError
from bootagent.machine import Machine


@dataclass(frozen=True)
class Stopped:
    """No service of ``app`` runs. ``services`` are the names of their directories, each with the seconds it may take.

    They stay installed: a reboot, or the next run, starts them again.
    """

    app: str
    definitions: str
    services: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return f"stop the services of {self.app} ({', '.join(name for name, _ in self.services)})"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether none of them has a process, or will be given one."""
        return not self._left(machine)

    def apply(self, machine: Machine) -> None:
        """TERM to all at once, KILL to those that take longer than they may. Raises ServiceError."""
        with ThreadPoolExecutor(max(1, len(self.services))) as pool:
            list(pool.map(lambda service: self._stop(machine, *service), self.services))
        if left := self._left(machine):
            raise ServiceError(f"still running: {', '.join(left)}")

    def _left(self, machine: Machine) -> Sequence[str]:
        found = {name: runit.status(self._inner(machine, name)) for name, _ in self.services}
        return [name for name, status in found.items() if status and (status.pid or status.wants_up)]

    def _stop(self, machine: Machine, name: str, within: float) -> None:
        inner = self._inner(machine, name)
        if runit.is_supervised(inner):
            owner = pwd.getpwuid((inner / "supervise").stat().st_uid).pw_name
            runit.stop(machine, inner, within=within, identity=machine.identity(owner))

    def _inner(self, machine: Machine, name: str) -> Path:
        return machine.real(self.definitions) / name / "service"
