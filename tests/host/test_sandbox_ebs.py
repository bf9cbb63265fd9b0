"""The simulated EBS, seen through boto3: what AWS documents of states, refusals, searching and going wrong.

No disk comes to any machine here, so anyone can run this; test_sandbox_disks.py has those that do.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from tests.host.volumes import ZONE, available, code_of, plugged
from tests.waiting import until

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client


class Ledger:
    """A host that no disk comes to: it remembers what would have."""

    def __init__(self) -> None:
        self.plugged: list[str] = []

    def plug(self, volume_id: str, file: Path, device: str) -> None:
        self.plugged.append(volume_id)

    def unplug(self, volume_id: str) -> None:
        self.plugged.remove(volume_id)

    def resized(self, volume_id: str) -> None:
        pass


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def disks(cloud: Cloud, ledger: Ledger) -> Iterator[Disks]:
    directory = Path(tempfile.mkdtemp(prefix="bootagent-volumes-"))
    with Disks(cloud, ledger, directory) as running:
        yield running
    shutil.rmtree(directory)


@pytest.fixture
def ec2(cloud: Cloud, disks: Disks) -> EC2Client:
    return cloud.api.ec2(cloud.region)


@pytest.fixture
def here(cloud: Cloud) -> str:
    return cloud.instance.instance_id


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({}, "MissingParameter"),
        ({"SnapshotId": "snap-0123456789abcdef0"}, "InvalidSnapshot.NotFound"),
        ({"Size": 1, "VolumeType": "gp9"}, "UnknownVolumeType"),
        ({"Size": 1, "VolumeType": "gp2", "Iops": 3000}, "InvalidParameterCombination"),
        ({"Size": 1, "VolumeType": "io2"}, "MissingParameter"),
        ({"Size": 1, "VolumeType": "gp2", "Throughput": 200}, "InvalidParameterCombination"),
        ({"Size": 1, "VolumeType": "gp3", "Iops": 100}, "InvalidParameterValue"),
        ({"Size": 1, "KmsKeyId": "alias/x"}, "InvalidParameterDependency"),
        ({"Size": 1, "VolumeInitializationRate": 200}, "InvalidParameterCombination"),
        ({"Size": 1, "AvailabilityZone": "eu-west-1z"}, "InvalidZone.NotFound"),
        ({"Size": 1, "ClientToken": "t" * 65}, "InvalidParameterValue"),
    ],
)
def test_a_volume_that_cannot_be_is_refused(disks: Disks, ec2: EC2Client, request_: dict[str, Any], code: str) -> None:
    assert code_of(lambda: ec2.create_volume(**{"AvailabilityZone": ZONE, **request_})) == code
    assert disks.volumes == {}


def test_a_token_makes_one_volume(disks: Disks, ec2: EC2Client) -> None:
    asked: dict[str, Any] = {"AvailabilityZone": ZONE, "Size": 1, "ClientToken": "t"}
    first = ec2.create_volume(**asked)["VolumeId"]
    assert ec2.create_volume(**asked)["VolumeId"] == first
    assert code_of(lambda: ec2.create_volume(**{**asked, "Size": 2})) == "IdempotentParameterMismatch"
    until(lambda: disks.volumes[first].state == "available", "an available volume")
    ec2.delete_volume(VolumeId=first)
    until(lambda: not disks.volumes, "no volume")
    assert code_of(lambda: ec2.create_volume(**asked)) == "IdempotentParameterMismatch"

    disks.faults.failing_volumes = 1
    failed = ec2.create_volume(**{**asked, "ClientToken": "u"})["VolumeId"]
    until(lambda: disks.volumes[failed].state == "error", "a failed volume")
    assert code_of(lambda: ec2.create_volume(**{**asked, "ClientToken": "u"})) == "IdempotentParameterMismatch"
    ec2.delete_volume(VolumeId=failed)
    disks.faults.volume_limit = 0
    assert code_of(lambda: ec2.create_volume(**{**asked, "ClientToken": "v"})) == "VolumeLimitExceeded"


def test_attachments_that_cannot_be_are_refused(disks: Disks, ec2: EC2Client, here: str) -> None:
    def refused(volume_id: str, device: str = "/dev/sdg", instance_id: str = here) -> str:
        return code_of(lambda: ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device=device))

    far, volume_id, spare = (
        available(disks, ec2, AvailabilityZone="eu-west-1b"),
        available(disks, ec2),
        available(disks, ec2),
    )
    disks.timing.create = 600.0
    assert refused(ec2.create_volume(AvailabilityZone=ZONE, Size=1)["VolumeId"]) == "IncorrectState"
    assert refused(far) == "InvalidVolume.ZoneMismatch"
    assert refused("vol-0123456789abcdef0") == "InvalidVolume.NotFound"
    assert refused(volume_id, instance_id="i-0123456789abcdef0") == "InvalidInstanceID.NotFound"
    assert refused(volume_id, "sdg") == "InvalidParameterValue"
    plugged(disks, ec2, volume_id, here)
    assert refused(volume_id) == "VolumeInUse"
    with pytest.raises(ClientError, match=r"Invalid value '/dev/sdf' for unixDevice.*/dev/sdf is already in use"):
        ec2.attach_volume(VolumeId=spare, InstanceId=here, Device="/dev/sdf")
    disks.faults.occupied_devices.add("/dev/sdh")
    assert refused(spare, "/dev/sdh") == "InvalidParameterValue"
    assert code_of(lambda: ec2.detach_volume(VolumeId=spare)) == "IncorrectState"
    assert code_of(lambda: ec2.detach_volume(VolumeId=volume_id, Device="/dev/sdx")) == "InvalidAttachment.NotFound"


# --- finding and tagging -------------------------------------------------------------------------------------


def test_volumes_are_found_by_what_they_are(disks: Disks, ec2: EC2Client, here: str) -> None:
    def found(**filters: str) -> set[str]:
        asked = [
            {"Name": name.replace("__", ":").replace("_", "-"), "Values": [value]} for name, value in filters.items()
        ]
        return {v["VolumeId"] for v in ec2.describe_volumes(Filters=asked)["Volumes"]} & disks.volumes.keys()  # type: ignore[arg-type]

    tags: Any = [{"ResourceType": "volume", "Tags": [{"Key": "App", "Value": "web [1]"}]}]
    web, plain = available(disks, ec2, TagSpecifications=tags), available(disks, ec2, AvailabilityZone="eu-west-1b")
    assert found(tag__App="web [1]") == found(tag_key="App") == found(tag__App="w*]") == {web}
    assert found(tag__App="web 1") == found(tag__app="web [1]") == set()
    assert found(availability_zone="eu-west-1b") == {plain}
    assert found(status="available") == {web, plain}
    plugged(disks, ec2, web, here)
    assert found(status="in-use") == {web}
    by_instance: Any = [{"Name": "attachment.instance-id", "Values": [here]}]
    # The root volume is there, too.
    assert len(ec2.describe_volumes(Filters=by_instance)["Volumes"]) == 2
    assert code_of(lambda: found(colour="red")) == "InvalidParameterValue"

    ec2.create_tags(Resources=[plain, web], Tags=[{"Key": "A", "Value": "1"}])
    ec2.delete_tags(Resources=[web], Tags=[{"Key": "App"}, {"Key": "A", "Value": "2"}])
    assert (disks.volumes[plain].tags, disks.volumes[web].tags) == ({"A": "1"}, {"A": "1"})
    assert code_of(lambda: ec2.create_tags(Resources=["vol-0123456789abcdef0"], Tags=[])) == "InvalidVolume.NotFound"


def test_many_come_in_pages(disks: Disks, ec2: EC2Client) -> None:
    for _ in range(7):
        ec2.create_volume(AvailabilityZone=ZONE, Size=1)
    disks.faults.page_size = 3
    pages = list(ec2.get_paginator("describe_volumes").paginate())
    assert [len(page["Volumes"]) for page in pages] == [3, 3, 2]
    assert {v["VolumeId"] for page in pages for v in page["Volumes"]} > disks.volumes.keys()


# --- what may go wrong ---------------------------------------------------------------------------------------


def test_fresh_things_are_not_seen_at_once(disks: Disks, ec2: EC2Client) -> None:
    disks.faults.unseen, disks.faults.search_lag = 2, 600.0
    tags: Any = [{"ResourceType": "volume", "Tags": [{"Key": "App", "Value": "web"}]}]
    volume_id = ec2.create_volume(AvailabilityZone=ZONE, Size=1, TagSpecifications=tags)["VolumeId"]
    for _ in range(2):
        assert code_of(lambda: ec2.describe_volumes(VolumeIds=[volume_id])) == "InvalidVolume.NotFound"
    assert ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
    by_tag: Any = [{"Name": "tag:App", "Values": ["web"]}]
    assert ec2.describe_volumes(Filters=by_tag)["Volumes"] == []
    disks.faults.search_lag = 0.5
    until(lambda: ec2.describe_volumes(Filters=by_tag)["Volumes"], "a volume that is found")


def test_an_attachment_can_be_stuck(disks: Disks, ec2: EC2Client, ledger: Ledger, here: str) -> None:
    volume_id = available(disks, ec2)
    disks.timing.attach = disks.timing.detach = 0.01
    disks.faults.stuck_attachments = 1
    ec2.attach_volume(VolumeId=volume_id, InstanceId=here, Device="/dev/sdf")
    time.sleep(0.3)
    assert disks.volumes[volume_id].attachment.state == "attaching"  # type: ignore[union-attr]
    assert ledger.plugged == []
    ec2.detach_volume(VolumeId=volume_id, Force=True)
    assert disks.forced == [volume_id]
    until(lambda: disks.volumes[volume_id].state == "available", "a detached volume")
    plugged(disks, ec2, volume_id, here)
    disks.faults.stuck_detachments = 1
    ec2.detach_volume(VolumeId=volume_id)
    time.sleep(0.3)
    assert disks.volumes[volume_id].attachment.state == "detaching"  # type: ignore[union-attr]


def test_delete_on_termination_can_be_late_or_lost(disks: Disks, ec2: EC2Client, here: str) -> None:
    def ask() -> None:
        mapping: Any = {"DeviceName": "/dev/sdf", "Ebs": {"DeleteOnTermination": True}}
        ec2.modify_instance_attribute(InstanceId=here, BlockDeviceMappings=[mapping])

    def is_so() -> bool:
        return ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"][0]["Attachments"][0]["DeleteOnTermination"]

    volume_id = available(disks, ec2)
    plugged(disks, ec2, volume_id, here)
    disks.faults.lost_attributes = 1
    ask()
    time.sleep(0.2)
    assert not is_so()
    disks.faults.attribute_lag = 1.5
    ask()
    assert not is_so()
    until(is_so, "DeleteOnTermination")


def test_snapshots_can_fail_or_last(disks: Disks, ec2: EC2Client) -> None:
    volume_id = available(disks, ec2)
    disks.faults.pending_snapshots = 5
    made = [ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"] for _ in range(5)]
    assert code_of(lambda: ec2.create_snapshot(VolumeId=volume_id)) == "ConcurrentSnapshotLimitExceeded"
    time.sleep(0.5)
    assert {found.state for found in disks.snapshots.values()} == {"pending"}
    disks.complete(made[0])
    disks.faults.failing_snapshots = 1
    failing = ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"]
    until(lambda: disks.snapshots[failing].state == "error", "a failed snapshot")
    shown = {s["SnapshotId"]: s["State"] for s in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}
    assert (shown[made[0]], shown[made[1]], shown[failing]) == ("completed", "pending", "error")


def test_what_the_instance_asks_can_be_throttled_watched_and_counted(
    cloud: Cloud, disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**cloud.environment(), "AWS_ACCESS_KEY_ID": "AKIAINSIDE", "AWS_SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(name, value)
    inside = boto3.session.Session(region_name=cloud.region).client(
        "ec2", config=Config(retries={"total_max_attempts": 1})
    )
    seen: list[tuple[str, bool, int]] = []
    cloud.api.listen(lambda call, done: seen.append((call.action, done, len(disks.volumes))))
    cloud.api.fail("ec2", "CreateVolume", code="RequestLimitExceeded", status=503)
    assert code_of(lambda: inside.create_volume(AvailabilityZone=ZONE, Size=1)) == "RequestLimitExceeded"
    inside.create_volume(AvailabilityZone=ZONE, Size=1)
    assert seen == [("CreateVolume", False, 0), ("CreateVolume", False, 0), ("CreateVolume", True, 1)]
    assert cloud.count("ec2", "CreateVolume") == 2
