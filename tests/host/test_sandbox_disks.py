"""The simulated EBS: what AWS documents, seen through boto3, and disks that can be formatted and mounted."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from bootagent.sandbox.loop_host import LoopHost, serial

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

pytest_plugins = ("tests.host.disks",)

WAIT = 20.0
ZONE = "eu-west-1a"


@pytest.fixture
def ec2(cloud: Cloud, disks: Disks) -> EC2Client:
    return cloud.api.ec2(cloud.region)


@pytest.fixture
def here(cloud: Cloud) -> str:
    return cloud.instance.instance_id


def until(condition: Callable[[], Any], what: str) -> Any:
    """What the condition gives, once it is true."""
    deadline = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.02)
    return found


def run(*argv: str | Path) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(ClientError) as caught:
        call()
    return caught.value.response["Error"]["Code"]


def available(disks: Disks, ec2: EC2Client, **request: Any) -> str:
    """A new volume, once it is available."""
    request = {"AvailabilityZone": ZONE, "VolumeType": "gp3", **request}
    if "SnapshotId" not in request:
        request.setdefault("Size", 1)
    volume_id = ec2.create_volume(**request)["VolumeId"]
    until(lambda: disks.volumes[volume_id].state == "available", "an available volume")
    return volume_id


def plugged(disks: Disks, ec2: EC2Client, volume_id: str, instance_id: str, device: str = "/dev/sdf") -> None:
    ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device=device)
    until(lambda: (found := disks.volumes[volume_id].attachment) and found.plugged, "a device")


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
