"""Block devices: which one is a volume, and who uses it.

The NVMe serial number of an EBS volume is the volume's id without its hyphen (Amazon EBS User Guide, "Map Amazon EBS
volumes to NVMe device names"). Names like /dev/nvme1n1 come in the order of arrival and say nothing.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from bootagent.errors import BootagentError, MachineError
from bootagent.machine import Machine, Note

SECTOR_BYTES = 512
#: How long udev may take to name a device that the kernel has.
UDEV_SECONDS = 10.0

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 1.0


# --- which device --------------------------------------------------------------------------------------------


def refuse_xen(machine: Machine) -> None:
    """Raises BootagentError on a machine whose disks have no serial number: no volume can be told there."""
    found = [entry.name for entry in _entries(machine) if entry.name.startswith("xvd")]
    if found:
        raise BootagentError(
            f"{found[0]} is a disk of a Xen instance, which has no serial number: no volume can be told from another",
            remedy="use an instance type with NVMe disks, that is a Nitro one",
        )


def find(machine: Machine, volume_id: str) -> Path | None:
    """The real path of the block device that is the volume; None while it is not there."""
    for entry in _entries(machine):
        node = machine.real("/dev") / entry.name
        if _serial(entry) == _serial_of(volume_id) and node.exists():
            return node
    return None


def verify(machine: Machine, device: Path, volume_id: str) -> None:
    """Read the serial again: to be called right before what cannot be undone.

    Raises MachineError when it is another volume's, or cannot be read, or when the node is not that device's.
    """
    entry = machine.real("/sys/block") / device.name
    serial = _serial(entry)
    if serial is None:
        raise MachineError(f"cannot read the serial number of {device}, so it is not taken for {volume_id}")
    if serial != _serial_of(volume_id):
        raise MachineError(f"{device} is not {volume_id}: its serial number is {serial!r}")
    if _text(entry / "dev") != number(device):
        raise MachineError(f"{device} is not the device that /sys/block/{device.name} tells of")


def wait(machine: Machine, volume_id: str, within: float) -> Path:
    """The device of a volume, waited for: EC2 says attached before the kernel has seen it.

    Raises MachineError after ``within`` seconds.
    """
    start = time.monotonic()
    told = False
    while (device := find(machine, volume_id)) is None:
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
    """What names the device after the next boot too: its link by id.

    Raises MachineError when udev has not made the link.
    """
    deadline = time.monotonic() + UDEV_SECONDS
    while (link := by_id(machine, device)) is None:
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


def is_number_known(machine: Machine, wanted: str) -> bool:
    """Whether the kernel has a block device of this "MAJOR:MINOR", be it a whole disk or a part of one: sysfs(5)."""
    return (machine.real("/sys/dev/block") / wanted).exists()


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


def wait_until_free(
    machine: Machine, device: Path, within: float, *, unless: Callable[[], bool] = lambda: False
) -> None:
    """Wait until nothing holds the device, such as a mkfs of a run that was killed, or ``unless`` is so.

    Raises MachineError.
    """
    deadline = time.monotonic() + within
    told = False
    while not is_free(device) and not unless():
        if time.monotonic() > deadline:
            raise MachineError(f"{device} is in use", remedy="unmount it, or see who holds it: lsblk")
        if not told:
            machine.tell(Note("waiting for the device to be free", {"device": str(device), "within": within}))
            told = True
        time.sleep(_POLL_SECONDS)


# --- inside --------------------------------------------------------------------------------------------------


def _entries(machine: Machine) -> list[Path]:
    directory = machine.real("/sys/block")
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _serial(entry: Path) -> str | None:
    """The serial number below a directory of /sys/block, which NVMe pads with blanks; None when it has none."""
    return _text(entry / "device/serial") or None


def _serial_of(volume_id: str) -> str:
    return volume_id.replace("-", "", 1)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
