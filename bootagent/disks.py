"""Block devices: which one is a volume, what is on it, and making and growing filesystems.

The NVMe serial number of an EBS volume is the volume's id without its hyphen (Amazon EBS User Guide, "Map Amazon EBS
volumes to NVMe device names"). Names like /dev/nvme1n1 come in the order of arrival and say nothing.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bootagent.errors import BootagentError, CommandError, MachineError, plain
from bootagent.machine import Machine, Note

SECTOR_BYTES = 512
MIB = 1024 * 1024
#: How long a look at a device may take. A volume made from a snapshot loads what is read of it from S3.
LOOK_SECONDS = 120.0
#: How long udev may take to name a device that the kernel has.
UDEV_SECONDS = 10.0
#: How long making a filesystem may take; on a volume of 16 TiB it takes seconds.
MAKE_SECONDS = 600.0
#: Volumes are looked at in this many places, evenly apart, besides those where superblocks have copies.
SAMPLES = 16

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 1.0
#: Of blkid -p: it found nothing; it found several things that exclude each other.
_BLKID_NOTHING, _BLKID_AMBIVALENT = 2, 8
#: Without -f: mkfs refuses what it finds in use.
_MAKERS = {"xfs": ("mkfs.xfs", "-q"), "ext4": ("mkfs.ext4", "-q")}


@dataclass(frozen=True)
class Content:
    """What blkid(8) sees on a device: a filesystem by its name, or something else in words; or neither."""

    filesystem: str | None
    other: str | None

    def __str__(self) -> str:
        return self.other or (f"a filesystem ({self.filesystem})" if self.filesystem else "nothing that is known")


# --- which device --------------------------------------------------------------------------------------------


def find(machine: Machine, volume_id: str, asked: str | None = None) -> Path | None:
    """The real path of the block device that is the volume; None while it is not there.

    On Xen instances devices have no serial. There the name EC2 attached the volume under, ``asked`` (/dev/sdf),
    is the name the kernel gives it, but for its beginning (/dev/xvdf).
    """
    for entry in _entries(machine):
        node = machine.real("/dev") / entry.name
        if _serial(entry) == _serial_of(volume_id) and node.exists():
            return node
    if asked:
        node = machine.real("/dev") / _xen_name(asked)
        if (machine.real("/sys/block") / node.name).exists() and node.exists():
            return node
    return None


def verify(machine: Machine, device: Path, volume_id: str, asked: str | None = None) -> None:
    """Read the serial again: to be called right before what cannot be undone.

    Raises MachineError when it is another volume's, or cannot be read, or when the node is not that device's.
    """
    entry = machine.real("/sys/block") / device.name
    serial = _serial(entry)
    if serial is None and not (asked and device.name == _xen_name(asked)):
        raise MachineError(f"cannot read the serial number of {device}, so it is not taken for {volume_id}")
    if serial is not None and serial != _serial_of(volume_id):
        raise MachineError(f"{device} is not {volume_id}: its serial number is {serial!r}")
    if _text(entry / "dev") != number(device):
        raise MachineError(f"{device} is not the device that /sys/block/{device.name} tells of")


def wait(machine: Machine, volume_id: str, within: float, asked: str | None = None) -> Path:
    """The device of a volume, waited for: EC2 says attached before the kernel has seen it.

    Raises MachineError after ``within`` seconds.
    """
    start = time.monotonic()
    told = False
    while (device := find(machine, volume_id, asked)) is None:
        waited = time.monotonic() - start
        if waited > within:
            raise MachineError(
                f"no block device with the serial number of {volume_id} appeared within {within:g} s",
                remedy="see that EC2 shows the volume attached to this instance",
            )
        if waited > _PATIENCE_SECONDS and not told:
            machine.tell(Note("waiting for the device", {"volume": volume_id, "within": within}))
            told = True
        time.sleep(_POLL_SECONDS)
    return device


def by_id(machine: Machine, device: Path) -> str | None:
    """The name for fstab, the logical path of udev's link in /dev/disk/by-id; None when there is none."""
    directory = machine.real("/dev/disk/by-id")
    if not directory.is_dir():
        return None
    links = [link.name for link in directory.iterdir() if link.is_symlink() and link.readlink().name == device.name]
    serial = _serial(machine.real("/sys/block") / device.name)
    # Of several, the one that ends in the serial: others have a namespace number or a checksum at the end.
    links.sort(key=lambda name: (not (serial and name.endswith(serial)), len(name), name))
    return f"/dev/disk/by-id/{links[0]}" if links else None


