"""What runs have left in memory, and what killed ones have left half removed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bootagent import mounts
from bootagent.machine import Machine

RUN = "/run/bootagent"
#: The agent's own: it holds them open, or others ask there how it went.
KEPT = frozenset({"lock", "daemon.lock", "summary", "launching", "hooks"})
#: Where keys are for as long as git runs. Empty but for a moment.
KEYS = "/run/bootagent-keys"


@dataclass(frozen=True)
class Swept:
    """Of /run/bootagent only what is the agent's own is left: no secrets, no scripts.

    No service directory is half removed below ``definitions``, and no link in ``service_dir`` names one that is gone.
    """

    definitions: str
    service_dir: str

    def __str__(self) -> str:
        return f"sweep {RUN}, {self.definitions} and {self.service_dir}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether there is nothing to sweep."""
        return not self._doomed(machine)

    def apply(self, machine: Machine) -> None:
        """Remove it."""
        for path in self._doomed(machine):
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)
            else:
                machine.delete(path, within=path.parent)

    def _doomed(self, machine: Machine) -> list[Path]:
        run, definitions = machine.real(RUN), machine.real(self.definitions)
        found = [entry for entry in _entries(run) if entry.name not in KEPT and not _is_mounted_in(machine, entry)]
        found += [entry for entry in _entries(definitions) if entry.match(".*.*.removed")]
        for link in _entries(machine.real(self.service_dir)):
            if link.is_symlink() and "." in link.name and link.readlink() == definitions / link.name:
                found += [] if link.exists() else [link]
        if machine.real(KEYS).is_dir() and not _entries(machine.real(KEYS)):
            found.append(machine.real(KEYS))
        return found


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _is_mounted_in(machine: Machine, entry: Path) -> bool:
    place = f"{mounts.place(machine, RUN)}/{entry.name}"
    return any(f"{mount.point}/".startswith(f"{place}/") for mount in mounts.table())
