"""What a mount would hide, looked for before anything is given up for that mount."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent import mounts
from bootagent.errors import MachineError
from bootagent.machine import Machine


@dataclass(frozen=True)
class Uncovered:
    """There is nothing at ``mountpoint``, an app's deploy_to, that a mount would hide."""

    mountpoint: str

    def __str__(self) -> str:
        return f"see that there is nothing in {self.mountpoint} that a mount would hide"

    def is_satisfied(self, machine: Machine) -> bool:
        """Raises MachineError when there is."""
        try:
            mounts.refuse_full(machine, self.mountpoint)
        except MachineError as error:
            remedy = "leave out mountpoint, and the volume is mounted over them; or name another deploy_to"
            raise MachineError(error.sentence, remedy=remedy) from error
        return True

    def apply(self, machine: Machine) -> None:
        """There is nothing to be done."""
