"""An EBS volume attached to this instance."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent import disks, records
from bootagent.ebs.volume import attach
from bootagent.ebs.wanted import Wanted
from bootagent.machine import Machine


@dataclass(frozen=True)
class AttachedVolume:
    """The volume that is ``wanted`` is attached, and its device is there."""

    wanted: Wanted

    def __str__(self) -> str:
        wanted = self.wanted
        if wanted.find:
            origin = "with " + ", ".join(f"{key}={value}" for key, value in wanted.find)
        else:
            origin = f"made from {wanted.snapshot}" if wanted.snapshot else "of its own"
        return f"attach the volume {origin} for {wanted.purpose}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether its record says so, and a device with its serial number is there. EC2 is not asked."""
        wanted = self.wanted
        record = records.load(machine, wanted.name, wanted.instance_id)
        if record is None or record.volume_id is None or not record.attached:
            return False
        if wanted.by_snapshot and not wanted.find and record.snapshot != wanted.snapshot:
            return False
        return disks.find(machine, record.volume_id) is not None

    def apply(self, machine: Machine) -> None:
        """Find or make it, attach it, and wait for its device."""
        disks.refuse_xen(machine)
        volume_id = attach(machine, self.wanted)
        disks.wait(machine, volume_id, self.wanted.within)
