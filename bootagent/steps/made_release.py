"""A release on a volume of its own, made of what the snapshot has."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bootagent import records
from bootagent.errors import MachineError
from bootagent.machine import Machine


@dataclass(frozen=True)
class MadeRelease:
    """It is noted that all has been done which makes a release of the volume that ``record`` names."""

    record: str

    def __str__(self) -> str:
        return f"note that the volume of {self.record} holds a release that is ready"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether it is."""
        return not records.is_pristine(machine, self.record)

    def apply(self, machine: Machine) -> None:
        """Note it."""
        if record := records.load(machine, self.record):
            records.save(machine, replace(record, pristine=False))


@dataclass(frozen=True)
class MadeBefore:
    """All that makes a release of the volume that ``record`` names was done before."""

    record: str

    def __str__(self) -> str:
        return f"see that the volume of {self.record} holds a release that is ready"

    def is_satisfied(self, machine: Machine) -> bool:
        """Raises MachineError when it was not: services would run with what the snapshot brings."""
        if records.is_pristine(machine, self.record):
            raise MachineError(
                f"the volume of {self.record} is as its snapshot has it: no release was made of it yet",
                remedy="mend what kept it from being made; the next run makes it",
            )
        return True

    def apply(self, machine: Machine) -> None:
        """There is nothing to be done."""
