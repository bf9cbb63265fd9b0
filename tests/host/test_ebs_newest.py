"""The newest snapshot by its tags, as EC2 answers: in pages, with pending and failed ones among them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from bootagent.ebs.snapshots import newest
from bootagent.errors import AwsError, BootagentError
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from tests.host.ebs_world import made, snapshot_of

pytest_plugins = ("tests.host.ebs_bench",)

NOON = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)


@pytest.fixture
def origin(cloud: Cloud, volumes: Disks) -> str:
    return made(cloud, volumes, {})


def started(volumes: Disks, snapshot_id: str, hour: int, state: str = "completed", owner: str | None = None) -> str:
    """The same snapshot, as if taken that many hours from noon."""
    found = volumes._ebs.snapshots[snapshot_id]
    volumes._ebs.snapshots[snapshot_id] = replace(
        found, started=NOON + timedelta(hours=hour), state=state, owner=owner or found.owner
    )
    return snapshot_id


def test_the_newest_completed_one_is_taken(cloud: Cloud, volumes: Disks, origin: str) -> None:
    tags = {"Name": "cp", "Environment": "staging"}
    taken = [snapshot_of(cloud, volumes, origin, tags) for _ in range(6)]
    volumes.faults.page_size = 2
    for snapshot_id, hour in zip(taken, (3, 5, 1, 4, 7, 9), strict=True):
        started(volumes, snapshot_id, hour)
    started(volumes, taken[4], 7, "pending")
    started(volumes, taken[5], 9, "error")
    started(volumes, snapshot_of(cloud, volumes, origin, {"Name": "cp"}), 11)
    found = newest(cloud.region, tags, "self")
    assert (found.id, found.started, found.size_gib, found.volume_id) == (
        taken[1],
        NOON + timedelta(hours=5),
        1,
        origin,
    )
    assert found.tags == tags


def test_tags_are_meant_to_the_letter(cloud: Cloud, volumes: Disks, origin: str) -> None:
    right = started(volumes, snapshot_of(cloud, volumes, origin, {"Name": "c*"}), 1)
    started(volumes, snapshot_of(cloud, volumes, origin, {"Name": "cp"}), 2)
    assert newest(cloud.region, {"Name": "c*"}, "self").id == right


def test_those_of_another_account_are_asked_for_by_name(cloud: Cloud, volumes: Disks, origin: str) -> None:
    mine = started(volumes, snapshot_of(cloud, volumes, origin, {"Name": "cp"}), 1)
    theirs = started(volumes, snapshot_of(cloud, volumes, origin, {"Name": "cp"}), 2, owner="210987654321")
    assert newest(cloud.region, {"Name": "cp"}, "self").id == mine
    assert newest(cloud.region, {"Name": "cp"}, "210987654321").id == theirs


def test_none_is_an_error_that_names_the_tags(cloud: Cloud, volumes: Disks) -> None:
    with pytest.raises(BootagentError) as caught:
        newest(cloud.region, {"Name": "cp", "Environment": "staging"}, "self")
    assert str(caught.value) == (
        "this account has no completed snapshot with the tags Name=cp, Environment=staging in eu-west-1 "
        "(nor any other) (take one with bootagent snapshot, or check tags and owner)"
    )


def test_none_that_is_completed_says_how_many_are_not(cloud: Cloud, volumes: Disks, origin: str) -> None:
    for state in ("pending", "pending", "error"):
        started(volumes, snapshot_of(cloud, volumes, origin, {"Name": "cp"}), 1, state)
    with pytest.raises(BootagentError, match=r"\(2 pending, 1 in error\) \(wait until it is completed\)"):
        newest(cloud.region, {"Name": "cp"}, "self")


def test_what_is_not_allowed_names_the_action(cloud: Cloud, volumes: Disks) -> None:
    cloud.api.fail("ec2", "DescribeSnapshots", code="UnauthorizedOperation", status=403)
    with pytest.raises(AwsError, match="allow ec2:DescribeSnapshots to the instance's role"):
        newest(cloud.region, {"Name": "cp"}, "self")
