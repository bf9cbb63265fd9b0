"""Releases read from a real NFS server, and volumes that come to a machine and leave it while it is on."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from bootagent.ebs.owner import FOR
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from bootagent.sandbox.ebs_model import Volume
from tests.boot.image import Image
from tests.boot.nfs_server import ADDRESS, NfsServer
from tests.boot.scene import Scene, ask, deploy, port_of, wait_for_version
from tests.boot.test_boot import after_a_run, status, until
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


def test_role_whose_releases_are_on_an_nfs_server(
    scene: Scene, systemd_image: Image, nfs: NfsServer, tmp_path: Path
) -> None:
    worker = tmp_path / "apps/worker"
    release = deploy(worker, "one", "/apps/worker")
    scene.cloud.set_tag("Role", "farm")
    vm = scene.machine(systemd_image)
    vm.kernel_words = (f"testbed.nfs={nfs.port}",)
    with vm:
        # Mounted, read-only; the service's scripts are copied, and are its user's.
        first = wait_for_version(vm, "one", "builds")
        assert status(vm)["exit_code"] == 0
        mounted = vm.check("findmnt", "--noheadings", "--output", "ID,FSTYPE,OPTIONS", "/apps")
        kind, options = mounted.split()[1:]
        assert kind == "nfs4"
        assert {"ro", "vers=4.2", "hard"} <= set(options.split(","))
        assert "Read-only file system" in vm.run("touch", "/apps/worker/new").err
        inner = "/etc/sv/builds.server/service"
        assert vm.check("cat", f"{inner}/run") == (release / "config/service/server/run").read_text()
        assert vm.check("stat", "--format=%U %a", f"{inner}/run") == "nobody 755\n"
        assert vm.check("chpst", "-u", "nobody:nogroup", "sv", "status", inner).startswith("run: ")

        # A second run changes nothing; one after a deploy on the server restarts what runs from it.
        assert after_a_run(vm, "systemctl", "reload", "bootagent")["exit_code"] == 0
        assert ask(vm, "builds") == first
        assert vm.check("findmnt", "--noheadings", "--output", "ID,FSTYPE,OPTIONS", "/apps") == mounted
        deploy(worker, "two", "/apps/worker")
        assert after_a_run(vm, "systemctl", "reload", "bootagent")["exit_code"] == 0
        second = ask(vm, "builds")
        assert second.version == "two"

        # The server dies: the run ends and says so, and what runs goes on. It comes back: all is well by itself.
        nfs.stop()
        began = time.monotonic()
        assert after_a_run(vm, "systemctl", "reload", "bootagent")["exit_code"] == 3
        assert time.monotonic() - began < 120
        assert "10.0.2.2:/apps" in vm.run("bootagent", "status").out
        assert ask(vm, "builds") == second
        nfs.start()
        until(lambda: status(vm)["exit_code"] == 0, "the server is back")
        assert ask(vm, "builds") == second

        # The power fails for both, and the server is back later.
        nfs.stop()
        vm.plug()
        vm.start()
        assert status(vm)["exit_code"] == 1
        assert "10.0.2.2:/apps could not be mounted at /apps" in vm.run("bootagent", "status").out
        assert vm.check("systemctl", "is-active", "multi-user.target").strip() == "active"
        nfs.start()
        wait_for_version(vm, "two", "builds")
        assert status(vm)["exit_code"] == 0


def test_role_with_volumes_and_the_instance_that_replaces_it(
    scene: Scene, systemd_image: Image, tmp_path: Path
) -> None:
    """A release on a snapshot, data that outlives the instance, scratch space that does not."""
    deploy(tmp_path / "shop", "one", "/srv/shop")
    scene.cloud.set_tag("Role", "shop")
    vm = scene.machine(systemd_image)
    with Disks(scene.cloud, vm.slots, tmp_path / "volumes") as disks:
        disks.snapshot_of(tmp_path / "shop", tags={"App": "shop"})
        # Of the two data volumes the second one asked for is there first.
        disks.faults.reversed_arrivals = 1
        with vm:
            first = wait_for_version(vm, "one", "shop")
            assert status(vm)["exit_code"] == 0
            volumes = _by_purpose(disks)
            assert {name: _mounted(vm, point) for name, point in _POINTS.items()} == {
                name: _serial(volumes[name].id) for name in _POINTS
            }
            assert _mounted(vm, "/srv/shop") == _serial(volumes["shop"].id)
            assert "noatime" in vm.check("findmnt", "--noheadings", "--output", "OPTIONS", "/cp")
            ends = {
                name: volume.attachment and volume.attachment.delete_on_termination for name, volume in volumes.items()
            }
            assert ends == {"shop": True, "orders": False, "scratch": True}
            vm.check("touch", "/orders/precious", "/scratch/rubbish", "/cp/written")
            vm.check("test", "-e", "/srv/shop/written")

            # Nothing new: nothing changes. Neither does a reboot make anything anew.
            fstab = vm.check("cat", "/etc/fstab")
            assert after_a_run(vm, "systemctl", "reload", "bootagent")["exit_code"] == 0
            assert ask(vm, "shop") == first
            assert vm.check("cat", "/etc/fstab") == fstab
            vm.reboot()
            wait_for_version(vm, "one", "shop")
            assert status(vm)["exit_code"] == 0
            assert vm.check("cat", "/etc/fstab") == fstab
            vm.check("ls", "/orders/precious", "/scratch/rubbish", "/srv/shop/written")
            assert disks.volumes.keys() == {volume.id for volume in volumes.values()}

            # A newer snapshot: its volume takes the place of the old one, which is not left over.
            deploy(tmp_path / "shop", "two", "/srv/shop")
            disks.snapshot_of(tmp_path / "shop", tags={"App": "shop"})
            assert after_a_run(vm, "systemctl", "reload", "bootagent")["exit_code"] == 0
            assert ask(vm, "shop").version == "two"
            until(lambda: volumes["shop"].id not in disks.volumes, "the old release's volume is gone")
            assert len(disks.volumes) == 3
            vm.power_off()
        disks.terminate_instance()
        until(lambda: list(disks.volumes) == [volumes["orders"].id], "only what is to outlive the instance is left")

        with Cloud(tags={"Role": "shop", "Environment": "staging"}, beside=scene.cloud) as beside:
            other = scene.machine(systemd_image, "other", metadata=port_of(beside.metadata.endpoint))
            disks.add_machine(beside, other.slots)
            with other:
                wait_for_version(other, "two", "shop")
                assert status(other)["exit_code"] == 0
                assert other.check("ls", "/orders") == "precious\n"
                assert other.check("ls", "/scratch") == "lost+found\n"
                assert _mounted(other, "/orders") == _serial(volumes["orders"].id)
                assert len(disks.volumes) == 3


#: Where the role's volumes are mounted.
_POINTS = {"shop": "/cp", "orders": "/orders", "scratch": "/scratch"}


def _by_purpose(disks: Disks) -> dict[str, Volume]:
    """The volumes by what they are for: shop for "app shop", orders for "volume shop/orders"."""
    return {re.split("[ /]", volume.tags[FOR])[-1]: volume for volume in disks.volumes.values()}


def _mounted(vm: Vm, point: str) -> str:
    """The serial number of the disk that is mounted there."""
    device = vm.check("findmnt", "--noheadings", "--first-only", "--nofsroot", "--output", "SOURCE", point).strip()
    return vm.check("lsblk", "--nodeps", "--noheadings", "--output", "SERIAL", device).strip()


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