def stable_name(machine: Machine, device: Path) -> str:
    """What names the device after the next boot too: its link by id, or its own name on Xen, where EC2 chose it.

    Raises MachineError when udev has not made the link.
    """
    deadline = time.monotonic() + UDEV_SECONDS
    while (link := by_id(machine, device)) is None:
        if device.name.startswith("xvd"):
            return f"/dev/{device.name}"
        if time.monotonic() > deadline:
            raise MachineError(f"nothing in /dev/disk/by-id names {device}", remedy="see that udev runs")
        time.sleep(_POLL_SECONDS)
    return link


def number(device: Path) -> str:
    """The device's "MAJOR:MINOR", as /proc/self/mountinfo has it. Raises MachineError when it is not there."""
    try:
        found = device.stat().st_rdev
    except OSError as error:
        raise MachineError(f"cannot look at {device}: {error.strerror}") from None
    return f"{os.major(found)}:{os.minor(found)}"


def of_number(machine: Machine, wanted: str) -> Path | None:
    """The whole disk that has this "MAJOR:MINOR"; None when it is gone, or is no whole disk."""
    for entry in _entries(machine):
        if _text(entry / "dev") == wanted:
            return machine.real("/dev") / entry.name
    return None


def volume_of(machine: Machine, device: Path) -> str | None:
    """The id of the volume that a device is, by its serial; None when that does not tell."""
    serial = _serial(machine.real("/sys/block") / device.name)
    return f"vol-{serial[3:]}" if serial and serial.startswith("vol") else None


def size_bytes(machine: Machine, device: Path) -> int:
    """The size the kernel sees. Raises MachineError when it cannot be read."""
    text = _text(machine.real("/sys/block") / device.name / "size")
    if text is None or not text.isdigit():
        raise MachineError(f"cannot read the size of {device}")
    return int(text) * SECTOR_BYTES


def is_free(device: Path) -> bool:
    """Whether nothing holds the device: no mount, not even one that was lazily taken away, and no mkfs.

    Raises MachineError when it cannot be opened.
    """
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise MachineError(f"cannot open {device}: {error.strerror}") from None
    return True


# --- what is on it -------------------------------------------------------------------------------------------


def content(machine: Machine, device: Path) -> Content:
    """What is on a device, which is seen to be readable first: blkid takes what it cannot read for nothing.

    Raises MachineError when it cannot be read.
    """
    _is_zero(machine, device, 0, min(MIB, size_bytes(machine, device)))
    found = machine.run(["blkid", "-p", "-o", "export", "--", device], timeout=LOOK_SECONDS, check=False)
    if found.returncode == _BLKID_NOTHING and not found.stdout.strip():
        return Content(None, None)
    if found.returncode == _BLKID_AMBIVALENT:
        return Content(None, "several kinds of content at once")
    if found.returncode != 0:
        raise MachineError(f"cannot tell what is on {device}: blkid failed with exit code {found.returncode}")
    facts = dict(line.split("=", 1) for line in found.stdout.splitlines() if "=" in line)
    kind, usage = facts.get("TYPE"), facts.get("USAGE")
    if "PTTYPE" in facts:
        return Content(None, f"a partition table ({facts['PTTYPE']})")
    if usage == "filesystem" and kind:
        return Content(kind, None)
    named = {"crypto": "an encrypted volume", "raid": "a part of a RAID or volume group"}.get(
        usage or "", "a signature"
    )
    return Content(None, f"{named} ({kind or 'unknown'})")


def why_not_blank(machine: Machine, device: Path) -> str | None:
    """What speaks against the device being blank, as a clause; None when it is proven to be.

    Proof is that blkid(8) and wipefs(8) find nothing, and that both ends and many places between are read and are
    zeros. What cannot be read proves nothing: raises MachineError.
    """
    found = content(machine, device)
    if found != Content(None, None):
        return f"it holds {found}"
    try:
        traces = machine.run(["wipefs", "--noheadings", "--", device], timeout=LOOK_SECONDS).stdout.strip()
    except CommandError as error:
        raise MachineError(f"cannot tell whether {device} is blank: {error}") from error
    if traces:
        return f"it bears traces: {traces.splitlines()[0].strip()}"
    size = size_bytes(machine, device)
    for offset in places(size):
        if not _is_zero(machine, device, offset, min(MIB, size - offset)):
            return f"there is data {offset // MIB} MiB from its start, or less than a MiB behind that"
    return None


def is_blank(machine: Machine, device: Path) -> bool:
    """Whether the device is proven to have never been written: see :func:`why_not_blank`. Raises MachineError."""
    return why_not_blank(machine, device) is None


