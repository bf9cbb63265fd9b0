"""Devices told apart by their serial, disks of every kind looked at, filesystems made and grown: on loop devices."""

from __future__ import annotations

import os
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bootagent import disks, mounts
from bootagent.disks import filesystems
from bootagent.disks.filesystems import Content
from bootagent.errors import BootagentError, MachineError
from bootagent.machine import Machine, Note, Transfer
from bootagent.sandbox.loop_host import LoopHost
from tests.host.disks import VOLUME, disk, plug

pytest_plugins = ("tests.host.disks",)

ONE, OTHER = VOLUME, "vol-0123456789abcdef1"
#: mkfs.xfs makes nothing smaller.
XFS_MIB = 300


@pytest.fixture
def host(private_mounts: None, machine_root: Path) -> Iterator[LoopHost]:
    """The machine that disks are plugged into."""
    host = LoopHost(machine_root)
    yield host
    host.close()


@pytest.fixture
def machine(host: LoopHost) -> Machine:
    return Machine(host.root)


# --- which device --------------------------------------------------------------------------------------------


def test_a_volume_is_found_by_its_serial(host: LoopHost, machine: Machine, tmp_path: Path) -> None:
    assert disks.find(machine, ONE) is None
    first, second = plug(host, disk(tmp_path, 1, "a"), OTHER), plug(host, disk(tmp_path, 2, "b"), ONE)
    assert disks.find(machine, ONE) == second
    assert disks.find(machine, OTHER) == first
    assert disks.find(machine, "vol-0123456789abcdef") is None
    assert disks.volume_of(machine, second) == ONE
    assert disks.of_number(machine, disks.number(second)) == second
    assert disks.size_bytes(machine, second) == 2 * filesystems.MIB
    assert disks.by_id(machine, second) == "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0"


def test_what_is_not_the_volume_is_refused(host: LoopHost, machine: Machine, tmp_path: Path) -> None:
    device = plug(host, disk(tmp_path, 1, "a"))
    disks.verify(machine, device, ONE)
    with pytest.raises(MachineError, match="its serial number is 'vol0123456789abcdef0'"):
        disks.verify(machine, device, OTHER)
    serial = host.root / "sys/block/nvme1n1/device/serial"
    serial.unlink()
    with pytest.raises(MachineError, match="cannot read the serial number"):
        disks.verify(machine, device, ONE)
    serial.write_text("vol0123456789abcdef0")
    (host.root / "sys/block/nvme1n1/dev").write_text("259:77\n")
    with pytest.raises(MachineError, match="is not the device that /sys/block/nvme1n1 tells of"):
        disks.verify(machine, device, ONE)


def test_a_disk_without_a_serial_is_nobodys(host: LoopHost, machine: Machine, tmp_path: Path) -> None:
    plugged = plug(host, disk(tmp_path, 1, "a"))
    disks.refuse_xen(machine)
    (host.root / "sys/block/nvme1n1/device/serial").unlink()
    (host.root / "sys/block/nvme1n1").rename(host.root / "sys/block/xvdf")
    plugged.rename(host.root / "dev/xvdf")
    assert disks.find(machine, ONE) is None
    with pytest.raises(MachineError, match="cannot read the serial number"):
        disks.verify(machine, host.root / "dev/xvdf", ONE)
    with pytest.raises(BootagentError, match="xvdf is a disk of a Xen instance") as caught:
        disks.refuse_xen(machine)
    assert "Nitro" in str(caught.value.remedy)


def test_a_late_device_is_waited_for(host: LoopHost, tmp_path: Path) -> None:
    told: list[Transfer | Note] = []
    file = disk(tmp_path, 1)
    later = threading.Timer(2.0, plug, (host, file))
    later.start()
    device = disks.wait(Machine(host.root, told.append), ONE, 60)
    later.join()
    assert device == host.root / "dev/nvme1n1"
    assert told == [Note("waiting for the device", {"volume": ONE, "within": 60})]


def test_a_device_that_never_comes_is_told(machine: Machine) -> None:
    with pytest.raises(MachineError, match=f"serial number of {ONE} appeared within 0.5 s"):
        disks.wait(machine, ONE, 0.5)


# --- what is on it -------------------------------------------------------------------------------------------


def test_zeros_are_blank(host: LoopHost, machine: Machine, tmp_path: Path) -> None:
    device = plug(host, disk(tmp_path, 200, "a"))
    assert filesystems.content(machine, device) == Content(None, None)
    assert filesystems.is_blank(machine, device)


