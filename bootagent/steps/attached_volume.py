"""An EBS volume attached to this instance."""

from __future__ import annotations

from dataclasses import dataclass, field

from bootagent import disks, records
from bootagent.ebs.kind import VolumeKind
from bootagent.ebs.volume import Wanted, attach
from bootagent.machine import Machine

Tags = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class AttachedVolume:
    """The volume of the record ``name`` is attached, and its device is there.

    The fields are those of :class:`bootagent.ebs.volume.Wanted`.
    """

    name: str
    purpose: str
    instance_id: str
    region: str | None
    zone: str
    snapshot: str | None = None
    tags: Tags = ()
    find: Tags = ()
    kind: VolumeKind = field(default_factory=VolumeKind)
    device: str = "/dev/sdf"
    delete_on_termination: bool = True
    create: bool = True
    by_snapshot: bool = True
    within: float = 300.0

    def __str__(self) -> str:
        if self.find:
            origin = "with " + ", ".join(f"{key}={value}" for key, value in self.find)
        else:
            origin = f"made from {self.snapshot}" if self.snapshot else "of its own"
        return f"attach the volume {origin} for {self.purpose}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether its record says so, and a device with its serial number is there. EC2 is not asked."""
        record = records.load(machine, self.name, self.instance_id)
        if record is None or record.volume_id is None or not record.attached:
            return False
        if self.by_snapshot and not self.find and record.snapshot != self.snapshot:
            return False
        return disks.find(machine, record.volume_id, record.device) is not None

    def apply(self, machine: Machine) -> None:
        """Find or make it, attach it, and wait for its device."""
        volume_id = attach(machine, Wanted(**vars(self)))
        record = records.load(machine, self.name, self.instance_id)
        disks.wait(machine, volume_id, self.within, record.device if record else None)
