"""Machines that boot get disks while they run, and a real NFS server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.boot.image import Image
from tests.boot.nfs_server import ADDRESS, NfsServer
from tests.boot.scene import Scene
from tests.boot.vm import Vm

pytestmark = pytest.mark.timeout(1800)

FIRST, SECOND = "vol-0aaaaaaaaaaaaaaaa", "vol-0bbbbbbbbbbbbbbbb"
ROOT = "vol0123456789abcdef0"


def test_disks_and_nfs_of_the_machine_itself(
    scene: Scene, systemd_image: Image, nfs: NfsServer, tmp_path: Path
) -> None:
    """What the tests of the agent build on, without the agent."""
    (tmp_path / "apps/VERSION").write_text("one\n")
    vm = scene.machine(systemd_image)
    vm.kernel_words = ("systemd.mask=bootagent.service",)
    with vm:
        # Mounted as one does by hand: nobody writes there, and a server that was away is found again.
        options = f"ro,vers=4.2,port={nfs.port},timeo=20"
        vm.check("mount", "-t", "nfs4", "-o", options, f"{ADDRESS}:/apps", "/mnt")
        assert vm.check("cat", "/mnt/VERSION") == "one\n"
        assert "Read-only file system" in vm.run("touch", "/mnt/new").err
        nfs.stop()
        (tmp_path / "apps/VERSION").write_text("two\n")
        assert vm.run("timeout", "--signal", "KILL", "3", "cat", "/mnt/VERSION").code != 0
        nfs.start()
        assert vm.check("cat", "/mnt/VERSION") == "two\n"
        vm.check("umount", "/mnt")

        # The second one first: names come in the order of arrival, and only serial numbers say which is which.
        vm.slots.plug(SECOND, _blank(tmp_path / "second"), "/dev/sdg")
        assert vm.check("sh", "-c", _wait_for(SECOND)).strip() == "/dev/nvme1n1"
        vm.slots.plug(FIRST, _blank(tmp_path / "first"), "/dev/sdf")
        assert vm.check("sh", "-c", _wait_for(FIRST)).strip() == "/dev/nvme2n1"
        assert _serials(vm) == {"nvme0n1": ROOT, "nvme1n1": _serial(SECOND), "nvme2n1": _serial(FIRST)}
        vm.check("mkfs.xfs", "-q", _by_id(FIRST))
        vm.check("mount", _by_id(FIRST), "/mnt")
        vm.check("touch", "/mnt/kept")
        vm.check("umount", "/mnt")
        vm.slots.unplug(SECOND)
        assert _serials(vm) == {"nvme0n1": ROOT, "nvme2n1": _serial(FIRST)}

        vm.reboot()
        device = vm.check("sh", "-c", _wait_for(FIRST)).strip()
        assert _serials(vm) == {"nvme0n1": ROOT, device.rpartition("/")[2]: _serial(FIRST)}
        vm.check("mount", _by_id(FIRST), "/mnt")
        assert vm.check("ls", "/mnt") == "kept\n"


def _blank(file: Path) -> Path:
    file.touch()
    os.truncate(file, 512 * 1024 * 1024)
    return file


def _serial(volume_id: str) -> str:
    return volume_id.replace("-", "", 1)


def _by_id(volume_id: str) -> str:
    """The name udev gives it; the model is qemu's, where EC2 says Amazon_Elastic_Block_Store."""
    return f"/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_{_serial(volume_id)}"


def _wait_for(volume_id: str) -> str:
    return f"until [ -e {_by_id(volume_id)} ]; do sleep 0.1; done; readlink -f {_by_id(volume_id)}"


def _serials(vm: Vm) -> dict[str, str]:
    """Each disk's serial number."""
    lines = vm.check("lsblk", "--nodeps", "--noheadings", "--output", "NAME,SERIAL").splitlines()
    return {name: serial for name, serial in map(str.split, lines) if name.startswith("nvme")}
