"""The machine that simulated disks are plugged into, and one made of loop devices.

A :class:`LoopHost` shows each disk below a machine's root the way the kernel and udev of a Nitro instance would:
a node in ``dev``, an entry in ``sys/block`` with the serial number, and a link in ``dev/disk/by-id``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bootagent.errors import MachineError
from bootagent.sandbox.scratch import mounts_below

MODEL = "Amazon Elastic Block Store"
#: The length of a serial number in the NVMe Identify Controller data; shorter ones are padded with blanks.
SERIAL_LENGTH = 20
MODEL_LENGTH = 40
SECTOR_BYTES = 512

_CLONE_NEWNS = 0x00020000  # <linux/sched.h>
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18  # <linux/mount.h>
_PROGRAM_SECONDS = 60.0


class StillInUse(Exception):
    """A disk cannot be taken away yet: it is mounted, or held otherwise."""


class Host(Protocol):
    """A machine that disks come to and go from. Called from one thread at a time, which is not the caller's."""

    def plug(self, volume_id: str, file: Path, device: str) -> None:
        """Let the machine's kernel see ``file`` as the volume; ``device`` is the name asked for, as /dev/sdf."""

    def unplug(self, volume_id: str) -> None:
        """Take the volume away. Raises StillInUse when the machine holds it; it is tried again then."""

    def resized(self, volume_id: str) -> None:
        """Let the machine's kernel see that the volume's file has grown."""


@dataclass(frozen=True)
class _Disk:
    name: str
    loop: Path
    #: While it is open the loop device stays: it is freed when its last user is gone, even if we are killed.
    held: int


class LoopHost:
    """A host whose disks are loop devices, seen below ``root``; for root alone. Close it to leave nothing behind."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._disks: dict[str, _Disk] = {}

    def node(self, volume_id: str) -> Path | None:
        """The device node of a volume that is plugged in; None before it can be found by its serial number."""
        disk = self._disks.get(volume_id)
        return self.root / "dev" / disk.name if disk and (self._entry(disk) / "device/serial").exists() else None

    # --- the protocol ----------------------------------------------------------------------------------------

    def plug(self, volume_id: str, file: Path, device: str) -> None:
        """Show the volume under the lowest name that is free, in the order of arrival as NVMe does."""
        taken = {disk.name for disk in self._disks.values()}
        # nvme0 is the root disk's.
        name = next(name for name in (f"nvme{number}n1" for number in range(1, 1000)) if name not in taken)
        loop = Path(_ran("losetup", "--find", "--show", str(file)).strip())
        held = os.open(loop, os.O_RDONLY | os.O_CLOEXEC)
        _ran("losetup", "--detach", str(loop))  # which waits for the last user
        self._disks[volume_id] = _Disk(name, loop, held)
        self._show(volume_id, self._disks[volume_id])

    def unplug(self, volume_id: str) -> None:
        """Take the disk away, unless it is mounted or held exclusively."""
        if disk := self._disks.get(volume_id):
            if _is_held(disk.loop):
                raise StillInUse(volume_id)
            self._remove(volume_id)

    def resized(self, volume_id: str) -> None:
        """Show the new size."""
        if disk := self._disks.get(volume_id):
            _ran("losetup", "--set-capacity", str(disk.loop))
            (self._entry(disk) / "size").write_text(f"{_size(disk.loop) // SECTOR_BYTES}\n")

    # --- its end ---------------------------------------------------------------------------------------------

    def halt(self) -> None:
        """Unmount everything below the root, as a machine does that is switched off; what is busy goes later."""
        for point in reversed(mounts_below(self.root)):
            with contextlib.suppress(MachineError):  # it may have gone together with another
                _ran("umount", "--lazy", "--", str(point))

    def close(self) -> None:
        """Halt, and give every loop device back; one that a process still holds goes with the process."""
        self.halt()
        for volume_id in list(self._disks):
            self._remove(volume_id)

    # --- what the machine sees -------------------------------------------------------------------------------

    def _entry(self, disk: _Disk) -> Path:
        return self.root / "sys/block" / disk.name

    def _link(self, volume_id: str) -> Path:
        return self.root / f"dev/disk/by-id/nvme-{MODEL.replace(' ', '_')}_{serial(volume_id)}"

    def _show(self, volume_id: str, disk: _Disk) -> None:
        number = disk.loop.stat().st_rdev
        node, link, entry = self.root / "dev" / disk.name, self._link(volume_id), self._entry(disk)
        for directory in (link.parent, entry / "device"):
            directory.mkdir(parents=True, exist_ok=True)
        os.mknod(node, stat.S_IFBLK | 0o600, number)
        (entry / "dev").write_text(f"{os.major(number)}:{os.minor(number)}\n")
        (entry / "size").write_text(f"{_size(disk.loop) // SECTOR_BYTES}\n")
        (entry / "device/model").write_text(f"{MODEL:<{MODEL_LENGTH}}\n")
        link.symlink_to(f"../../{disk.name}")
        # Last, and at once: whoever finds the disk by it finds the rest.
        draft = entry / "serial"
        draft.write_text(f"{serial(volume_id):<{SERIAL_LENGTH}}\n")
        draft.rename(entry / "device/serial")

    def _remove(self, volume_id: str) -> None:
        disk = self._disks.pop(volume_id)
        self._link(volume_id).unlink(missing_ok=True)
        shutil.rmtree(self._entry(disk), ignore_errors=True)
        (self.root / "dev" / disk.name).unlink(missing_ok=True)
        os.close(disk.held)


def serial(volume_id: str) -> str:
    """The serial number of a volume's disk: its id without the hyphen (Amazon EBS User Guide)."""
    return volume_id.replace("-", "", 1)


def private_mounts() -> None:
    """Give the calling thread, and what it starts, a mount namespace of its own: no mount outlives them.

    Threads that run already stay where they are. Raises MachineError, for one when we are not root.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # Python 3.10 has no os.unshare; no Python has mount(2).
    if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
        raise MachineError(f"cannot make a mount namespace: {os.strerror(ctypes.get_errno())}")


def _is_held(device: Path) -> bool:
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    return False


def _size(device: Path) -> int:
    with device.open("rb") as file:
        return file.seek(0, os.SEEK_END)


def _ran(*argv: str) -> str:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PROGRAM_SECONDS, check=False
    )
    if done.returncode != 0:
        raise MachineError(f"{' '.join(argv)} failed: {done.stderr.strip()}")
    return done.stdout
