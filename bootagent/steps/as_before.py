"""The directories and files that this agent has made or changed outside of releases, as they were before it came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bootagent import footprint, mounts
from bootagent.machine import Machine, Note


@dataclass(frozen=True)
class AsBefore:
    """What was noted of them is so again, as far as nobody else's files are in the way.

    ``until``: what is to be so after any stop, or after one that leaves nothing. ``keep`` are directories in which
    nothing is touched, nor is anything where something is mounted.
    """

    until: Literal["stop", "reset"]
    keep: tuple[str, ...]

    def __str__(self) -> str:
        return "remove the directories that bootagent has made" + (" for mounts" if self.until == "stop" else "")

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether nothing is left to do."""
        return not footprint.left(machine, self.until, self._keeps(machine))

    def apply(self, machine: Machine) -> None:
        """Remove those that are empty and were not there; give the others their owner and mode. Raises MachineError."""
        if changed := footprint.undo(machine, self.until, self._keeps(machine)):
            machine.tell(Note("removed", {"what": ", ".join(changed)}))

    def _keeps(self, machine: Machine) -> _Keeper:
        places = {mount.point for mount in mounts.table()} - {mounts.place(machine, "/")}
        return _Keeper(machine, self.keep, frozenset(places))


@dataclass(frozen=True)
class _Keeper:
    """Says which paths are to be left alone: those kept, and those on a mount, which may be dead."""

    machine: Machine
    keep: tuple[str, ...]
    mounted: frozenset[str]

    def __call__(self, path: str) -> bool:
        if any(f"{path}/".startswith(f"{kept.rstrip('/')}/") for kept in self.keep):
            return True
        place = mounts.place(self.machine, path)
        return any(point in self.mounted for point in (place, *self._below_root(place)))

    def _below_root(self, place: str) -> list[str]:
        root = mounts.place(self.machine, "/")
        found = []
        while len(place) > len(root) and place != "/":
            found.append(place)
            place = place.rpartition("/")[0] or "/"
        return found