def lvm(file: Path) -> None:
    """The label of a physical volume, as pvcreate writes it in the second sector."""
    rest = struct.pack("<I8s32s", 32, b"LVM2 001", b"0" * 32).ljust(512 - 20, b"\0")
    crc = zlib.crc32(rest, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    put(file, 512, struct.pack("<8sQI", b"LABELONE", 1, crc) + rest)


def put(file: Path, offset: int, content: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(content)


def made(*argv: str) -> Callable[[Path], None]:
    return lambda file: subprocess.run([*argv, file], check=True, capture_output=True).check_returncode()


#: One partition, from sector 2048 on.
PARTITIONS = struct.pack("<B3sB3sII", 0, b"\0\0\0", 0x83, b"\0\0\0", 2048, 4096).ljust(64, b"\0") + b"\x55\xaa"

KINDS: dict[str, tuple[Callable[[Path], None], Content]] = {
    "ext4": (made("mkfs.ext4", "-q"), Content("ext4", None)),
    "xfs": (made("mkfs.xfs", "-q"), Content("xfs", None)),
    "swap": (made("mkswap"), Content(None, "a signature (swap)")),
    "LUKS": (
        lambda file: put(file, 0, b"LUKS\xba\xbe\0\1".ljust(592, b"\0")),
        Content(None, "an encrypted volume (crypto_LUKS)"),
    ),
    "LVM": (lvm, Content(None, "a part of a RAID or volume group (LVM2_member)")),
    "partitions": (lambda file: put(file, 446, PARTITIONS), Content(None, "a partition table (dos)")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_used_disk_is_named_and_never_formatted(kind: str, host: LoopHost, machine: Machine, tmp_path: Path) -> None:
    use, seen = KINDS[kind]
    file = disk(tmp_path, XFS_MIB if kind == "xfs" else 32)
    use(file)
    before = checksum(file)
    device = plug(host, file)
    assert filesystems.content(machine, device) == seen
    assert not filesystems.is_blank(machine, device)
    for filesystem in ("xfs", "ext4"):
        with pytest.raises(BootagentError, match=rf"{ONE} .* is not blank, .*: it holds"):
            filesystems.make_filesystem(machine, device, ONE, filesystem)
    assert checksum(file) == before


@pytest.mark.parametrize(
    "offset",
    [
        0,
        700,
        XFS_MIB * filesystems.MIB // 2,
        XFS_MIB * filesystems.MIB // 4,
        128 * filesystems.MIB + 1024,
        64 * filesystems.MIB,
        XFS_MIB * filesystems.MIB - 1,
    ],
)
def test_one_byte_makes_it_used(offset: int, host: LoopHost, machine: Machine, tmp_path: Path) -> None:
    file = disk(tmp_path, XFS_MIB)
    put(file, offset, b"x")
    device = plug(host, file)
    with pytest.raises(BootagentError, match=r"is not blank, .*: there is data"):
        filesystems.make_filesystem(machine, device, ONE, "xfs")
    with file.open("rb") as opened:
        opened.seek(offset)
        assert opened.read(1) == b"x"


@pytest.mark.parametrize("left_mib", [0, 100])
def test_what_cannot_be_read_is_not_blank(left_mib: int, host: LoopHost, machine: Machine, tmp_path: Path) -> None:
    file = disk(tmp_path, XFS_MIB)
    device = plug(host, file)
    os.truncate(file, left_mib * filesystems.MIB)  # beyond its end, the loop device has only errors
    with pytest.raises(MachineError, match="cannot read"):
        filesystems.is_blank(machine, device)
    with pytest.raises(MachineError, match="cannot read"):
        filesystems.make_filesystem(machine, device, ONE, "xfs")


# --- making and growing filesystems --------------------------------------------------------------------------


@pytest.mark.parametrize("filesystem", ["xfs", "ext4"])
def test_a_filesystem_is_made_and_grows(filesystem: str, host: LoopHost, machine: Machine, tmp_path: Path) -> None:
    file = disk(tmp_path, XFS_MIB)
    device = plug(host, file)
    filesystems.make_filesystem(machine, device, ONE, filesystem)
    assert filesystems.content(machine, device) == Content(filesystem, None)
    mounts.make_mountpoint(machine, "/cp")
    mounts.mount(machine, device, "/cp", filesystem, (), 30)
    before = os.statvfs(host.root / "cp")
    filesystems.grow(machine, device, "/cp", filesystem)
    assert os.statvfs(host.root / "cp").f_blocks == before.f_blocks
    if filesystem == "ext4" and not may_resize_ext4():
        pytest.skip("root has no CAP_SYS_RESOURCE here")
    os.truncate(file, 2 * XFS_MIB * filesystems.MIB)
    host.resized(ONE)
    filesystems.grow(machine, device, "/cp", filesystem)
    assert os.statvfs(host.root / "cp").f_blocks > 1.8 * before.f_blocks


def test_no_other_volume_is_formatted(host: LoopHost, machine: Machine, tmp_path: Path) -> None:
    file = disk(tmp_path, XFS_MIB)
    device = plug(host, file)
    with pytest.raises(MachineError, match=f"is not {OTHER}"):
        filesystems.make_filesystem(machine, device, OTHER, "xfs")
    assert filesystems.is_blank(machine, device)


def test_a_device_is_held_until_its_last_user_is_gone(host: LoopHost, machine: Machine, tmp_path: Path) -> None:
    device = plug(host, disk(tmp_path, 20, "a"))
    assert disks.is_free(device)
    filesystems.make_filesystem(machine, device, ONE, "ext4")
    mounts.make_mountpoint(machine, "/cp")
    mounts.mount(machine, device, "/cp", "ext4", (), 30)
    with (host.root / "cp/held").open("w"):
        mounts.unmount(machine, "/cp", lazy=True)
        assert mounts.at(machine, "/cp") is None
        assert not disks.is_free(device)
        with pytest.raises(MachineError, match="is in use"):
            disks.wait_until_free(machine, device, 0.5)
    disks.wait_until_free(machine, device, 30)


def test_a_foreign_filesystem_is_not_grown(host: LoopHost, machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(BootagentError, match="cannot grow btrfs at /cp"):
        filesystems.grow(machine, host.root / "dev/nvme1n1", "/cp", "btrfs")


def checksum(file: Path) -> str:
    return subprocess.run(["sha256sum", file], check=True, capture_output=True, text=True).stdout


def may_resize_ext4() -> bool:
    """Whether we have CAP_SYS_RESOURCE, bit 24 of capabilities(7), which ext4 asks of who grows it."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> 24 & 1)
