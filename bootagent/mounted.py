"""Which mounts are this agent's: known from its notes, its volume records and its block in fstab, never guessed."""

from __future__ import annotations

import contextlib

from bootagent import disks, footprint, fstab, mounts, records
from bootagent.errors import BootagentError
from bootagent.machine import Machine
from bootagent.mounts import Mount

#: Whatever is mounted in it is the agent's own.
RUN = "/run/bootagent"
_NFS = ("nfs", "nfs4")


def points(machine: Machine) -> tuple[str, ...]:
    """The logical paths at which this agent mounts, by whatever tells of them."""
    found = {*footprint.mountpoints(machine)}
    found |= {point for record in records.all(machine) for point in record.mountpoints}
    with contextlib.suppress(BootagentError):  # a damaged fstab: whoever is to change it will say so
        found |= {entry.point for entry in fstab.current(machine)}
    return tuple(sorted(found))


def ours(machine: Machine) -> tuple[Mount, ...]:
    """The mounts that this agent has made, or fstab for it, and that are not hidden; in the order of the table."""
    by_place = {mounts.place(machine, point): point for point in points(machine)}
    table = mounts.table()
    run = mounts.place(machine, RUN)
    found = []
    for mount in table:
        if mount.point.startswith(f"{run}/"):
            found.append(mount)
        elif mount.point in by_place and mounts.topmost(table, mount.point) == mount:
            point = by_place[mount.point]
            noted = mount.filesystem in _NFS and point in footprint.mountpoints(machine)
            if noted or is_volume(machine, point, mount):
                found.append(mount)
    return tuple(found)


def is_volume(machine: Machine, point: str, mounted: Mount) -> bool:
    """Whether a mount is one of our volumes, by its serial or its name in our block of fstab.

    Of a volume that is gone, its place must do: a mountpoint that we have written down.
    """
    known = records.all(machine)
    line = None
    with contextlib.suppress(BootagentError):
        line = next((entry for entry in fstab.current(machine) if entry.point == point), None)
    if line and "bind" in line.options and mounted.root != "/":
        # Bound by mount -a while the volume was not there: an empty directory, shown twice.
        return mounts.place(machine, line.source).endswith(mounted.root)
    device = disks.of_number(machine, mounted.device)
    if device is None and disks.is_number_known(machine, mounted.device):
        return False  # a partition, or whatever else is no disk of ours
    if device is None:
        written_down = line is not None or any(point in record.mountpoints for record in known)
        return written_down and not mounted.device.startswith("0:")  # a filesystem without a disk never is
    volume_id = disks.volume_of(machine, device)
    return (volume_id is not None and volume_id in {record.volume_id for record in known}) or (
        line is not None and line.source == disks.by_id(machine, device)
    )
