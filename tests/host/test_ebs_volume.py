"""Volumes found, made, attached and let go in a simulated EBS that has real states, delays and refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace

import pytest

from bootagent import records
from bootagent.ebs import attachment, identity
from bootagent.ebs.kind import VolumeKind
from bootagent.ebs.owner import FOR, FORMAT, INSTANCE, LASTING, SNAPSHOT
from bootagent.ebs.volume import attach, mark_formatted, release
from bootagent.ebs.wanted import Wanted
from bootagent.errors import AwsError, BootagentError, MachineError
from bootagent.records import Record
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from bootagent.sandbox.ebs_api import EbsApi
from tests.host.ebs_world import HearingMachine, NoMachine, made, snapshot_of, wanted_by
from tests.waiting import until

pytest_plugins = ("tests.host.ebs_bench",)

NAME = "app.web.20261121101500"
BLANK = VolumeKind(size_gib=1)


@pytest.fixture
def snapshot(cloud: Cloud, volumes: Disks) -> str:
    """A completed snapshot, whose volume is gone."""
    origin = made(cloud, volumes, {})
    taken = snapshot_of(cloud, volumes, origin, {"Name": "cp"})
    remove(cloud, volumes, origin)
    cloud.api.forget_calls()
    return taken


@pytest.fixture
def wanted(cloud: Cloud, snapshot: str) -> Wanted:
    return wanted_by(cloud, snapshot=snapshot)


def detached(cloud: Cloud, volumes: Disks, volume_id: str) -> None:
    """Somebody else takes a volume from its instance."""
    cloud.api.ec2(cloud.region).detach_volume(VolumeId=volume_id)
    until(lambda: volumes.volumes[volume_id].state == "available")


def remove(cloud: Cloud, volumes: Disks, volume_id: str) -> None:
    cloud.api.ec2(cloud.region).delete_volume(VolumeId=volume_id)
    until(lambda: volume_id not in volumes.volumes)


def actions(cloud: Cloud) -> list[str]:
    return [call.action for call in cloud.calls if call.service == "ec2"]


# --- making --------------------------------------------------------------------------------------------------


def test_a_volume_is_made_from_the_snapshot_and_goes_with_the_instance(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted
) -> None:
    asked = replace(wanted, tags=(("Team", "web"), (INSTANCE, "i-someone-else")), kind=VolumeKind(size_gib=3))
    volume_id = attach(machine, asked)
    (found,) = volumes.volumes.values()
    assert (found.id, found.size, found.volume_type, found.snapshot_id) == (volume_id, 3, "gp3", wanted.snapshot)
    assert found.attachment
    assert (found.attachment.state, found.attachment.device) == ("attached", "/dev/sdf")
    assert found.attachment.delete_on_termination
    assert found.tags == {
        "Name": f"app web ({wanted.instance_id})",
        "Team": "web",
        FOR: "app web",
        INSTANCE: wanted.instance_id,
        SNAPSHOT: wanted.snapshot,
        "bootagent:record": NAME,
    }
    assert records.all(machine) == (
        Record(
            NAME,
            wanted.instance_id,
            cloud.region,
            volume_id,
            snapshot=wanted.snapshot,
            attached=True,
            device="/dev/sdf",
            pristine=True,
        ),
    )


def test_a_second_run_makes_nothing(cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted) -> None:
    first = attach(machine, wanted)
    cloud.api.forget_calls()
    assert attach(machine, wanted) == first
    assert set(actions(cloud)) == {"DescribeVolumes"}
    assert len(volumes.volumes) == 1


def test_what_it_waits_for_is_told_once(cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted) -> None:
    volumes.timing.create = volumes.timing.attach = 1.0
    attach(machine, wanted)
    assert machine.notes == ["waiting for the volume to be available", "waiting for the volume to be attached"]


def test_every_parameter_reaches_ec2(cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted) -> None:
    kind = VolumeKind("gp3", 4000, 250, None, "alias/cp", 200, 5)
    attach(machine, replace(wanted, kind=kind, delete_on_termination=False))
    (found,) = volumes.volumes.values()
    assert (found.iops, found.throughput, found.encrypted, found.kms_key_id) == (4000, 250, True, "alias/cp")
    assert (found.initialization_rate, found.size) == (200, 5)
    assert found.attachment and not found.attachment.delete_on_termination
    assert found.tags[LASTING] == "yes"


def test_two_releases_have_a_volume_each_though_of_one_snapshot(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted
) -> None:
    first = attach(machine, wanted)
    second = attach(machine, replace(wanted, name="app.web.20261121111500"))
    assert first != second
    devices = {found.attachment.device for found in volumes.volumes.values() if found.attachment}
    assert devices == {"/dev/sdf", "/dev/sdg"}


def test_a_blank_one_says_so_until_it_is_formatted(cloud: Cloud, volumes: Disks, machine: HearingMachine) -> None:
    wanted = wanted_by(cloud, name="role.db.data", purpose="volume db/data", kind=BLANK, by_snapshot=False)
    volume_id = attach(machine, wanted)
    assert volumes.volumes[volume_id].tags[FORMAT] == "blank"
    record = records.load(machine, "role.db.data")
    assert record and record.blank
    mark_formatted(machine, cloud.region, volume_id, "xfs")
    assert volumes.volumes[volume_id].tags[FORMAT] == "xfs"
    records.forget(machine, "role.db.data")
    assert attach(machine, wanted) == volume_id
    record = records.load(machine, "role.db.data")
    assert record and not record.blank


def test_a_blank_one_needs_a_size(cloud: Cloud, volumes: Disks, machine: HearingMachine) -> None:
    with pytest.raises(BootagentError, match="a blank volume for app web needs a size"):
        attach(machine, wanted_by(cloud))


# --- found again ---------------------------------------------------------------------------------------------


def test_a_lost_record_does_not_cost_a_volume(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted
) -> None:
    first = attach(machine, wanted)
    records.forget(machine, NAME)
    assert attach(machine, wanted) == first
    assert len(volumes.volumes) == 1


def test_a_lost_record_does_not_cost_a_volume_though_ec2_does_not_show_it_yet(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted
) -> None:
    volumes.faults.search_lag = 3600.0
    first = attach(machine, wanted)
    records.forget(machine, NAME)
    assert attach(machine, wanted) == first
    assert len(volumes.volumes) == 1


def test_data_is_found_again_whatever_the_newest_snapshot_is(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted
) -> None:
    data = replace(wanted, name="role.db.data", purpose="volume db/data", by_snapshot=False)
    first = attach(machine, data)
    newer = replace(data, snapshot=snapshot_of(cloud, volumes, first, {"Name": "cp"}))
    assert attach(machine, newer) == first
    records.forget(machine, data.name)
    assert attach(machine, newer) == first
    assert len(volumes.volumes) == 1


def test_other_parameters_for_a_volume_that_ec2_shows_late_do_not_make_a_second(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted
) -> None:
    volumes.faults.search_lag = 2.0
    first = attach(machine, wanted)
    records.forget(machine, NAME)
    assert attach(machine, replace(wanted, kind=VolumeKind(size_gib=7))) == first
    assert len(volumes.volumes) == 1


def test_a_record_of_another_instance_does_not_count(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted
) -> None:
    baked = Record(NAME, "i-baked", cloud.region, "vol-0fff", snapshot=wanted.snapshot, attached=True)
    records.save(machine, baked)
    assert attach(machine, wanted) in volumes.volumes


def test_a_record_for_another_snapshot_is_not_taken(machine: HearingMachine, volumes: Disks, wanted: Wanted) -> None:
    attach(machine, wanted)
    with pytest.raises(BootagentError, match=r"was made from snap-\w+ for app\.web\.\d+, not from snap-0other"):
        attach(machine, replace(wanted, snapshot="snap-0other"))


def test_a_volume_that_is_gone_is_made_again(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "FRESH_SECONDS", 0.5)
    monkeypatch.setattr(identity, "LAG_SECONDS", 0.5)
    first = attach(machine, wanted)
    detached(cloud, volumes, first)
    remove(cloud, volumes, first)
    second = attach(machine, wanted)
    assert list(volumes.volumes) == [second]
    record = records.load(machine, NAME)
    assert record and record.attempt > 1


def test_what_was_done_with_one_is_not_said_of_the_next(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted
) -> None:
    marker = machine.real("/var/lib/bootagent/prepared/web.1")
    marker.parent.mkdir(parents=True)
    marker.touch()  # an image has brought it
    wanted = replace(wanted, marker="/var/lib/bootagent/prepared/web.1")
    baked = Record(NAME, "i-baked", cloud.region, "vol-0fff", snapshot=wanted.snapshot, attached=True)
    records.save(machine, baked)
    first = attach(machine, wanted)
    assert not marker.exists() and records.is_pristine(machine, NAME)

    marker.touch()
    record = records.load(machine, NAME)
    assert record
    records.save(machine, replace(record, pristine=False))
    assert attach(machine, wanted) == first
    assert marker.exists() and not records.is_pristine(machine, NAME)

    detached(cloud, volumes, first)
    volumes.timing.delete = 1.0
    cloud.api.ec2(cloud.region).delete_volume(VolumeId=first)
    assert attach(machine, wanted) != first
    assert not marker.exists() and records.is_pristine(machine, NAME)


def test_data_that_is_gone_is_not_replaced_in_silence(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "FRESH_SECONDS", 0.5)
    monkeypatch.setattr(identity, "LAG_SECONDS", 0.5)
    wanted = wanted_by(cloud, name="role.db.data", purpose="volume db/data", kind=BLANK, by_snapshot=False)
    lost = attach(machine, wanted)
    detached(cloud, volumes, lost)
    remove(cloud, volumes, lost)
    for _ in range(2):
        with pytest.raises(MachineError, match=f"{lost}, the volume for volume db/data, is gone") as caught:
            attach(machine, wanted)
    assert volumes.volumes == {}
    assert caught.value.remedy
    tags = f"{INSTANCE}={wanted.instance_id}, {FOR}=volume db/data"
    assert caught.value.remedy.endswith(tags)
    path = machine.real("/var/lib/bootagent/volumes/role.db.data.json")
    assert "remove /var/lib/bootagent/volumes/role.db.data.json" in caught.value.remedy
    path.unlink()
    restored = made(cloud, volumes, {INSTANCE: wanted.instance_id, FOR: "volume db/data"})
    assert attach(machine, wanted) == restored


# --- what EC2 may do -----------------------------------------------------------------------------------------


def test_a_fresh_id_may_be_unknown_for_a_while(volumes: Disks, machine: HearingMachine, wanted: Wanted) -> None:
    volumes.faults.unseen = 4
    attach(machine, wanted)
    assert "waiting for EC2 to know the volume" in machine.notes
    assert len(volumes.volumes) == 1


def test_a_volume_in_error_is_deleted_and_made_again(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted
) -> None:
    volumes.faults.failing_volumes = 1
    volume_id = attach(machine, wanted)
    until(lambda: list(volumes.volumes) == [volume_id])
    record = records.load(machine, NAME)
    assert record and record.attempt == 2


def test_volumes_that_never_work_are_given_up_and_deleted(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted
) -> None:
    volumes.faults.failing_volumes = 3
    with pytest.raises(MachineError, match=r"made 3 volumes from snap-\w+ for app web.*KMS key the role may not use"):
        attach(machine, wanted)
    until(lambda: not volumes.volumes)
    attach(machine, wanted)
    assert len(volumes.volumes) == 1


def test_data_in_error_is_never_deleted(cloud: Cloud, volumes: Disks, machine: HearingMachine) -> None:
    wanted = wanted_by(cloud, name="role.db.data", purpose="volume db/data", kind=BLANK, by_snapshot=False)
    volume_id = attach(machine, wanted)
    broken(volumes, volume_id)
    with pytest.raises(MachineError, match=f"{volume_id}, the volume for volume db/data, is in error"):
        attach(machine, wanted)
    records.forget(machine, wanted.name)
    with pytest.raises(MachineError, match="is in error"):
        attach(machine, wanted)
    assert list(volumes.volumes) == [volume_id]


def broken(volumes: Disks, volume_id: str) -> None:
    """The disk behind a volume breaks."""
    volumes._ebs.volumes[volume_id].state = "error"


def test_device_names_that_are_taken_are_passed_over(volumes: Disks, machine: HearingMachine, wanted: Wanted) -> None:
    volumes.faults.occupied_devices = {"/dev/sdk", "/dev/sdf", "/dev/sdg"}
    attach(machine, replace(wanted, device="/dev/sdk"))
    (found,) = volumes.volumes.values()
    assert found.attachment and found.attachment.device == "/dev/sdh"
    record = records.load(machine, NAME)
    assert record and record.device == "/dev/sdh"


def test_no_device_name_is_free(volumes: Disks, machine: HearingMachine, wanted: Wanted) -> None:
    volumes.faults.occupied_devices = {f"/dev/sd{letter}" for letter in "fghijklmnop"}
    with pytest.raises(MachineError, match="no device name is free on i-"):
        attach(machine, wanted)


def test_a_stuck_attachment_is_tried_under_another_name_and_never_forced(
    volumes: Disks, machine: HearingMachine, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "STUCK_SECONDS", 0.6)
    volumes.faults.stuck_attachments = 2
    attach(machine, wanted)
    (found,) = volumes.volumes.values()
    assert found.attachment and found.attachment.device == "/dev/sdh"
    assert found.attachment.delete_on_termination
    assert volumes.forced == []


def test_what_is_always_stuck_is_given_up(
    volumes: Disks, machine: HearingMachine, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "STUCK_SECONDS", 0.3)
    volumes.faults.stuck_attachments = 99
    with pytest.raises(MachineError, match="got stuck 3 times"):
        attach(machine, wanted)
    assert volumes.forced == []


def test_the_deadline_is_kept_and_says_what_was_waited_for(
    volumes: Disks, machine: HearingMachine, wanted: Wanted
) -> None:
    volumes.timing.create = 3600.0
    start = time.monotonic()
    with pytest.raises(MachineError, match=r"gave up waiting for the volume to be available after 1 s \(volume vol-"):
        attach(machine, replace(wanted, within=1.0))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("action", "code", "status"),
    [
        ("DescribeVolumes", "RequestLimitExceeded", 503),
        ("CreateVolume", "InternalError", 500),
        ("AttachVolume", "RequestLimitExceeded", 503),
    ],
)
def test_throttling_is_waited_out(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted, action: str, code: str, status: int
) -> None:
    # More often than botocore tries by itself, which it does in growing pauses.
    cloud.api.fail("ec2", action, code=code, status=status, times=6)
    attach(machine, replace(wanted, within=90.0))
    assert "waiting for EC2 to answer" in machine.notes
    assert len(volumes.volumes) == 1


@pytest.mark.parametrize(
    ("action", "remedy"),
    [
        ("DescribeVolumes", "allow ec2:DescribeVolumes to the instance's role"),
        ("CreateVolume", "allow ec2:CreateVolume and ec2:CreateTags to the instance's role"),
        ("AttachVolume", "allow ec2:AttachVolume to the instance's role"),
        ("ModifyInstanceAttribute", "allow ec2:ModifyInstanceAttribute to the instance's role"),
    ],
)
def test_what_is_not_allowed_names_the_action(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted, action: str, remedy: str
) -> None:
    cloud.api.fail("ec2", action, code="UnauthorizedOperation", status=403)
    with pytest.raises(AwsError, match="UnauthorizedOperation") as caught:
        attach(machine, wanted)
    assert caught.value.remedy == remedy
    attach(machine, wanted)
    assert len(volumes.volumes) == 1


def test_a_full_account_is_told(volumes: Disks, machine: HearingMachine, wanted: Wanted) -> None:
    volumes.faults.volume_limit = 0
    with pytest.raises(AwsError, match=r"VolumeLimitExceeded.*bootagent gc"):
        attach(machine, wanted)


def test_a_snapshot_that_is_gone_is_told(volumes: Disks, machine: HearingMachine, wanted: Wanted) -> None:
    with pytest.raises(AwsError, match=r"InvalidSnapshot\.NotFound.*see that the snapshot still exists"):
        attach(machine, replace(wanted, snapshot="snap-0123456789abcdef0"))


# --- volumes that outlive instances --------------------------------------------------------------------------


@pytest.fixture
def data(cloud: Cloud) -> Wanted:
    return wanted_by(
        cloud,
        name="role.db.data",
        purpose="volume db/data",
        find=(("Data", "db"),),
        kind=BLANK,
        by_snapshot=False,
        delete_on_termination=False,
    )


def test_one_that_is_free_is_taken(cloud: Cloud, volumes: Disks, machine: HearingMachine, data: Wanted) -> None:
    theirs = made(cloud, volumes, {"Data": "db"})
    made(cloud, volumes, {"Data": "other"})
    assert attach(machine, data) == theirs
    attachment_ = volumes.volumes[theirs].attachment
    assert attachment_ and not attachment_.delete_on_termination
    record = records.load(machine, data.name)
    assert record and not record.blank
    assert len(volumes.volumes) == 2


def test_one_is_made_where_there_is_none(volumes: Disks, machine: HearingMachine, data: Wanted) -> None:
    volume_id = attach(machine, data)
    assert volumes.volumes[volume_id].tags == {
        "Data": "db",
        "Name": "volume db/data",
        FOR: "volume db/data",
        FORMAT: "blank",
        LASTING: "yes",
    }


def test_none_is_made_where_that_is_not_allowed(volumes: Disks, machine: HearingMachine, data: Wanted) -> None:
    with pytest.raises(BootagentError, match="there is no volume with the tags Data=db in eu-west-1a"):
        attach(machine, replace(data, create=False))
    assert volumes.volumes == {}


def test_one_of_several_is_never_guessed(cloud: Cloud, volumes: Disks, machine: HearingMachine, data: Wanted) -> None:
    both = sorted(made(cloud, volumes, {"Data": "db"}) for _ in range(2))
    with pytest.raises(BootagentError, match="several volumes in eu-west-1a bear the tags Data=db") as caught:
        attach(machine, data)
    assert all(volume_id in str(caught.value) for volume_id in both)


def test_the_one_attached_here_comes_before_one_that_is_free(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, data: Wanted
) -> None:
    mine = attach(machine, data)
    made(cloud, volumes, {"Data": "db"})
    records.forget(machine, data.name)
    assert attach(machine, data) == mine


def test_one_in_another_zone_is_refused_before_anything_is_made(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, data: Wanted
) -> None:
    there = made(cloud, volumes, {"Data": "db"}, zone="eu-west-1b")
    with pytest.raises(BootagentError, match=f"no volume in eu-west-1a .*, but there is {there} in eu-west-1b"):
        attach(machine, data)
    assert list(volumes.volumes) == [there]
    assert "AttachVolume" not in actions(cloud)


def test_tags_are_meant_to_the_letter(cloud: Cloud, volumes: Disks, machine: HearingMachine, data: Wanted) -> None:
    made(cloud, volumes, {"Data": "db-of-someone-else"})
    volume_id = attach(machine, replace(data, find=(("Data", "db*"),)))
    assert volumes.volumes[volume_id].tags["Data"] == "db*"


def test_the_holder_is_waited_for(cloud: Cloud, volumes: Disks, machine: HearingMachine, data: Wanted) -> None:
    with Cloud(tags={"Role": "db"}, beside=cloud) as other:
        volumes.add_machine(other, NoMachine())
        first = attach(machine, replace(data, instance_id=other.instance.instance_id))
        records.forget(machine, data.name)
        with pytest.raises(MachineError, match="waiting for the volume's holder to let it go") as caught:
            attach(machine, replace(data, within=0.5))
        assert other.instance.instance_id in str(caught.value)
        ending = threading.Timer(0.5, volumes.terminate_instance, [other])
        ending.start()
        try:
            assert attach(machine, data) == first
        finally:
            ending.join()
    assert list(volumes.volumes) == [first]


def test_a_record_of_one_that_lost_its_tags_is_not_followed(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, data: Wanted
) -> None:
    old = attach(machine, data)
    ec2 = cloud.api.ec2(cloud.region)
    ec2.detach_volume(VolumeId=old)
    ec2.delete_tags(Resources=[old], Tags=[{"Key": "Data"}])
    new = made(cloud, volumes, {"Data": "db"})
    assert attach(machine, data) == new


def test_one_that_is_gone_is_not_replaced_in_silence(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, data: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "FRESH_SECONDS", 0.5)
    monkeypatch.setattr(identity, "LAG_SECONDS", 0.5)
    lost = attach(machine, data)
    mark_formatted(machine, data.region, lost, "xfs")
    detached(cloud, volumes, lost)
    remove(cloud, volumes, lost)
    for _ in range(2):
        with pytest.raises(MachineError, match=f"{lost}, the volume for volume db/data, is gone") as caught:
            attach(machine, data)
    assert volumes.volumes == {}
    assert caught.value.remedy and caught.value.remedy.endswith("with the tags Data=db")
    restored = made(cloud, volumes, {"Data": "db"})
    assert attach(machine, data) == restored


def test_one_that_ec2_is_late_to_show_is_not_replaced(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, data: Wanted
) -> None:
    mine = attach(machine, data)
    volumes._ebs.volumes[mine].unseen = 4
    assert attach(machine, data) == mine
    assert list(volumes.volumes) == [mine]


def test_one_that_goes_while_its_holder_is_waited_for_is_not_replaced_in_silence(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, data: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "FRESH_SECONDS", 0.5)
    monkeypatch.setattr(identity, "LAG_SECONDS", 0.5)
    with Cloud(tags={"Role": "db"}, beside=cloud) as other:
        volumes.add_machine(other, NoMachine())
        first = attach(machine, replace(data, instance_id=other.instance.instance_id))
        mark_formatted(machine, data.region, first, "xfs")
        records.forget(machine, data.name)
        with pytest.raises(MachineError, match="waiting for the volume's holder to let it go"):
            attach(machine, replace(data, within=0.5))
        detached(cloud, volumes, first)
        remove(cloud, volumes, first)
        with pytest.raises(MachineError, match=f"{first}, the volume for volume db/data, is gone"):
            attach(machine, data)
    assert volumes.volumes == {}


def test_one_in_error_is_not_replaced_in_silence_where_no_record_tells_of_it(
    volumes: Disks, machine: HearingMachine, data: Wanted
) -> None:
    failed = attach(machine, data)
    mark_formatted(machine, data.region, failed, "xfs")
    broken(volumes, failed)
    records.forget(machine, data.name)  # another instance has none
    with pytest.raises(MachineError, match=f"Data=db: {failed} has them and is in error"):
        attach(machine, data)
    assert list(volumes.volumes) == [failed]


@pytest.mark.parametrize("of_snapshot", [False, True])
def test_one_that_fails_as_it_is_made_is_made_again(
    volumes: Disks, machine: HearingMachine, data: Wanted, snapshot: str, of_snapshot: bool
) -> None:
    volumes.faults.failing_volumes = 2
    volumes.timing.delete = 1.0  # EC2 shows those that were deleted for a while
    volume_id = attach(machine, replace(data, snapshot=snapshot) if of_snapshot else data)
    until(lambda: list(volumes.volumes) == [volume_id])


@pytest.mark.parametrize("recorded", [True, False])
def test_one_that_lost_its_tags_is_left_alone_and_does_not_come_back_by_its_token(
    cloud: Cloud,
    volumes: Disks,
    machine: HearingMachine,
    data: Wanted,
    monkeypatch: pytest.MonkeyPatch,
    recorded: bool,
) -> None:
    monkeypatch.setattr(identity, "LAG_SECONDS", 0.5)
    old = attach(machine, data)
    detached(cloud, volumes, old)
    cloud.api.ec2(cloud.region).create_tags(Resources=[old], Tags=[{"Key": "Data", "Value": "kept for a look"}])
    if not recorded:
        records.forget(machine, data.name)
    new = attach(machine, data)
    assert new != old
    assert volumes.volumes[old].state == "available"
    assert volumes.volumes[new].tags["Data"] == "db"
    assert attach(machine, data) == new


# --- killed --------------------------------------------------------------------------------------------------


class Killer:
    """Answers for EC2, and kills a process at its Nth call: before it is carried out, or when it has been."""

    def __init__(self, volumes: Disks, moment: int, *, before: bool) -> None:
        self._answer = EbsApi(volumes._ebs)
        self._left = moment
        self._before = before
        self.victim = 0
        self.ready = threading.Event()

    def __call__(self, form: Mapping[str, str]) -> tuple[int, bytes] | None:
        self.ready.wait(20)
        self._left -= 1
        if self._left == 0 and self._before:
            os.kill(self.victim, signal.SIGKILL)
            return self._answer({"Action": "DescribeVolumes"})  # nobody hears it
        answer = self._answer(form)
        if self._left == 0:
            os.kill(self.victim, signal.SIGKILL)
        return answer


CHILD = """\
import json, sys
from pathlib import Path
from bootagent.ebs import patience, volume, wanted
from bootagent.ebs.kind import VolumeKind
from bootagent.machine import Machine
patience.FIRST_PAUSE = patience.MOST_PAUSE = 0.05
root, task, fields = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if task == "release":
    volume.release(Machine(Path(root)), fields["name"], fields["instance_id"])
