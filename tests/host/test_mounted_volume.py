"""A volume's filesystem comes to its place, whatever is there already: on simulated EBS with real disks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bootagent import aws, fstab, mounts, records
from bootagent.disks import is_free
from bootagent.disks.filesystems import MIB
from bootagent.errors import BootagentError, MachineError
from bootagent.machine import Machine
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from bootagent.sandbox.loop_host import LoopHost
from bootagent.steps.mounted_volume import MountedVolume
from tests.waiting import until

pytest_plugins = ("tests.host.disks",)

WITHIN = 60.0


@dataclass
class Bench:
    """One instance, and volumes for it."""

    cloud: Cloud
    disks: Disks
    host: LoopHost

    @property
    def machine(self) -> Machine:
        return Machine(self.host.root)

    def volume(self, name: str, *, blank: bool = False, plugged: bool = True, **request: Any) -> str:
        """A new volume with a record of that name, attached here."""
        ec2 = self.cloud.api.ec2(self.cloud.region)
        zone = self.cloud.instance.zone
        volume_id = ec2.create_volume(AvailabilityZone=zone, **({"Size": 1} | request))["VolumeId"]
        until(lambda: self.disks.volumes[volume_id].state == "available")
        instance_id = self.cloud.instance.instance_id
        record = records.Record(name, instance_id, self.cloud.region, volume_id, blank=blank, attached=True)
        records.save(self.machine, record)
        if plugged:
            self.attach(volume_id)
        return volume_id

    def attach(self, volume_id: str) -> None:
        letter = "fghijklmnop"[len(self.disks.volumes) - 1]
        self.cloud.api.ec2(self.cloud.region).attach_volume(
            VolumeId=volume_id, InstanceId=self.cloud.instance.instance_id, Device=f"/dev/sd{letter}"
        )
        until(lambda: self.host.node(volume_id) is not None)

    def node(self, volume_id: str) -> Path:
        node = self.host.node(volume_id)
        assert node is not None
        return node

    def snapshot(self, text: str, filesystem: str = "xfs") -> str:
        """A snapshot that holds one file ``said``."""
        source = self.host.root / "source"
        source.mkdir()
        (source / "said").write_text(text)
        made = self.disks.snapshot_of(source, tags={"App": "web"}, filesystem=filesystem, size_mib=320)
        shutil.rmtree(source)
        return made

    def run(self, step: MountedVolume) -> None:
        """As the agent does it."""
        assert not step.is_satisfied(self.machine)
        step.apply(self.machine)
        assert step.is_satisfied(self.machine)

    def mounted(self, point: str) -> str | None:
        found = mounts.at(self.machine, point)
        return found.source if found else None

    def read(self, path: str) -> str:
        return self.machine.real(path).read_text()

    @property
    def fstab(self) -> str:
        return self.read("/etc/fstab")


@pytest.fixture
def bench(
    cloud: Cloud, disks: Disks, loops: LoopHost, machine_root: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    aws.forget_clients()
    yield Bench(cloud, disks, loops)
    aws.forget_clients()


DATA = MountedVolume(
    record="role.web.data",
    mountpoint="/data",
    filesystem="xfs",
    options=("noatime",),
    bind=None,
    format=True,
    user="nobody",
    group=None,
    fstab=True,
    within=WITHIN,
)
#: What an app's release is, from a snapshot.
APP = replace(DATA, record="app.web.1", mountpoint="/cp", bind="/srv/web", format=False)


# --- blank volumes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filesystem", ["xfs", "ext4"])
def test_a_blank_volume_is_formatted_once_and_mounted(filesystem: str, bench: Bench) -> None:
    step = replace(DATA, filesystem=filesystem)
    volume_id = bench.volume(step.record, blank=True)
    bench.run(step)
    found = mounts.at(bench.machine, "/data")
    assert found is not None
    assert (found.source, found.filesystem) == (str(bench.node(volume_id)), filesystem)
    assert "noatime" in found.options
    assert bench.machine.real("/data").owner() == "nobody"
    assert bench.disks.volumes[volume_id].tags["bootagent:format"] == filesystem
    record = records.load(bench.machine, step.record)
    assert record is not None
    assert (record.blank, record.size_bytes, record.mountpoints) == (False, 1024 * MIB, ("/data",))
    nouuid = "nouuid," if filesystem == "xfs" else ""
    serial = volume_id.replace("-", "")
    assert bench.fstab == (
        "# BEGIN bootagent\n"
        f"/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{serial} /data {filesystem} "
        f"{nouuid}noatime,nofail,x-systemd.device-timeout=10s 0 0\n"
        "# END bootagent\n"
    )


def test_a_second_time_there_is_nothing_to_do(bench: Bench) -> None:
    bench.volume(DATA.record, blank=True)
    bench.run(DATA)
    bench.machine.real("/data/kept").write_text("kept")
    written = bench.machine.real("/etc/fstab").stat()
    calls = bench.cloud.count("ec2")
    assert DATA.is_satisfied(bench.machine)
    DATA.apply(bench.machine)
    assert bench.cloud.count("ec2") == calls
    assert bench.machine.real("/etc/fstab").stat().st_ino == written.st_ino
    assert bench.read("/data/kept") == "kept"
    assert bench.machine.real("/data").owner() == "nobody"


def test_after_a_reboot_it_is_mounted_again(bench: Bench) -> None:
    volume_id = bench.volume(DATA.record, blank=True)
    bench.run(DATA)
    bench.machine.real("/data/kept").write_text("kept")
    os.chown(bench.machine.real("/data"), 0, 0)
    mounts.unmount(bench.machine, "/data")
    assert bench.machine.real("/data").stat().st_mode & 0o777 == 0
    bench.run(DATA)
    assert bench.read("/data/kept") == "kept"
    assert bench.mounted("/data") == str(bench.node(volume_id))
    assert bench.machine.real("/data").owner() == "root"  # only a new filesystem is given away


def test_a_mkfs_that_a_killed_run_left_is_waited_for(bench: Bench) -> None:
    volume_id = bench.volume(DATA.record, blank=True)
    device = bench.node(volume_id)
    held = os.open(device, os.O_RDWR | os.O_EXCL)  # as mkfs holds it

    def finish() -> None:
        assert not mounts.at(bench.machine, "/data")
        os.close(held)

    later = threading.Timer(1.5, finish)
    later.start()
    bench.run(DATA)
    later.join()


# --- what is never formatted ---------------------------------------------------------------------------------


def spoil(bench: Bench, volume_id: str, *argv: str, offset: int | None = None) -> bytes:
    """Use a disk by a program, or write a few bytes on it; returns its first MiB."""
    device = bench.node(volume_id)
    if argv:
        subprocess.run([*argv, device], check=True, capture_output=True)
    if offset is not None:
        with device.open("r+b") as disk:
            disk.seek(offset)
            disk.write(b"data")
    return head(device)


def head(device: Path) -> bytes:
    with device.open("rb") as disk:
        return disk.read(MIB)


@pytest.mark.parametrize(
    ("argv", "offset", "why"),
    [
        (("mkswap",), None, "it holds a signature \\(swap\\)"),
        ((), 512 * MIB, "is not blank, .* there is data 512 MiB from its start"),
        ((), 0, "is not blank, .* there is data 0 MiB from its start"),
    ],
)
def test_a_used_volume_is_not_formatted_though_all_say_it_is_blank(
    argv: tuple[str, ...], offset: int | None, why: str, bench: Bench
) -> None:
    volume_id = bench.volume(DATA.record, blank=True)
    before = spoil(bench, volume_id, *argv, offset=offset)
    with pytest.raises(BootagentError, match=why):
        DATA.apply(bench.machine)
    assert head(bench.node(volume_id)) == before
    assert mounts.at(bench.machine, "/data") is None
    assert not DATA.is_satisfied(bench.machine)


@pytest.mark.parametrize(("format", "blank"), [(True, False), (False, True)])
def test_a_volume_of_zeros_is_not_formatted_unless_both_sides_allow_it(format: bool, blank: bool, bench: Bench) -> None:
    volume_id = bench.volume(DATA.record, blank=blank)
    with pytest.raises(BootagentError, match=f"cannot mount {volume_id}: it is blank"):
        replace(DATA, format=format).apply(bench.machine)
    assert not any(head(bench.node(volume_id)))


def test_a_filesystem_that_is_there_is_kept_though_all_say_it_is_blank(bench: Bench) -> None:
    volume_id = bench.volume(DATA.record, SnapshotId=bench.snapshot("before"), blank=True)
    bench.run(replace(DATA, filesystem="ext4"))
    assert bench.read("/data/said") == "before"
    assert bench.machine.real("/data").owner() == "root"  # somebody else's
    assert bench.disks.volumes[volume_id].tags["bootagent:format"] == "xfs"


#: Where in an xfs: the superblock, which blkid then does not take for one; the header of the inodes, see xfs_db(8).
@pytest.mark.parametrize("offset", [8, 1024])
def test_a_damaged_filesystem_is_told_and_left_alone(offset: int, bench: Bench) -> None:
    volume_id = bench.volume(APP.record, SnapshotId=bench.snapshot("one"))
    device = bench.node(volume_id)
    damage(device, offset)
    with pytest.raises(BootagentError, match=rf"cannot mount {volume_id} .*look at it with xfs_repair -n") as caught:
        APP.apply(bench.machine)
    assert "dmesg" not in str(caught.value)
    assert head(device)[offset : offset + 8] == b"\xff" * 8
    assert mounts.at(bench.machine, "/srv/web") is None
    assert mounts.at(bench.machine, "/cp") is None


def damage(device: Path, offset: int) -> None:
    with device.open("r+b") as disk:
        disk.seek(offset)
        disk.write(b"\xff" * 8)


# --- restored snapshots, and the bind ------------------------------------------------------------------------


def test_a_restored_snapshot_is_seen_in_both_places(bench: Bench) -> None:
    volume_id = bench.volume(APP.record, SnapshotId=bench.snapshot("one"))
    bench.run(APP)
    assert bench.read("/cp/said") == bench.read("/srv/web/said") == "one"
    bench.machine.real("/srv/web/written").write_text("here")
    assert bench.read("/cp/written") == "here"
    lines = [entry.point for entry in fstab.current(bench.machine)]
    assert lines == ["/cp", "/srv/web"]
    mounts.unmount(bench.machine, "/srv/web")
    assert not APP.is_satisfied(bench.machine)
    bench.run(APP)
    mounts.unmount(bench.machine, "/srv/web")
    mounts.unmount(bench.machine, "/cp")
    for point in ("/cp", "/srv/web"):
        assert bench.machine.real(point).stat().st_mode & 0o777 == 0
    assert bench.disks.volumes[volume_id].tags.get("bootagent:format") is None


def test_the_filesystem_fills_its_volume_and_grows_with_it(bench: Bench) -> None:
    volume_id = bench.volume(APP.record, SnapshotId=bench.snapshot("one"))  # 320 MiB of it
    bench.run(APP)
    assert size(bench, "/cp") > 900 * MIB
    bench.cloud.api.ec2(bench.cloud.region).modify_volume(VolumeId=volume_id, Size=2)
    until(lambda: not APP.is_satisfied(bench.machine))
    bench.run(APP)
    assert size(bench, "/srv/web") > 1900 * MIB


def size(bench: Bench, path: str) -> int:
    found = os.statvfs(bench.machine.real(path))
    return found.f_blocks * found.f_frsize


@pytest.mark.parametrize("filesystem", ["xfs", "ext4"])
def test_a_clone_is_mounted_beside_its_origin(filesystem: str, bench: Bench) -> None:
    if filesystem == "ext4" and not may_resize_ext4():
        pytest.skip("root has no CAP_SYS_RESOURCE here")
    snapshot = bench.snapshot("one", filesystem)
    bench.volume(APP.record, SnapshotId=snapshot)
    bench.volume("app.api.1", SnapshotId=snapshot)
    bench.run(APP)
    other = replace(APP, record="app.api.1", mountpoint="/cp2", bind="/srv/api")
    bench.run(other)
    assert APP.is_satisfied(bench.machine)
    assert bench.read("/srv/api/said") == "one"
    assert bench.mounted("/cp") != bench.mounted("/cp2")
    assert [entry.point for entry in fstab.current(bench.machine)] == ["/cp", "/cp2", "/srv/api", "/srv/web"]


def may_resize_ext4() -> bool:
    """Whether we have CAP_SYS_RESOURCE, bit 24 of capabilities(7), which ext4 asks of who grows it."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> 24 & 1)


