"""What is on a disk, the proof that it is nothing, and filesystems made and grown."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bootagent import disks
from bootagent.errors import BootagentError, CommandError, MachineError, plain
from bootagent.machine import Machine

MIB = 1024 * 1024
#: How long a look at a device may take. A volume made from a snapshot loads what is read of it from S3.
LOOK_SECONDS = 120.0
#: How long making a filesystem may take; on a volume of 16 TiB it takes seconds.
MAKE_SECONDS = 600.0
#: Volumes are looked at in this many places, evenly apart, besides those where superblocks have copies.
SAMPLES = 16

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


# --- what is on it -------------------------------------------------------------------------------------------


def content(machine: Machine, device: Path) -> Content:
    """What is on a device, which is seen to be readable first: blkid takes what it cannot read for nothing.

    Raises MachineError when it cannot be read.
    """
    _is_zero(machine, device, 0, min(MIB, disks.size_bytes(machine, device)))
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
    size = disks.size_bytes(machine, device)
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


def make_filesystem(machine: Machine, device: Path, volume_id: str, filesystem: str) -> None:
    """Make a filesystem, xfs or ext4, on the volume's device, which must be blank; that is proven here.

    Raises BootagentError when it is not blank, MachineError when it is not the volume or mkfs fails.
    """
    with _held(device):
        disks.wait_until_free(machine, device, MAKE_SECONDS)
        if reason := why_not_blank(machine, device):
            raise BootagentError(
                f"{volume_id} ({device}) is not blank, so no filesystem is made on it: {reason}",
                remedy="make one by hand if nothing on it is needed, or let a new volume be made",
            )
        disks.verify(machine, device, volume_id)
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