else:
    fields["find"] = tuple(tuple(pair) for pair in fields["find"])
    volume.attach(Machine(Path(root)), wanted.Wanted(**{**fields, "kind": VolumeKind(**fields["kind"])}))
"""


def killed_at(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, task: str, wanted: Wanted, moment: int, before: bool
) -> bool:
    """Whether a process at work on ``task`` was killed at its call number ``moment``, rather than finished before."""
    killer = Killer(volumes, moment, before=before)
    cloud.api.override("ec2", killer)
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(machine.root), task, json.dumps(asdict(wanted))],
            stdin=subprocess.DEVNULL,
            env=cloud.process_environment(),
        )
        killer.victim = child.pid
        killer.ready.set()
        code = child.wait(60)
    finally:
        cloud.api.override("ec2", EbsApi(volumes._ebs))
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize(("kind", "before"), [("own", True), ("own", False), ("lagging", False), ("lasting", False)])
def test_killed_at_any_call_the_next_run_ends_with_one_volume(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted, data: Wanted, kind: str, before: bool
) -> None:
    asked = data if kind == "lasting" else wanted
    if kind == "lagging":  # only the token tells what was made
        volumes.faults.search_lag = 3600.0
    moment, killed = 0, True
    while killed:
        moment += 1
        assert moment < 40
        killed = killed_at(cloud, volumes, machine, "attach", asked, moment, before)
        volume_id = attach(machine, asked)
        (found,) = volumes.volumes.values()
        assert found.id == volume_id
        assert found.attachment and found.attachment.state == "attached"
        assert found.attachment.delete_on_termination == asked.delete_on_termination
        (record,) = records.all(machine)
        assert (record.volume_id, record.attached, record.attempt) == (volume_id, True, 1)
        # From the beginning again, on an instance whose intent is another.
        cloud.api.ec2(cloud.region).detach_volume(VolumeId=volume_id)
        until(lambda: all(one.attachment is None for one in volumes.volumes.values()))
        remove(cloud, volumes, volume_id)
        records.forget(machine, asked.name)
        asked = replace(asked, name=f"{asked.name}.{moment}", purpose=f"{asked.purpose} {moment}")
    assert moment > 5


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_killed_while_letting_go_the_next_run_leaves_nothing(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted, before: bool
) -> None:
    moment, killed = 0, True
    while killed:
        moment += 1
        assert moment < 40
        asked = replace(wanted, name=f"{NAME}.{moment}")
        attach(machine, asked)
        killed = killed_at(cloud, volumes, machine, "release", asked, moment, before)
        release(machine, asked.name, asked.instance_id)
        until(lambda: not volumes.volumes)
        assert records.all(machine) == ()
    assert moment > 3


# --- letting go ----------------------------------------------------------------------------------------------


def test_a_volume_that_is_let_go_is_deleted(volumes: Disks, machine: HearingMachine, wanted: Wanted) -> None:
    attach(machine, wanted)
    release(machine, NAME, wanted.instance_id)
    until(lambda: not volumes.volumes)
    assert records.all(machine) == ()
    release(machine, NAME, wanted.instance_id)


def test_it_can_be_wanted_again(
    volumes: Disks, machine: HearingMachine, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "LAG_SECONDS", 0.5)
    first = attach(machine, wanted)
    release(machine, NAME, wanted.instance_id)
    assert attach(machine, wanted) != first
    until(lambda: len(volumes.volumes) == 1)


def test_data_is_let_go_and_stays(volumes: Disks, machine: HearingMachine, data: Wanted) -> None:
    volume_id = attach(machine, data)
    release(machine, data.name, data.instance_id)
    assert volumes.volumes[volume_id].state == "available"
    assert records.all(machine) == ()


def test_without_delete_it_is_only_detached(volumes: Disks, machine: HearingMachine, wanted: Wanted) -> None:
    volume_id = attach(machine, wanted)
    release(machine, NAME, wanted.instance_id, delete=False)
    assert volumes.volumes[volume_id].state == "available"
    assert records.all(machine) == ()


def test_what_an_operator_wants_to_stay_stays(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted
) -> None:
    volume_id = attach(machine, wanted)
    attribute = {"DeviceName": "/dev/sdf", "Ebs": {"VolumeId": volume_id, "DeleteOnTermination": False}}
    cloud.api.ec2(cloud.region).modify_instance_attribute(
        InstanceId=wanted.instance_id,
        BlockDeviceMappings=[attribute],  # type: ignore[list-item]
    )
    release(machine, NAME, wanted.instance_id)
    assert volumes.volumes[volume_id].state == "available"
    assert volumes.volumes[volume_id].tags[LASTING] == "yes"


def test_one_that_another_record_names_is_left_alone(volumes: Disks, machine: HearingMachine, wanted: Wanted) -> None:
    volume_id = attach(machine, wanted)
    record = records.load(machine, NAME)
    assert record
    records.save(machine, replace(record, name="app.web.other"))
    release(machine, "app.web.other", wanted.instance_id)
    assert volumes.volumes[volume_id].state == "in-use"
    assert [one.name for one in records.all(machine)] == [NAME]


def test_what_an_image_brought_along_is_not_ours_to_delete(
    cloud: Cloud, volumes: Disks, machine: HearingMachine, wanted: Wanted
) -> None:
    volume_id = attach(machine, wanted)
    release(machine, NAME, "i-launched-from-an-image")
    assert volumes.volumes[volume_id].state == "in-use"
    assert records.all(machine) == ()


def test_one_that_is_still_in_use_is_waited_for_and_stays_known(
    volumes: Disks, machine: HearingMachine, wanted: Wanted
) -> None:
    attach(machine, wanted)
    volumes.faults.stuck_detachments = 1
    with pytest.raises(MachineError, match="waiting for the volume to be detached after 1 s"):
        release(machine, NAME, wanted.instance_id, within=1.0)
    assert [one.name for one in records.all(machine)] == [NAME]
    assert volumes.forced == []
