"""A volume's filesystem where it belongs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from bootagent import disks, fstab, mounts, records
from bootagent import mounted as ours
from bootagent.disks import filesystems
from bootagent.disks.filesystems import Content
from bootagent.ebs import volume
from bootagent.errors import BootagentError, CommandError, MachineError
from bootagent.fstab import Entry
from bootagent.machine import Machine, Note
from bootagent.records import Record

#: Where a volume is mounted to see that it can be, before it takes the place of another.
ASIDE = "/run/bootagent/volumes"
#: However late it is, a mount gets this long.
LEAST_SECONDS = 10.0

#: Of the options, those that each mountpoint has for itself, see mount(8).
_FLAGS = frozenset({"ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime"})
_CHECKS = {"xfs": "xfs_repair -n", "ext4": "e2fsck -n"}


@dataclass(frozen=True)
class MountedVolume:
    """The volume that ``record`` names is mounted at ``mountpoint``, and shown at ``bind`` too.

    Its filesystem fills it. A blank one gets a ``filesystem`` (xfs or ext4) if ``format`` allows it, whose root then
    belongs to ``user``. ``fstab``: it has its lines there; otherwise it has none. ``within`` is in seconds.
    """

    record: str
    mountpoint: str
    filesystem: str
    options: tuple[str, ...]
    bind: str | None
    format: bool
    user: str | None
    group: str | None
    fstab: bool
    within: float

    def __str__(self) -> str:
        shown = f", and show it at {self.bind}" if self.bind else ""
        return f"mount the volume of {self.record} at {self.mountpoint}{shown}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether it is mounted in both places from the device with the volume's serial, and all is written down."""
        record = records.load(machine, self.record)
        device = disks.find(machine, record.volume_id) if record and record.volume_id else None
        if record is None or device is None:
            return False
        mounted = mounts.at(machine, self.mountpoint)
        return (
            mounted is not None
            and all(self._shows(machine, point, device) for point in self._points)
            and self._fstab_is_so(machine, device, mounted.filesystem)
            and record == self._finished(machine, record, device)
        )

    def apply(self, machine: Machine) -> None:
        """Wait for the device, make what is missing, and change places with another volume of ours last.

        Raises MachineError when the device does not come, BootagentError when it is not what it should be, or when
        something that is not ours is in its place.
        """
        deadline = time.monotonic() + self.within
        record = self._attached(machine)
        device = disks.wait(machine, record.volume_id or "", self.within)
        self._refuse_strangers(machine, device)
        for point in self._points:
            mounts.refuse_movable(machine, point, f"the volume of {self.record}")
        self._fstab_is_so(machine, device, self.filesystem)  # raises what would stop us later
        for point in self._points:
            mounts.make_mountpoint(machine, point, empty=point == self.bind)
        filesystem = self._filesystem(machine, record, device)
        self._mount(machine, record, device, filesystem, deadline)
        if disks.size_bytes(machine, device) > (record.size_bytes or 0) and "ro" not in self.options:
            filesystems.grow(machine, device, self.mountpoint, filesystem)
        if record.blank:
            self._give_away(machine)
        if self.bind and not self._shows(machine, self.bind, device):
            _clear(machine, self.bind)
            mounts.bind(machine, self.mountpoint, self.bind, _left(deadline))
        if record.blank:
            volume.mark_formatted(machine, record.region, record.volume_id or "", filesystem)
        records.save(machine, self._finished(machine, record, device))

    # --- the device ------------------------------------------------------------------------------------------

    def _attached(self, machine: Machine) -> Record:
        record = records.load(machine, self.record)
        if record is None or record.volume_id is None:
            raise MachineError(f"no volume is attached for {self.record} yet")
        return record

    def _filesystem(self, machine: Machine, record: Record, device: Path) -> str:
        """What is on the device, after something was made on it if it is blank and may be written to."""
        number = disks.number(device)
        if record.blank:  # a mkfs or a mount of a run that was killed goes on
            disks.wait_until_free(machine, device, self.within, unless=lambda: bool(mounts.of_device(machine, number)))
        mounted = mounts.of_device(machine, number)
        if mounted:
            return mounted[0].filesystem
        disks.verify(machine, device, record.volume_id or "")
        found = filesystems.content(machine, device)
        if found.filesystem:
            return found.filesystem
        if found != Content(None, None):
            raise BootagentError(
                f"cannot mount {record.volume_id}: it holds {found}",
                remedy="only volumes with a filesystem on the whole disk can be mounted; nothing on it was changed",
            )
        if not (self.format and record.blank):
            raise self._unformatted(machine, record, device)
        filesystems.make_filesystem(machine, device, record.volume_id or "", self.filesystem)
        machine.tell(Note("filesystem made", {"volume": record.volume_id, "filesystem": self.filesystem}))
        return self.filesystem

    def _unformatted(self, machine: Machine, record: Record, device: Path) -> BootagentError:
        if reason := filesystems.why_not_blank(machine, device):
            return BootagentError(
                f"cannot mount {record.volume_id} ({device}): it shows no filesystem, yet is not blank: {reason}",
                remedy=f"its filesystem may be damaged: look at it with {_CHECKS[self.filesystem]} {device}; "
                "it was not changed",
            )
        return BootagentError(
            f"cannot mount {record.volume_id}: it is blank, but was not made to be formatted by bootagent",
            remedy=f"if it is the right volume, make a filesystem on it by hand: mkfs.{self.filesystem}",
        )

    def _finished(self, machine: Machine, record: Record, device: Path) -> Record:
        size = disks.size_bytes(machine, device)
        return replace(record, blank=False, size_bytes=size, mountpoints=self._points)

    def _give_away(self, machine: Machine) -> None:
        """Give the root of a new filesystem to its owner, unless there is something in it already."""
        owner = machine.identity(self.user, self.group)
        root = machine.real(self.mountpoint)
        if owner and not {entry.name for entry in root.iterdir()} - {"lost+found"}:
            os.chown(root, owner.uid, owner.gid)

    # --- the mountpoints -------------------------------------------------------------------------------------

    @property
    def _points(self) -> tuple[str, ...]:
        return (self.mountpoint, *([self.bind] if self.bind else []))

    def _mount(self, machine: Machine, record: Record, device: Path, filesystem: str, deadline: float) -> None:
        aside = f"{ASIDE}/{self.record}"
        there = self._shows(machine, self.mountpoint, device)
        replacing = not there and mounts.at(machine, self.mountpoint) is not None
        if replacing:  # what cannot be mounted does not take the place of what works
            _clear(machine, aside)
            mounts.make_mountpoint(machine, aside)
            self._mount_at(machine, aside, record, device, filesystem, deadline)
        # Before the mount: systemd unmounts at once what is not from the device that it knows of.
        fstab.update(machine, *self._fstab(machine, device, filesystem))
        fstab.tell_systemd(machine)
        if not there:
            _clear(machine, self.mountpoint)
            self._mount_at(machine, self.mountpoint, record, device, filesystem, deadline)
        _clear(machine, aside)

    def _mount_at(
        self, machine: Machine, point: str, record: Record, device: Path, filesystem: str, deadline: float
    ) -> None:
        disks.verify(machine, device, record.volume_id or "")
        try:
            mounts.mount(machine, device, point, filesystem, self._options(filesystem), _left(deadline))
        except MachineError as error:
            if self._shows(machine, point, device):  # by the mount of a run that was killed, which went on
                return
            cause = error.__cause__
            if not isinstance(cause, CommandError) or not cause.tail:  # it was late
                raise
            raise BootagentError(
                f"cannot mount {record.volume_id} ({device}, {filesystem}) at {self.mountpoint}: {error.sentence}",
                remedy=f"its filesystem may be damaged: look at it with {_CHECKS.get(filesystem, 'fsck -n')} {device}; "
                "it was not changed",
            ) from error

    def _options(self, filesystem: str) -> tuple[str, ...]:
        """A clone has the UUID of its origin, which xfs refuses to mount twice unless it is told not to look."""
        others = tuple(option for option in self.options if option not in ("defaults", "nouuid"))
        return ("nouuid", *others) if filesystem == "xfs" else others

    def _refuse_strangers(self, machine: Machine, device: Path) -> None:
        for point in self._points:
            mounted = mounts.at(machine, point)
            if mounted and not self._shows(machine, point, device) and not ours.is_volume(machine, point, mounted):
                raise BootagentError(
                    f"cannot mount the volume of {self.record} at {point}: {mounted.source} ({mounted.filesystem}) is "
                    "mounted there, and not by bootagent",
                    remedy=f"umount {point}, or choose another mountpoint",
                )

    def _shows(self, machine: Machine, point: str, device: Path) -> bool:
        """Whether the root of the device's filesystem is mounted at a logical path, as strictly as was asked for."""
        mounted = mounts.at(machine, point)
        return (
            mounted is not None
            and mounted.root == "/"
            and mounted.device == disks.number(device)
            and _FLAGS.intersection(self.options).issubset(mounted.options)
        )

    # --- fstab -----------------------------------------------------------------------------------------------

    def _fstab(self, machine: Machine, device: Path, filesystem: str) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
        """The lines wanted in /etc/fstab, and the mountpoints that are to have none."""
        if not self.fstab:
            return (), self._points
        source = disks.stable_name(machine, device)
        lines = [fstab.volume(source, self.mountpoint, filesystem, self._options(filesystem))]
        if self.bind:
            lines.append(fstab.bind(self.mountpoint, self.bind))
        return tuple(lines), ()

    def _fstab_is_so(self, machine: Machine, device: Path, filesystem: str) -> bool:
        return fstab.is_so(machine, *self._fstab(machine, device, filesystem))


def _clear(machine: Machine, point: str) -> None:
    """Take away all mounts at a logical path; who uses them keeps them until they are done."""
    while mounts.at(machine, point):
        mounts.unmount(machine, point, lazy=True)


def _left(deadline: float) -> float:
    return max(LEAST_SECONDS, deadline - time.monotonic())
