"""Old releases removed."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent import beneath
from bootagent.machine import Machine


@dataclass(frozen=True)
class Prune:
    """These releases are gone, with their ``markers`` and with whatever killed runs left half made."""

    deploy_to: str
    names: tuple[str, ...]
    markers: tuple[str, ...]

    def __str__(self) -> str:
        named = f"{len(self.names)} old: {', '.join(self.names)}" if self.names else "none is too old"
        return f"prune {self.deploy_to}/releases ({named})"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether nothing is left of them."""
        return not self._doomed(machine)

    def apply(self, machine: Machine) -> None:
        """Remove them."""
        for name in self._doomed(machine):
            beneath.remove_tree(machine, machine.real(self.deploy_to), f"releases/{name}")
        for marker in self.markers:
            machine.real(marker).unlink(missing_ok=True)

    def _doomed(self, machine: Machine) -> list[str]:
        releases = machine.real(self.deploy_to) / "releases"
        if not releases.is_dir():
            return []
        entries = sorted(entry.name for entry in releases.iterdir())
        half_made = [name for name in entries if name.startswith(".") and name.endswith((".partial", ".removed"))]
        return [name for name in entries if name in self.names] + half_made