# --- one in place of another ---------------------------------------------------------------------------------

NEXT = replace(APP, record="app.web.2")


def test_the_next_release_takes_the_place_of_the_last(bench: Bench) -> None:
    old = bench.volume(APP.record, SnapshotId=bench.snapshot("one"))
    bench.run(APP)
    new = bench.volume(NEXT.record, SnapshotId=bench.snapshot("two"))
    with bench.machine.real("/srv/web/said").open() as used:  # by a service that still runs
        bench.run(NEXT)
        assert used.read() == "one"
        assert bench.read("/cp/said") == bench.read("/srv/web/said") == "two"
        assert not is_free(bench.node(old))
    assert not APP.is_satisfied(bench.machine)
    sources = {mount.source for mount in mounts.table() if mount.point.startswith(str(bench.host.root))}
    assert sources == {str(bench.node(new))}
    assert next(entry.source[-20:] for entry in fstab.current(bench.machine)) == new.replace("-", "")
    until(lambda: is_free(bench.node(old)))
    bench.run(APP)  # and back
    assert bench.read("/srv/web/said") == "one"


def test_what_cannot_be_mounted_takes_nobodys_place(bench: Bench) -> None:
    bench.volume(APP.record, SnapshotId=bench.snapshot("one"))
    bench.run(APP)
    before = bench.fstab
    new = bench.volume(NEXT.record, SnapshotId=bench.snapshot("two"))
    damage(bench.node(new), 1024)
    with pytest.raises(BootagentError, match=f"cannot mount {new}"):
        NEXT.apply(bench.machine)
    assert APP.is_satisfied(bench.machine)
    assert bench.read("/srv/web/said") == "one"
    assert bench.fstab == before


