"""What tests of the simulated EBS do with volumes, through boto3."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from bootagent.sandbox.disks import Disks
from tests.waiting import until

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

WAIT = 20.0
ZONE = "eu-west-1a"


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
