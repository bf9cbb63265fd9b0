"""What is left over is found, and nothing that anyone may need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from bootagent import gc, records
from bootagent.ebs.owner import FOR, FORMAT, INSTANCE, KEEP, LASTING, SERIES, SNAPSHOT
from bootagent.gc import Stray, delete, strays
from bootagent.records import Record
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from tests.host.ebs_world import HearingMachine, NoMachine, made, snapshot_of
from tests.waiting import until

pytest_plugins = ("tests.host.ebs_bench",)


@pytest.fixture
def other(cloud: Cloud, volumes: Disks) -> Iterator[Cloud]:
    """A second instance."""
    with Cloud(tags={"Role": "web"}, beside=cloud) as running:
        volumes.add_machine(running, NoMachine())
        yield running


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """No volume is young."""
    monkeypatch.setattr(gc, "YOUNG", timedelta(0))


def app_tags(cloud: Cloud, purpose: str = "app web") -> dict[str, str]:
    return {INSTANCE: cloud.instance.instance_id, FOR: purpose, SNAPSHOT: "snap-0aaa", "Name": "web"}


def ids(found: list[Stray]) -> set[str]:
    return {stray.id for stray in found}


def test_nothing_is_left_over_in_an_empty_region(cloud: Cloud, volumes: Disks, machine: HearingMachine) -> None:
    assert strays(machine, cloud.region) == []


def test_a_volume_whose_instance_is_gone(cloud: Cloud, volumes: Disks, machine: HearingMachine, other: Cloud) -> None:
    volume_id = made(cloud, volumes, app_tags(other), size=2)
    assert strays(machine, cloud.region) == []
    volumes.terminate_instance(other)
    gone = other.instance.instance_id
    (found,) = strays(machine, cloud.region)
    assert found == Stray("volume", volume_id, "web", "app web", gone, found.since, 2, f"its instance {gone} is gone")
    assert found.since.startswith("20")
    assert strays(machine, cloud.region, zone="eu-west-1b") == []
    assert ids(strays(machine, cloud.region, zone="eu-west-1a")) == {volume_id}


def test_an_instance_that_ec2_forgot_is_gone(cloud: Cloud, volumes: Disks, machine: HearingMachine) -> None:
    tags = {**app_tags(cloud), INSTANCE: "i-0123456789abcdef0"}
    volume_id = made(cloud, volumes, tags)
    assert ids(strays(machine, cloud.region)) == {volume_id}


def test_many_instances_are_asked_about(cloud: Cloud, volumes: Disks, machine: HearingMachine) -> None:
    volumes.faults.page_size = 5
    tags = [{**app_tags(cloud), INSTANCE: f"i-0123456789abc{number:04x}"} for number in range(12)]
    expected = {made(cloud, volumes, one) for one in tags}
    assert ids(strays(machine, cloud.region)) == expected


def test_a_stopped_instance_comes_back(cloud: Cloud, volumes: Disks, machine: HearingMachine, other: Cloud) -> None:
    made(cloud, volumes, app_tags(other))
    cloud.api.ec2(cloud.region).stop_instances(InstanceIds=[other.instance.instance_id])
    assert strays(machine, cloud.region) == []


@pytest.mark.usefixtures("old")
def test_a_volume_of_this_instance_that_no_record_names(cloud: Cloud, volumes: Disks, machine: HearingMachine) -> None:
    here = cloud.instance.instance_id
    forgotten, known = (made(cloud, volumes, app_tags(cloud)) for _ in range(2))
    records.save(machine, Record("app.web.1", here, cloud.region, known, attached=True))
    (found,) = strays(machine, cloud.region, instance_id=here)
    assert (found.id, found.why) == (forgotten, "this instance does not need it")
    # From elsewhere there is no telling.
    assert strays(machine, cloud.region) == []


def test_a_young_one_may_be_in_the_making(cloud: Cloud, volumes: Disks, machine: HearingMachine) -> None:
    made(cloud, volumes, app_tags(cloud))
    assert strays(machine, cloud.region, instance_id=cloud.instance.instance_id) == []


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({LASTING: "yes"}, True),
        ({INSTANCE: ""}, True),  # never ours
        ({FOR: "volume db/data"}, True),
        ({FOR: "volume db/data"}, False),
        ({SNAPSHOT: "", FORMAT: "xfs"}, True),
        ({SNAPSHOT: "", FORMAT: "xfs"}, False),
    ],
)
def test_data_is_no_stray(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, other: Cloud, change: dict[str, str], gone: bool
) -> None:
    whose = other if gone else cloud
    made(cloud, volumes, {key: value for key, value in {**app_tags(whose), **change}.items() if value})
    if gone:
        volumes.terminate_instance(other)
    assert strays(machine, cloud.region, instance_id=cloud.instance.instance_id) == []


def test_one_that_never_held_data_is_a_stray(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, other: Cloud
) -> None:
    tags = {INSTANCE: other.instance.instance_id, FOR: "volume db/data", FORMAT: "blank"}
    volume_id = made(cloud, volumes, tags)
    volumes.terminate_instance(other)
    assert ids(strays(machine, cloud.region)) == {volume_id}


def test_one_that_is_attached_is_no_stray(cloud: Cloud, volumes: Disks, machine: HearingMachine, other: Cloud) -> None:
    # Of an instance that is gone, but somebody looks at it on another.
    volume_id = made(cloud, volumes, app_tags(other))
    volumes.terminate_instance(other)
    (stray,) = strays(machine, cloud.region)
    cloud.api.ec2(cloud.region).attach_volume(
        VolumeId=volume_id, InstanceId=cloud.instance.instance_id, Device="/dev/sdf"
    )
    assert strays(machine, cloud.region) == []
    (removal,) = delete(machine, cloud.region, [stray])
    assert removal.error == "it is in-use now"
    assert volume_id in volumes.volumes


def test_snapshots_that_the_next_one_would_prune(cloud: Cloud, volumes: Disks, machine: HearingMachine) -> None:
    origin = made(cloud, volumes, {})
    series = {SERIES: "Name=cp", KEEP: "2", "Name": "cp"}
    taken = [snapshot_of(cloud, volumes, origin, {**series, KEEP: keep}) for keep in ("1", "9", "1", "2")]
    for tags in ({**series, SERIES: "Name=other"}, {"Name": "cp"}):
        snapshot_of(cloud, volumes, origin, tags)
    found = strays(machine, cloud.region)
    assert [one.id for one in found] == taken[:2]
    assert found[0] == replace(
        found[1], id=taken[0], since=found[0].since, why="newer ones of its series are there", name="cp"
    )
    assert (found[0].kind, found[0].purpose, found[0].size_gib) == ("snapshot", "Name=cp", 1)


def test_snapshots_of_two_volumes_that_are_there_are_counted_apart(
    cloud: Cloud, volumes: Disks, machine: HearingMachine
) -> None:
    tags = {SERIES: "Name=cp", KEEP: "1"}
    gone, first, second = (made(cloud, volumes, {}) for _ in range(3))
    taken = [snapshot_of(cloud, volumes, origin, tags) for origin in (gone, first, second, second)]
    cloud.api.ec2(cloud.region).delete_volume(VolumeId=gone)
    until(lambda: gone not in volumes.volumes)
    assert [one.id for one in strays(machine, cloud.region)] == [taken[0], taken[2]]


def test_strays_are_deleted_and_what_is_in_use_is_told(cloud: Cloud, volumes: Disks, machine: HearingMachine) -> None:
    origin = made(cloud, volumes, {})
    first, second, third = (snapshot_of(cloud, volumes, origin, {SERIES: "Name=cp", KEEP: "1"}) for _ in range(3))
    volumes.hold(first)
    leaked = made(cloud, volumes, {**app_tags(cloud), INSTANCE: "i-0123456789abcdef0"})
    found = strays(machine, cloud.region)
    done = {removal.stray.id: removal.error for removal in delete(machine, cloud.region, found)}
    assert done == {leaked: None, first: "others use it, such as an image", second: None}
    until(lambda: set(volumes.volumes) == {origin})
    assert set(volumes.snapshots) == {first, third}
    # Once more is fine.
    again = {removal.stray.id: removal.error for removal in delete(machine, cloud.region, found)}
    assert again == done


def test_a_refusal_keeps_none_of_the_others(cloud: Cloud, volumes: Disks, machine: HearingMachine) -> None:
    both = {made(cloud, volumes, {**app_tags(cloud), INSTANCE: "i-0123456789abcdef0"}) for _ in range(2)}
    found = strays(machine, cloud.region)
    assert ids(found) == both
    cloud.api.fail("ec2", "DeleteVolume", code="UnauthorizedOperation", status=403)
    first, second = delete(machine, cloud.region, found)
    assert first.error and "ec2:DeleteVolume" in first.error
    assert second.error is None
