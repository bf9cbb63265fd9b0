"""What the tests of EBS share beside fixtures: a machine that listens, and what others do to the cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bootagent.ebs.wanted import Wanted
from bootagent.machine import Machine, Note, Transfer
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from tests.waiting import until


class NoMachine:
    """A host that no disk comes to."""

    def plug(self, volume_id: str, file: Path, device: str) -> None:
        pass

    def unplug(self, volume_id: str) -> None:
        pass

    def resized(self, volume_id: str) -> None:
        pass


class HearingMachine(Machine):
    """Remembers every Note and Transfer."""

    def __init__(self, root: Path) -> None:
        self.heard: list[Note | Transfer] = []
        super().__init__(root, self.heard.append)

    @property
    def notes(self) -> list[str]:
        return [event.label for event in self.heard if isinstance(event, Note)]


def made(cloud: Cloud, disks: Disks, tags: dict[str, str], *, size: int = 1, zone: str | None = None) -> str:
    """A volume that somebody else made, once it is available."""
    ec2 = cloud.api.ec2(cloud.region)
    labels: Any = [{"ResourceType": "volume", "Tags": [{"Key": key, "Value": tags[key]} for key in tags]}]
    volume_id = ec2.create_volume(
        AvailabilityZone=zone or cloud.instance.zone,
        Size=size,
        TagSpecifications=labels if tags else [],
    )["VolumeId"]
    until(lambda: disks.volumes[volume_id].state == "available")
    return volume_id


def snapshot_of(cloud: Cloud, disks: Disks, volume_id: str, tags: dict[str, str]) -> str:
    """A snapshot that somebody took, once it is completed."""
    ec2 = cloud.api.ec2(cloud.region)
    labels: Any = [{"ResourceType": "snapshot", "Tags": [{"Key": key, "Value": tags[key]} for key in tags]}]
    snapshot_id = ec2.create_snapshot(
        VolumeId=volume_id,
        TagSpecifications=labels if tags else [],
    )["SnapshotId"]
    until(lambda: disks.snapshots[snapshot_id].state == "completed")
    return snapshot_id


def wanted_by(cloud: Cloud, **fields: object) -> Wanted:
    """What an app of the cloud's instance wants; ``fields`` are Wanted's."""
    usual: dict[str, object] = {
        "name": "app.web.20261121101500",
        "purpose": "app web",
        "instance_id": cloud.instance.instance_id,
        "region": cloud.region,
        "zone": cloud.instance.zone,
        "within": 20.0,
    }
    return Wanted(**{**usual, **fields})  # type: ignore[arg-type]
