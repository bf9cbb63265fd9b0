"""Volumes that nothing needs any more, given back."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent import disks, fstab, mounts, records
from bootagent.ebs import volume
from bootagent.machine import Machine
from bootagent.records import Record

#: How long whoever still uses a volume has to let it go: what was started from it has been stopped by then.
FREE_SECONDS = 60.0


@dataclass(frozen=True)
class RetiredVolumes:
    """Of the volumes whose records begin with ``prefix`` only those in ``keep`` are left.

    With ``delete``, one that was made from a snapshot is deleted; the others are only let go.
    What an image says of the volumes of the instance it was made of is forgotten, and EC2 not asked.
    """

    prefix: str
    keep: tuple[str, ...]
    instance_id: str | None
    delete: bool

    def __str__(self) -> str:
        kept = f" but {', '.join(self.keep)}" if self.keep else ""
        whose = "a role" if self.prefix == "role." else self.prefix.rstrip(".")
        return f"{'give back' if self.delete else 'let go'} the volumes of {whose}{kept}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether there is no record of another."""
        return not self._doomed(machine)

    def apply(self, machine: Machine) -> None:
        """Unmount, detach, delete. Raises MachineError for a volume that is still in use, and AwsError."""
        for record in self._doomed(machine):
            self._retire(machine, record)

    def _doomed(self, machine: Machine) -> list[Record]:
        found = records.all(machine)
        return [one for one in found if one.name.startswith(self.prefix) and one.name not in self.keep]

    def _retire(self, machine: Machine, record: Record) -> None:
        device = disks.find(machine, record.volume_id) if record.volume_id else None
        kept = {point for other in records.all(machine) if other.name in self.keep for point in other.mountpoints}
        # Another volume has taken its place where both were mounted: those lines are that one's.
        fstab.update(machine, (), tuple(point for point in record.mountpoints if point not in kept))
        if device:
            number = disks.number(device)
            for mount in reversed(mounts.of_device(machine, number)):
                machine.run(mounts.unmount_argv(mount.point, lazy=True), timeout=mounts.UNMOUNT_SECONDS, check=False)
            disks.wait_until_free(machine, device, FREE_SECONDS)
        if record.instance_id == self.instance_id:
            volume.release(machine, record.name, record.instance_id, delete=self.delete)
        else:
            records.forget(machine, record.name)