def test_a_mount_of_a_volume_that_is_gone_makes_room(bench: Bench) -> None:
    old = bench.volume(APP.record, SnapshotId=bench.snapshot("one"))
    bench.run(APP)
    node = bench.node(old)  # pulled out while it was mounted, as by DetachVolume with Force
    shutil.rmtree(bench.host.root / "sys/block" / node.name)
    node.unlink()
    bench.volume(NEXT.record, SnapshotId=bench.snapshot("two"))
    bench.run(NEXT)
    assert bench.read("/srv/web/said") == "two"


def test_an_empty_directory_that_mount_a_has_bound_makes_room(bench: Bench) -> None:
    bench.volume(APP.record, SnapshotId=bench.snapshot("one"))
    bench.run(APP)
    mounts.unmount(bench.machine, "/srv/web")
    mounts.unmount(bench.machine, "/cp")
    mounts.bind(bench.machine, "/cp", "/srv/web", 30)  # what mount -a does while the volume is not there
    bench.run(APP)
    assert bench.read("/srv/web/said") == "one"


@pytest.mark.parametrize("place", ["/cp", "/srv/web"])
def test_what_is_not_ours_stays_mounted(place: str, bench: Bench) -> None:
    bench.volume(APP.record, SnapshotId=bench.snapshot("one"))
    bench.machine.real(place).mkdir(parents=True)
    mounts.mount(bench.machine, "theirs", place, "tmpfs", ("size=1m",), 30)
    with pytest.raises(BootagentError, match=rf"at {place}: theirs \(tmpfs\) is mounted there, and not by bootagent"):
        APP.apply(bench.machine)
    assert bench.mounted(place) == "theirs"
    assert len([mount for mount in mounts.table() if mount.point.startswith(str(bench.host.root))]) == 1


