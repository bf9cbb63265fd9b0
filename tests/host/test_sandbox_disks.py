"""The simulated cloud's disks, as they come to a machine: they can be formatted, mounted, restored and passed on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from bootagent.sandbox.loop_host import LoopHost, serial
from bootagent.sandbox.scratch import mounts_below
from tests.host.volumes import ZONE, available, code_of, plugged
from tests.waiting import until

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

pytest_plugins = ("tests.host.disks",)


@pytest.fixture
def ec2(cloud: Cloud, disks: Disks) -> EC2Client:
    return cloud.api.ec2(cloud.region)


@pytest.fixture
def here(cloud: Cloud) -> str:
    return cloud.instance.instance_id


def run(*argv: str | Path) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loops_of(file: Path) -> str:
    return run("losetup", "--noheadings", "--associated", file).strip()


# --- a volume's life -----------------------------------------------------------------------------------------


def test_a_blank_volume_is_made_attached_mounted_and_deleted(
    disks: Disks, ec2: EC2Client, loops: LoopHost, here: str, machine_root: Path
) -> None:
    made = ec2.create_volume(AvailabilityZone=ZONE, Size=2, VolumeType="gp3")
    volume_id = made["VolumeId"]
    assert (made["State"], made["Size"], made["Iops"], made["Throughput"]) == ("creating", 2, 3000, 125)
    until(lambda: disks.volumes[volume_id].state == "available", "an available volume")

    attachment = ec2.attach_volume(VolumeId=volume_id, InstanceId=here, Device="/dev/sdf")
    assert (attachment["State"], attachment["DeleteOnTermination"]) == ("attaching", False)
    until(lambda: loops.node(volume_id), "a device")
    shown = ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"][0]
    assert shown["State"] == "in-use"
    assert shown["Attachments"][0]["State"] == "attached"
    assert shown["Attachments"][0]["InstanceId"] == here

    node, entry = machine_root / "dev/nvme1n1", machine_root / "sys/block/nvme1n1"
    until(lambda: (entry / "device/serial").exists(), "a serial number")
    assert (entry / "device/serial").read_text().rstrip() == serial(volume_id)
    assert int((entry / "size").read_text()) == 2 * 1024**3 // 512
    number = node.stat().st_rdev
    assert (entry / "dev").read_text() == f"{os.major(number)}:{os.minor(number)}\n"
    link = machine_root / f"dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{serial(volume_id)}"
    assert link.resolve() == node

    run("mkfs.xfs", "-q", node)
    point = machine_root / "mnt"
    point.mkdir()
    run("mount", node, point)
    (point / "kept").write_text("kept")

    ec2.detach_volume(VolumeId=volume_id)
    until(lambda: disks.volumes[volume_id].attachment.state == "busy", "a busy attachment")  # type: ignore[union-attr]
    assert node.exists()
    assert code_of(lambda: ec2.delete_volume(VolumeId=volume_id)) == "VolumeInUse"
    run("umount", point)
    until(lambda: disks.volumes[volume_id].state == "available", "a detached volume")
    assert not node.exists() and not entry.exists() and not link.is_symlink()

    plugged(disks, ec2, volume_id, here, "/dev/sdg")
    run("mount", node, point)
    assert (point / "kept").read_text() == "kept"
    run("umount", point)
    ec2.detach_volume(VolumeId=volume_id)
    until(lambda: disks.volumes[volume_id].state == "available", "a detached volume")
    ec2.delete_volume(VolumeId=volume_id)
    until(lambda: not disks.volumes, "no volume")
    assert code_of(lambda: ec2.describe_volumes(VolumeIds=[volume_id])) == "InvalidVolume.NotFound"


@pytest.mark.parametrize("filesystem", ["xfs", "ext4"])
def test_a_snapshot_of_a_directory_is_restored_with_its_owners(
    disks: Disks, ec2: EC2Client, loops: LoopHost, here: str, machine_root: Path, tmp_path: Path, filesystem: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/run").write_text("#!/bin/sh\n")
    (tmp_path / "bin/run").chmod(0o750)
    os.chown(tmp_path / "bin/run", 1234, 4321)
    snapshot_id = disks.snapshot_of(tmp_path, tags={"App": "web"}, filesystem=filesystem)
    found = ec2.describe_snapshots(OwnerIds=["self"], Filters=[{"Name": "tag:App", "Values": ["web"]}])["Snapshots"]
    assert [(s["SnapshotId"], s["State"], s["VolumeSize"]) for s in found] == [(snapshot_id, "completed", 1)]

    volume_id = available(disks, ec2, SnapshotId=snapshot_id, Size=3)
    plugged(disks, ec2, volume_id, here)
    point = machine_root / "mnt"
    point.mkdir()
    run("mount", str(loops.node(volume_id)), point)
    status = (point / "bin/run").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (1234, 4321, 0o750)
    if filesystem == "xfs":  # resize2fs of a mounted one asks for CAP_SYS_RESOURCE, which containers lack
        run("xfs_growfs", point)
        space = os.statvfs(point)
        assert space.f_blocks * space.f_frsize > 2 * 1024**3


def test_volumes_grow_while_they_are_mounted(
    disks: Disks, ec2: EC2Client, loops: LoopHost, here: str, machine_root: Path
) -> None:
    volume_id = available(disks, ec2)
    plugged(disks, ec2, volume_id, here)
    change = ec2.modify_volume(VolumeId=volume_id, Size=2)["VolumeModification"]
    assert (change["ModificationState"], change["OriginalSize"], change["TargetSize"]) == ("modifying", 1, 2)
    size = machine_root / "sys/block/nvme1n1/size"
    until(lambda: int(size.read_text()) == 2 * 1024**3 // 512, "a bigger device")
    assert int(run("blockdev", "--getsize64", loops.node(volume_id) or "")) == 2 * 1024**3
    assert disks.volumes[volume_id].size == 2
    assert code_of(lambda: ec2.modify_volume(VolumeId=volume_id, Size=1)) == "InvalidParameterValue"


def test_a_snapshot_holds_what_was_there_when_it_was_asked_for(
    disks: Disks, ec2: EC2Client, loops: LoopHost, here: str, machine_root: Path
) -> None:
    volume_id = available(disks, ec2)
    plugged(disks, ec2, volume_id, here)
    run("mkfs.ext4", "-q", loops.node(volume_id) or "")
    point = machine_root / "mnt"
    point.mkdir()
    run("mount", loops.node(volume_id) or "", point)
    (point / "early").touch()
    disks.faults.pending_snapshots = 1
    run("fsfreeze", "--freeze", point)
    tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "App", "Value": "web"}]}]
    made = ec2.create_snapshot(VolumeId=volume_id, Description="d", TagSpecifications=tags)  # type: ignore[arg-type]
    run("fsfreeze", "--unfreeze", point)
    (point / "late").touch()
    run("umount", point)
    assert (made["State"], made["Tags"]) == ("pending", [{"Key": "App", "Value": "web"}])
    assert code_of(lambda: available(disks, ec2, SnapshotId=made["SnapshotId"])) == "IncorrectState"
    disks.complete(made["SnapshotId"])

    copy = available(disks, ec2, SnapshotId=made["SnapshotId"])
    plugged(disks, ec2, copy, here, "/dev/sdg")
    run("mount", loops.node(copy) or "", point)
    assert (point / "early").exists() and not (point / "late").exists()
    disks.hold(made["SnapshotId"])
    assert code_of(lambda: ec2.delete_snapshot(SnapshotId=made["SnapshotId"])) == "InvalidSnapshot.InUse"
    disks.release(made["SnapshotId"])
    ec2.delete_snapshot(SnapshotId=made["SnapshotId"])
    assert disks.snapshots == {}
    assert code_of(lambda: ec2.delete_snapshot(SnapshotId=made["SnapshotId"])) == "InvalidSnapshot.NotFound"


def test_a_snapshot_needs_a_volume_of_its_size(disks: Disks, ec2: EC2Client, tmp_path: Path) -> None:
    snapshot_id = disks.snapshot_of(tmp_path, tags={}, filesystem="ext4", size_mib=1500)
    with pytest.raises(ClientError, match="expect size >= 2GB"):
        ec2.create_volume(AvailabilityZone=ZONE, SnapshotId=snapshot_id, Size=1)
    made = ec2.create_volume(
        AvailabilityZone=ZONE,
        SnapshotId=snapshot_id,
        VolumeType="gp3",
        Encrypted=True,
        KmsKeyId="alias/x",
        Throughput=250,
        VolumeInitializationRate=200,
    )
    assert (made["Size"], made["SnapshotId"], made["Encrypted"], made["KmsKeyId"], made["Throughput"]) == (
        2,
        snapshot_id,
        True,
        "alias/x",
        250,
    )
    assert disks.volumes[made["VolumeId"]].initialization_rate == 200


def test_snapshots_are_seen_by_their_owners(disks: Disks, ec2: EC2Client, tmp_path: Path) -> None:
    ours = disks.snapshot_of(tmp_path, tags={"App": "web"}, filesystem="ext4", size_mib=64)
    theirs = disks.snapshot_of(tmp_path, tags={"App": "web"}, filesystem="ext4", size_mib=64, owner="210987654321")

    def found(*owners: str) -> set[str]:
        shown = ec2.describe_snapshots(OwnerIds=owners, Filters=[{"Name": "status", "Values": ["completed"]}])
        return {s["SnapshotId"] for s in shown["Snapshots"]}

    assert (found("self"), found("210987654321"), found()) == ({ours}, {theirs}, {ours, theirs})


# --- what may go wrong ---------------------------------------------------------------------------------------


def test_devices_come_late_and_in_another_order(disks: Disks, ec2: EC2Client, loops: LoopHost, here: str) -> None:
    first, second, third = (available(disks, ec2) for _ in range(3))
    disks.faults.reversed_arrivals = 1
    ec2.attach_volume(VolumeId=first, InstanceId=here, Device="/dev/sdf")
    until(lambda: disks.volumes[first].attachment.state == "attached", "an attachment")  # type: ignore[union-attr]
    assert loops.node(first) is None
    plugged(disks, ec2, second, here, "/dev/sdg")
    node = until(lambda: loops.node(first), "the device that was held back")
    other = loops.node(second)
    assert other and (other.name, node.name) == ("nvme1n1", "nvme2n1")

    disks.faults.device_late = 1.5
    ec2.attach_volume(VolumeId=third, InstanceId=here, Device="/dev/sdh")
    until(lambda: disks.volumes[third].attachment.state == "attached", "an attachment")  # type: ignore[union-attr]
    assert loops.node(third) is None
    until(lambda: loops.node(third), "the late device")


# --- instances come and go -----------------------------------------------------------------------------------


def test_an_instance_is_replaced_and_its_data_stays(
    cloud: Cloud, disks: Disks, ec2: EC2Client, here: str, loops: LoopHost, machine_root: Path, tmp_path: Path
) -> None:
    data, scratch = available(disks, ec2), available(disks, ec2)
    plugged(disks, ec2, data, here, "/dev/sdf")
    plugged(disks, ec2, scratch, here, "/dev/sdg")
    mapping: Any = {"DeviceName": "/dev/sdg", "Ebs": {"DeleteOnTermination": True}}
    ec2.modify_instance_attribute(InstanceId=here, BlockDeviceMappings=[mapping])

    def deleted_with_it() -> dict[str, bool]:
        shown = ec2.describe_instance_attribute(InstanceId=here, Attribute="blockDeviceMapping")["BlockDeviceMappings"]
        return {mapping["DeviceName"]: mapping["Ebs"]["DeleteOnTermination"] for mapping in shown}

    until(lambda: deleted_with_it() == {"/dev/xvda": True, "/dev/sdf": False, "/dev/sdg": True}, "what is to go")
    run("mkfs.xfs", "-q", loops.node(data) or "")
    point = machine_root / "mnt"
    point.mkdir()
    run("mount", loops.node(data) or "", point)
    (point / "kept").write_text("kept")

    with Cloud(beside=cloud) as second:
        assert second.instance.instance_id != here
        root = tmp_path / "second"
        other = LoopHost(root)
        disks.add_machine(second, other)
        there = second.instance.instance_id
        assert code_of(lambda: ec2.attach_volume(VolumeId=data, InstanceId=there, Device="/dev/sdf")) == "VolumeInUse"
        disks.terminate_instance()
        until(lambda: disks.volumes.keys() == {data}, "the scratch volume's end")
        until(lambda: disks.volumes[data].state == "available", "the data volume's release")
        states = ec2.describe_instances(InstanceIds=[here])["Reservations"][0]["Instances"][0]["State"]["Name"]
        assert states in ("shutting-down", "terminated")
        assert code_of(lambda: ec2.attach_volume(VolumeId=data, InstanceId=here, Device="/dev/sdf")) == "IncorrectState"

        plugged(disks, ec2, data, there)
        second_point = tmp_path / "mnt"
        second_point.mkdir()
        run("mount", until(lambda: other.node(data), "a device"), second_point)
        assert (second_point / "kept").read_text() == "kept"
        run("umount", second_point)


def test_a_loop_host_that_closes_leaves_nothing(
    private_mounts: None, machine_root: Path, volumes_directory: Path
) -> None:
    file = volumes_directory / "content"
    with file.open("wb") as content:
        content.truncate(64 * 1024**2)
    host = LoopHost(machine_root)
    host.plug("vol-0123456789abcdef0", file, "/dev/sdf")
    node = host.node("vol-0123456789abcdef0")
    assert node
    run("mkfs.ext4", "-q", node)
    point = machine_root / "with blank"
    point.mkdir()
    run("mount", node, point)
    with (point / "open").open("w"):
        host.close()
        assert mounts_below(machine_root) == []
        assert not node.exists()
        assert loops_of(file)
    until(lambda: not loops_of(file), "no loop device")


def test_a_loop_host_that_is_killed_leaves_no_loop_device(
    private_mounts: None, machine_root: Path, volumes_directory: Path
) -> None:
    file = volumes_directory / "content"
    with file.open("wb") as content:
        content.truncate(1024**2)
    program = (
        "import sys, time; from pathlib import Path; from bootagent.sandbox.loop_host import LoopHost;"
        "LoopHost(Path(sys.argv[1])).plug('vol-0123456789abcdef0', Path(sys.argv[2]), '/dev/sdf');"
        "print(flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", program, str(machine_root), str(file)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as killed:
        assert killed.stdout
        killed.stdout.readline()
        assert loops_of(file)
        killed.kill()
    until(lambda: not loops_of(file), "no loop device")


def test_private_mounts_are_seen_by_children_alone(private_mounts: None, machine_root: Path) -> None:
    point = machine_root / "mnt"
    point.mkdir()
    program = (
        "import subprocess, sys; from pathlib import Path; from bootagent.sandbox import loop_host;"
        "loop_host.private_mounts();"
        "subprocess.run(['mount', '-t', 'tmpfs', 'none', sys.argv[1]], check=True);"
        "subprocess.run(['mountpoint', sys.argv[1]]); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", program, str(point)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as inside:
        assert inside.stdout
        assert inside.stdout.readline() == f"{point} is a mountpoint\n"
        assert mounts_below(machine_root) == []
