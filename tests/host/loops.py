"""Disks for tests: loop devices that look like a Nitro instance's EBS volumes below a machine's root.

A test module gets the fixture ``loops`` by ``pytest_plugins = ("tests.host.loops",)``. It needs root.
"""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bootagent import mounts

CLONE_NEWNS = 0x00020000
MIB = 1024 * 1024


@dataclass
class Loops:
    """Plugs files in as disks. ``root`` is the machine's, where /sys/block and /dev tell of nothing else."""

    root: Path
    files: Path
    loops: dict[str, str] = field(default_factory=dict)

    def file(self, name: str, size_mib: int) -> Path:
        """A sparse file of zeros to be a disk."""
        path = self.files / name
        path.touch()
        os.truncate(path, size_mib * MIB)
        return path

    def plug(self, volume_id: str, file: Path) -> Path:
        """Make a file appear as the volume; the real path of its node."""
        argv = ["losetup", "--find", "--show", str(file)]
        loop = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
        name = f"nvme{len(self.loops) + 1}n1"
        self.loops[volume_id] = loop
        serial = volume_id.replace("-", "")
        entry = self.root / "sys/block" / name
        (entry / "device").mkdir(parents=True)
        (entry / "device/serial").write_text(f"{serial:20}\n")
        found = Path(loop).stat().st_rdev
        (entry / "dev").write_text(f"{os.major(found)}:{os.minor(found)}\n")
        (entry / "size").write_text(f"{file.stat().st_size // 512}\n")
        by_id = self.root / "dev/disk/by-id"
        by_id.mkdir(parents=True, exist_ok=True)
        (by_id / f"nvme-Amazon_Elastic_Block_Store_{serial}").symlink_to(f"../../{name}")
        (by_id / f"nvme-Amazon_Elastic_Block_Store_{serial}_1").symlink_to(f"../../{name}")
        os.mknod(self.root / "dev" / name, 0o600 | stat.S_IFBLK, found)
        return self.root / "dev" / name

    def grow(self, volume_id: str, device: Path, file: Path, size_mib: int) -> None:
        """Make the disk larger while it is in use."""
        os.truncate(file, size_mib * MIB)
        subprocess.run(["losetup", "--set-capacity", self.loops[volume_id]], check=True)
        (self.root / "sys/block" / device.name / "size").write_text(f"{size_mib * MIB // 512}\n")

    def close(self) -> None:
        """Unmount whatever is mounted below the root, and free the loop devices."""
        for mount in reversed(mounts.table()):
            if mount.point.startswith(f"{self.root}/"):
                subprocess.run(["umount", "--lazy", mount.point], check=True)
        for loop in self.loops.values():
            subprocess.run(["losetup", "--detach", loop], check=True)


@pytest.fixture(scope="session")
def private_mounts() -> None:
    """Mounts of this process and its children are no one else's from here on."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        pytest.skip("this machine allows no mount namespace")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


@pytest.fixture
def loops(private_mounts: None, machine_root: Path, tmp_path: Path) -> Iterator[Loops]:
    """Disks for the machine at ``machine_root``."""
    bench = Loops(machine_root, tmp_path)
    try:
        yield bench
    finally:
        bench.close()