def places(size: int) -> list[int]:
    """Where a device of so many bytes is looked at, as offsets of a MiB each: both ends, and between.

    xfs repeats its headers at about each quarter. ext4 has a copy of its superblock at 128 MiB, btrfs at 64 MiB.
    """
    even = {size * part // SAMPLES for part in range(SAMPLES)}
    wanted = even | {64 * MIB, 128 * MIB}
    aligned = {offset // 4096 * 4096 for offset in wanted if offset + MIB <= size}
    return sorted({0, max(0, size - MIB), *aligned})


# --- making and growing filesystems --------------------------------------------------------------------------


def make_filesystem(
    machine: Machine, device: Path, volume_id: str, filesystem: str, *, asked: str | None = None
) -> None:
    """Make a filesystem, xfs or ext4, on the volume's device, which must be blank; that is proven here.

    Raises BootagentError when it is not blank, MachineError when it is not the volume or mkfs fails.
    """
    with _held(device):
        wait_until_free(machine, device, MAKE_SECONDS)
        if reason := why_not_blank(machine, device):
            raise BootagentError(
                f"{volume_id} ({device}) is not blank, so no filesystem is made on it: {reason}",
                remedy="make one by hand if nothing on it is needed, or let a new volume be made",
            )
        verify(machine, device, volume_id, asked)
        # Not killed with us: a filesystem that is half made is not blank and cannot be mounted, ever.
        process = machine.start(
            [*_MAKERS[filesystem], "--", device], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, own_group=True
        )
        try:
            code = process.wait(MAKE_SECONDS)
        except subprocess.TimeoutExpired:
            raise MachineError(f"{_MAKERS[filesystem][0]} on {device} still works after {MAKE_SECONDS:g} s") from None
    if code != 0:
        raise MachineError(f"{_MAKERS[filesystem][0]} failed on {device} ({volume_id}) with exit code {code}")


def wait_until_free(machine: Machine, device: Path, within: float) -> None:
    """Wait until nothing holds the device, such as a mkfs of a run that was killed. Raises MachineError."""
    deadline = time.monotonic() + within
    told = False
    while not is_free(device):
        if time.monotonic() > deadline:
            raise MachineError(f"{device} is in use", remedy="unmount it, or see who holds it: lsblk")
        if not told:
            machine.tell(Note("waiting for the device to be free", {"device": str(device), "within": within}))
            told = True
        time.sleep(_POLL_SECONDS)


def grow(machine: Machine, device: Path, mountpoint: str, filesystem: str, within: float = MAKE_SECONDS) -> None:
    """Let a mounted filesystem fill its device; one that does already is fine. ``mountpoint`` is logical.

    Raises MachineError when it cannot be, BootagentError for a filesystem other than xfs and ext4.
    """
    if filesystem == "xfs":
        argv: list[str | Path] = ["xfs_growfs", machine.real(mountpoint)]
    elif filesystem in ("ext4", "ext3", "ext2"):
        argv = ["resize2fs", device]
    else:
        raise BootagentError(f"cannot grow {filesystem} at {mountpoint}", remedy="grow it by hand")
    try:
        machine.run(argv, timeout=within)
    except CommandError as error:
        lines = plain(error.tail).strip().splitlines() or [error.sentence]
        complaints = [line for line in lines if line.startswith(f"{argv[0]}: ")] or lines
        sentence = f"cannot grow the filesystem at {mountpoint}: {complaints[-1]}"
        raise MachineError(sentence, remedy=error.remedy) from error


# --- inside --------------------------------------------------------------------------------------------------


@contextmanager
def _held(device: Path) -> Iterator[None]:
    """Keep the device open: its name cannot pass to another one meanwhile."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise MachineError(f"cannot open {device}: {error.strerror}") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _is_zero(machine: Machine, device: Path, offset: int, length: int) -> bool:
    """Whether a part of the device is zeros; read by cmp(1), which a dead disk may hang and we may not."""
    argv: list[str | Path] = ["cmp", "--silent", f"--ignore-initial={offset}:0", f"--bytes={length}", "--", device]
    done = machine.run([*argv, "/dev/zero"], timeout=LOOK_SECONDS, check=False)
    if done.returncode not in (0, 1):
        raise MachineError(
            f"cannot read {device} at byte {offset}", remedy="see the kernel's log for the disk's errors"
        )
    return done.returncode == 0


def _entries(machine: Machine) -> list[Path]:
    directory = machine.real("/sys/block")
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _serial(entry: Path) -> str | None:
    """The serial number below a directory of /sys/block, which NVMe pads with blanks; None when it has none."""
    return _text(entry / "device/serial") or None


def _serial_of(volume_id: str) -> str:
    return volume_id.replace("-", "", 1)


def _xen_name(asked: str) -> str:
    """What a Xen guest calls a device attached as /dev/sdf: xvdf."""
    name = asked.removeprefix("/dev/")
    return f"xvd{name[2:]}" if name.startswith("sd") else name


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
