"""What the agent keeps for an app that the role does not run any more, gone."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent.environment import secrets
from bootagent.machine import Machine


@dataclass(frozen=True)
class Forgotten:
    """No secret of ``app`` is in memory, and none of ``places`` is there: directories of the agent's own."""

    app: str
    places: tuple[str, ...]

    def __str__(self) -> str:
        return f"remove the secrets and the environment of {self.app}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether they are gone."""
        return not self._left(machine)

    def apply(self, machine: Machine) -> None:
        """Remove them."""
        for place in self._left(machine):
            machine.remove_tree(machine.real(place))

    def _left(self, machine: Machine) -> list[str]:
        there = [place for place in self.places if machine.real(place).exists()]
        return [*secrets.places(machine, self.app), *there]
