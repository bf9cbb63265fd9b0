"""A release has what its services need, before it is switched to."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent.machine import Machine, Note
from bootagent.roster import Roster, Wanted
from bootagent.services import runtimes


@dataclass(frozen=True)
class Startable:
    """The services of ``roster``, as they would run from the release, can be started, as far as is to be seen."""

    roster: Roster

    def __str__(self) -> str:
        return f"see that {self.roster.current} has what its services need"

    def is_satisfied(self, machine: Machine) -> bool:
        """Raises what would keep them from being started later; another app's services do not."""
        wanted = self.roster.wanted(machine)
        self.roster.order(machine, [one.directory.name for one in wanted], of_others=False)
        for one in wanted:
            self._tell_of_versions(machine, one)
        return True

    def apply(self, machine: Machine) -> None:
        """There is nothing to be done."""

    def _tell_of_versions(self, machine: Machine, one: Wanted) -> None:
        """Whether the release names versions of languages that nobody heeds."""
        if one.spec.runtime != "auto" or one.directory.shims is not None:
            return
        for place in self.roster.places(machine, one.spec):
            if (place / runtimes.VERSIONS).exists():
                said = f"{one.directory.name} gets the system's programs: there is no asdf and no mise"
                machine.tell(Note(said, {"not_heeded": str(place / runtimes.VERSIONS)}))