def test_files_in_deploy_to_are_not_hidden(bench: Bench) -> None:
    bench.volume(APP.record, SnapshotId=bench.snapshot("one"))
    bench.machine.real("/srv/web/releases").mkdir(parents=True)
    with pytest.raises(BootagentError, match="cannot mount at /srv/web: there are files in it, such as releases"):
        APP.apply(bench.machine)
    assert mounts.at(bench.machine, "/srv/web") is None


def test_new_options_are_taken_over_in_both_places(bench: Bench) -> None:
    bench.volume(APP.record, SnapshotId=bench.snapshot("one"))
    bench.run(APP)
    strict = replace(APP, options=("noatime", "nosuid", "nodev"))
    bench.run(strict)
    for point in ("/cp", "/srv/web"):
        found = mounts.at(bench.machine, point)
        assert found is not None
        assert {"noatime", "nosuid", "nodev"} <= set(found.options)
    assert len(mounted_below(bench)) == 2
    assert ",nosuid,nodev," in bench.fstab


# --- fstab ---------------------------------------------------------------------------------------------------


def test_without_fstab_there_are_no_lines(bench: Bench) -> None:
    bench.volume(APP.record, SnapshotId=bench.snapshot("one"))
    bench.run(APP)
    bench.machine.real("/etc/fstab").write_text(f"# mine\n{bench.fstab}")
    without = replace(APP, fstab=False)
    bench.run(without)
    assert bench.fstab == "# mine\n"


def test_a_line_of_someone_else_is_refused_before_anything_is_mounted(bench: Bench) -> None:
    bench.volume(APP.record, SnapshotId=bench.snapshot("one"))
    (bench.host.root / "etc").mkdir(exist_ok=True)
    bench.machine.real("/etc/fstab").write_text("LABEL=mine /cp ext4 defaults 0 2\n")
    with pytest.raises(BootagentError, match="line 1 mounts something else at /cp"):
        APP.apply(bench.machine)
    assert mounts.at(bench.machine, "/cp") is None


