"""Releases read from a real NFS server, and volumes that come to a machine and leave it while it is on."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from bootagent.daemon.lookout import LOOK_SECONDS
from bootagent.ebs.owner import FOR
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from bootagent.sandbox.ebs_model import Volume
from tests.boot.image import Image
from tests.boot.nfs_server import ADDRESS, NfsServer
from tests.boot.scene import Scene, ask, deploy, port_of, wait_for_version
from tests.boot.test_boot import until
from tests.boot.vm import Vm

pytestmark = pytest.mark.timeout(1800)

#: Where the volumes of the role are mounted, by what they are for.
POINTS = {"shop": "/cp", "orders": "/orders", "scratch": "/scratch"}
#: How a deploy makes another release of one that is there.
DEPLOY_TWO = """\
cd /srv/shop && cp -a "$(readlink current)" releases/20260101000001 && echo two >releases/20260101000001/VERSION &&
ln -s /srv/shop/releases/20260101000001 fresh && mv -T fresh current"""


def outcome(vm: Vm) -> str:
    """How the last run of this boot ended, in one line; "" before the first has. Quicker than ``status``."""
    return vm.run("cat", "/run/bootagent/summary").out


def test_role_whose_releases_are_on_an_nfs_server(
    scene: Scene, systemd_image: Image, nfs: NfsServer, tmp_path: Path
) -> None:
    worker = tmp_path / "apps/worker"
    release = deploy(worker, "one", "/apps/worker")
    scene.cloud.set_tag("Role", "farm")
    nfs.stop()
    vm = scene.machine(systemd_image)
    vm.kernel_words = (f"testbed.nfs={nfs.port}",)
    with vm:
        # The server is not there: a clear failure, soon, that holds up nothing. It comes, and all is well by itself.
        until(lambda: outcome(vm).startswith("failed"), "a failed run")
        assert f"{ADDRESS}:/apps could not be mounted at /apps within 10 s" in outcome(vm)
        assert vm.check("systemctl", "is-active", "multi-user.target").strip() == "active"
        nfs.start()
        first = wait_for_version(vm, "one", "builds")
        until(lambda: outcome(vm).startswith("done"), "it runs")

        # Mounted read-only; the service's scripts are copied, and are its user's.
        mounted = mount_of(vm, "/apps")
        kind, options = mounted.split()[1:]
        assert kind == "nfs4"
        assert {"ro", "vers=4.2", "hard"} <= set(options.split(","))
        assert "Read-only file system" in vm.run("touch", "/apps/worker/new").err
        inner = "/etc/sv/builds.server/service"
        assert vm.check("cat", f"{inner}/run") == (release / "config/service/server/run").read_text()
        assert vm.check("stat", "--format=%U %a", f"{inner}/run") == "nobody 755\n"
        assert vm.check("chpst", "-u", "nobody:nogroup", "sv", "status", inner).startswith("run: ")

        # The server dies: a run ends, and says what is wrong, and what serves goes on.
        nfs.stop()
        began = time.monotonic()
        ran = vm.run("bootagent", "reconfigure")
        assert ran.code == 3, ran.err
        assert time.monotonic() - began < 120
        assert f"{ADDRESS}:/apps is mounted at /apps, and the server is silent" in outcome(vm)
        assert ask(vm, "builds") == first

        # It is back with nothing new: nothing is mounted or started. A deploy there is picked up here.
        nfs.start()
        vm.check("bootagent", "reconfigure")
        assert ask(vm, "builds") == first
        assert mount_of(vm, "/apps") == mounted
        deploy(worker, "two", "/apps/worker")
        vm.check("bootagent", "reconfigure")
        assert ask(vm, "builds").version == "two"
        assert mount_of(vm, "/apps") == mounted


def test_role_with_volumes_and_the_instance_that_replaces_it(
    scene: Scene, systemd_image: Image, tmp_path: Path
) -> None:
    """A release on a snapshot, data that outlives the instance, scratch space that does not."""
    deploy(tmp_path / "shop", "one", "/srv/shop")
    scene.cloud.remove_tag("Role")
    vm = scene.machine(systemd_image)
    with Disks(scene.cloud, vm.slots, tmp_path / "volumes") as disks:
        disks.snapshot_of(tmp_path / "shop", tags={"App": "shop"})
        # Of the two data volumes, the one that was attached first arrives last.
        disks.faults.reversed_arrivals = 1
        with vm:
            until(lambda: vm.run("systemctl", "is-active", "bootagent").out == "active\n", "all is up")
            before = traces(vm)
            scene.cloud.set_tag("Role", "shop")
            wait_for_version(vm, "one", "shop")
            until(lambda: outcome(vm).startswith("done"), "it runs")
            volumes = by_purpose(disks)
            assert serials(vm) == {name: serial(volumes[name]) for name in POINTS}
            assert mounted_from(vm, "/srv/shop") == serial(volumes["shop"])
            assert "noatime" in mount_of(vm, "/cp")
            assert {name: deleted_at_the_end(volume) for name, volume in volumes.items()} == {
                "shop": True,
                "orders": False,
                "scratch": True,
            }
            vm.check("touch", "/orders/precious", "/scratch/rubbish", "/cp/written")
            fstab = vm.check("cat", "/etc/fstab")

            # Its unit is stopped: the machine is as before it had a role, and stays so until somebody asks.
            vm.check("systemctl", "stop", "bootagent-apps.service")
            time.sleep(2 * LOOK_SECONDS)
            assert traces(vm) == before
            assert outcome(vm).startswith("stopped:")
            assert vm.check("systemctl", "is-active", "bootagent-apps.service", "bootagent.service").split() == [
                "active",
                "active",
            ]
            vm.check("bootagent", "reconfigure")
            assert ask(vm, "shop").version == "one"
            assert serials(vm) == {name: serial(volumes[name]) for name in POINTS}

            # A reboot makes nothing anew.
            vm.reboot()
            one = wait_for_version(vm, "one", "shop")
            until(lambda: outcome(vm).startswith("done"), "it runs again")
            assert vm.check("cat", "/etc/fstab") == fstab
            assert serials(vm) == {name: serial(volumes[name]) for name in POINTS}
            vm.check("ls", "/orders/precious", "/scratch/rubbish", "/srv/shop/written")
            assert disks.volumes.keys() == {volume.id for volume in volumes.values()}

            # A deploy and a snapshot of it: its volume takes the place of the one before, which is not left over.
            vm.check("sh", "-c", DEPLOY_TWO)
            assert ask(vm, "shop") == one
            vm.check("bootagent", "snapshot", "/cp", "--tag", "App=shop")
            vm.check("bootagent", "reconfigure")
            assert ask(vm, "shop").version == "two"
            fresh = by_purpose(disks)
            assert fresh["shop"].id != volumes["shop"].id
            assert vm.slots.volumes == sorted(volume.id for volume in fresh.values())
            assert serials(vm) == {name: serial(fresh[name]) for name in POINTS}
            vm.power_off()
        disks.terminate_instance()
        until(lambda: list(disks.volumes) == [volumes["orders"].id], "only what outlives the instance is left")

        with Cloud(tags={"Role": "shop", "Environment": "staging"}, beside=scene.cloud) as beside:
            other = scene.machine(systemd_image, "other", metadata=port_of(beside.metadata.endpoint))
            disks.add_machine(beside, other.slots)
            with other:
                wait_for_version(other, "two", "shop")
                until(lambda: outcome(other).startswith("done"), "it runs on the other machine")
                assert other.check("ls", "/orders") == "precious\n"
                assert other.check("ls", "/scratch") == "lost+found\n"
                fresh = by_purpose(disks)
                assert fresh["orders"].id == volumes["orders"].id
                assert serials(other) == {name: serial(fresh[name]) for name in POINTS}


def traces(vm: Vm) -> dict[str, list[str]]:
    """What runs, what is mounted, what fstab says, and all there is where apps and their services are installed."""
    running = [line.split(maxsplit=2) for line in vm.check("ps", "-e", "-o", "ppid=,user=,comm=").splitlines()]
    # The kernel's own, and what comes and goes.
    kernel, passing = {"0", "2"}, {"(udev-worker)", "ps"}
    files = vm.check("find", "/etc", "/srv", "-xdev", "-printf", "%p %y %m %u:%g %l\n")
    return {
        # Each once: there are as many of the agent's own as it has to do.
        "processes": sorted(
            {f"{user} {what}" for parent, user, what in running if parent not in kernel and what not in passing}
        ),
        "mounts": sorted(vm.check("cat", "/proc/self/mounts").splitlines()),
        "fstab": vm.check("cat", "/etc/fstab").splitlines(),
        "files": sorted(files.splitlines()) + vm.check("ls", "-A", "/").split(),
    }


def by_purpose(disks: Disks) -> dict[str, Volume]:
    """All volumes by what they are for: shop for "app shop", orders for "volume shop/orders"; no two for the same."""
    found = {re.split("[ /]", volume.tags[FOR])[-1]: volume for volume in disks.volumes.values()}
    assert len(found) == len(disks.volumes)
    return found


def deleted_at_the_end(volume: Volume) -> bool:
    """Whether it goes with its instance."""
    assert volume.attachment
    return volume.attachment.delete_on_termination


def serial(volume: Volume) -> str:
    """What the disk of a volume says it is."""
    return volume.id.replace("-", "", 1)


def serials(vm: Vm) -> dict[str, str]:
    """The serial numbers of the disks at all mountpoints."""
    return {name: mounted_from(vm, point) for name, point in POINTS.items()}


def mounted_from(vm: Vm, point: str) -> str:
    """The serial number of the disk that is mounted there."""
    device = vm.check("findmnt", "--noheadings", "--first-only", "--nofsroot", "--output", "SOURCE", point).strip()
    return vm.check("lsblk", "--nodeps", "--noheadings", "--output", "SERIAL", device).strip()


def mount_of(vm: Vm, point: str) -> str:
    """The only mount there: its number in the kernel's table, its filesystem, its options."""
    said = vm.check("findmnt", "--noheadings", "--output", "ID,FSTYPE,OPTIONS", "--mountpoint", point)
    assert len(said.splitlines()) == 1, said
    return said
