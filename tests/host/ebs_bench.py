"""A simulated EBS for tests of what is asked of it, in this process; a test module asks for it with

    pytest_plugins = ("tests.host.ebs_bench",)

``volumes``  :class:`Disks` whose volumes come to no machine: the API is all there is. Runs as any user
``machine``  a :class:`Machine` on ``machine_root`` that keeps what it is told in ``machine.heard``
``inside``   lets this process call AWS as a program on the ``cloud``'s instance does
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bootagent import aws
from bootagent.ebs import patience
from bootagent.ebs.volume import Wanted
from bootagent.machine import Machine, Note, Transfer
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks


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


@pytest.fixture
def inside(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(patience, "MOST_PAUSE", 0.2)
    aws.forget_clients()
    yield
    aws.forget_clients()


@pytest.fixture
def machine(machine_root: Path, inside: None) -> HearingMachine:
    return HearingMachine(machine_root)


@pytest.fixture
def volumes(cloud: Cloud, inside: None) -> Iterator[Disks]:
    directory = Path(tempfile.mkdtemp(prefix="bootagent-volumes-"))
    with Disks(cloud, NoMachine(), directory) as running:
        running.timing.create = running.timing.attach = running.timing.detach = running.timing.delete = 0.05
        running.timing.snapshot = 0.05
        yield running
    shutil.rmtree(directory)


def until(condition: Callable[[], object]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


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