def test_mount_a_mounts_what_the_agent_would_and_a_second_time_nothing(bench: Bench) -> None:
    bench.volume(APP.record, SnapshotId=bench.snapshot("one"))
    bench.run(APP)
    mounts.unmount(bench.machine, "/srv/web")
    mounts.unmount(bench.machine, "/cp")
    # mount(8) knows no root of ours: the same entries, by their real paths.
    real = [
        replace(entry, source=str(bench.machine.real(entry.source)), point=str(bench.machine.real(entry.point)))
        for entry in fstab.current(bench.machine)
    ]
    table = bench.host.root / "fstab"
    table.write_text(fstab.merged("", real))
    for _ in range(2):
        done = subprocess.run(["mount", "-a", "-T", table], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    assert APP.is_satisfied(bench.machine)
    assert len([mount for mount in mounts.table() if mount.point.startswith(str(bench.host.root))]) == 2


# --- late and killed -----------------------------------------------------------------------------------------


def test_a_late_device_is_waited_for(bench: Bench) -> None:
    volume_id = bench.volume(APP.record, plugged=False, SnapshotId=bench.snapshot("one"))
    later = threading.Timer(1.0, bench.attach, (volume_id,))
    later.start()
    bench.run(APP)
    later.join()


def test_a_device_that_never_comes_is_told(bench: Bench) -> None:
    bench.volume(APP.record, plugged=False, SnapshotId=bench.snapshot("one"))
    with pytest.raises(MachineError, match=r"appeared within 0.5 s"):
        replace(APP, within=0.5).apply(bench.machine)
    with pytest.raises(MachineError, match=r"no volume is attached for app.none.1 yet"):
        replace(APP, record="app.none.1").apply(bench.machine)


#: Applies a step, and kills itself at the Nth change it makes to the machine: before it, or right behind it.
KILLED = """
import os, signal, sys
from pathlib import Path
from bootagent import records
from bootagent.machine import Machine
from bootagent.steps.mounted_volume import MountedVolume

LOOKS = {"cmp", "blkid", "wipefs"}
left = int(sys.argv[2])

def dying(method):
    def call(self, subject, *rest, **options):
        global left
        if isinstance(subject, list) and subject[0] in LOOKS:
            return method(self, subject, *rest, **options)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        found = method(self, subject, *rest, **options)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    return call

Machine.run = dying(Machine.run)
Machine.start = dying(Machine.start)
Machine.write = dying(Machine.write)
step = eval(sys.argv[3])
step.apply(Machine(Path(sys.argv[1])))
"""


def killed_at(change: int, bench: Bench, step: MountedVolume) -> bool:
    """Apply a step in a process that is killed at a change; whether it came that far."""
    argv = [sys.executable, "-c", KILLED, str(bench.host.root), str(change), repr(step)]
    done = subprocess.run(argv, check=False, timeout=120)
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


def mounted_below(bench: Bench) -> list[str]:
    return [mount.source for mount in mounts.table() if mount.point.startswith(f"{bench.host.root}/")]


def finish(bench: Bench, step: MountedVolume) -> None:
    if not step.is_satisfied(bench.machine):
        bench.run(step)


def test_killed_anywhere_while_it_formats_the_next_run_ends_right(bench: Bench) -> None:
    volume_id = bench.volume(DATA.record, blank=True)
    blank = records.load(bench.machine, DATA.record)
    device = bench.node(volume_id)
    assert blank is not None
    change = 1
    while killed_at(change, bench, DATA):
        finish(bench, DATA)
        assert mounted_below(bench) == [str(device)]
        assert bench.machine.real("/data").owner() == "nobody"
        assert bench.disks.volumes[volume_id].tags["bootagent:format"] == "xfs"
        mounts.unmount(bench.machine, "/data")
        until(lambda: is_free(device))
        subprocess.run(["blkdiscard", "--zeroout", device], check=True)
        records.save(bench.machine, blank)
        bench.machine.real("/etc/fstab").unlink()
        change += 1
    assert change > 8


def test_killed_anywhere_while_one_replaces_another_the_next_run_ends_right(bench: Bench) -> None:
    bench.volume(APP.record, SnapshotId=bench.snapshot("one"))
    new = bench.volume(NEXT.record, SnapshotId=bench.snapshot("two"))
    fresh = records.load(bench.machine, NEXT.record)
    assert fresh is not None
    bench.run(APP)
    change = 1
    while killed_at(change, bench, NEXT):
        finish(bench, NEXT)
        assert mounted_below(bench) == [str(bench.node(new))] * 2
        assert bench.read("/cp/said") == bench.read("/srv/web/said") == "two"
        bench.run(APP)
        assert bench.read("/srv/web/said") == "one"
        records.save(bench.machine, fresh)
        change += 1
    assert change > 16
