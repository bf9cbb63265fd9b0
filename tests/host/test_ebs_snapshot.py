"""Snapshots taken of real filesystems on real disks: frozen for the moment, thawed whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bootagent import disks as devices
from bootagent import records
from bootagent.ebs.snapshots import newest
from bootagent.ebs.volume import attach
from bootagent.errors import BootagentError, MachineError, UsageError
from bootagent.machine import Transfer
from bootagent.publish import freeze
from bootagent.publish.snapshot import Wanted, take
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from bootagent.steps.attached_volume import AttachedVolume
from tests.host.ebs_world import HearingMachine, made, wanted_by
from tests.waiting import until

pytest_plugins = ("tests.host.ebs_bench", "tests.host.disks")

TAGS = (("Name", "cp"), ("Environment", "staging"))
POINT = "/cp"


@pytest.fixture
def volume_id(cloud: Cloud, disks: Disks, machine: HearingMachine, tmp_path: Path) -> Iterator[str]:
    """A volume mounted at POINT, with the file ``app`` on it."""
    (tmp_path / "app").write_text("one")
    origin = disks.snapshot_of(tmp_path, tags={"Origin": "yes"})
    found = attach(machine, wanted_by(cloud, snapshot=origin))
    device = devices.wait(machine, found, 20.0)
    point = machine.real(POINT)
    point.mkdir()
    run("mount", "-t", "xfs", "-o", "nouuid", str(device), str(point))
    yield found
    # A writer that was killed while it was frozen takes a moment to go.
    until(lambda: subprocess.run(["umount", str(point)], capture_output=True, timeout=60, check=False).returncode == 0)


@pytest.fixture
def wanted(cloud: Cloud) -> Wanted:
    return Wanted(POINT, TAGS, region=cloud.region, within=30.0)


def run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def writes(point: Path) -> bool:
    """Whether a write to a filesystem comes to its end; not while it is frozen."""
    file = point / "written"
    # Whichever thread asks: the mounts are those of the main one.
    writer = subprocess.Popen(["nsenter", f"--mount=/proc/{os.getpid()}/ns/mnt", "touch", str(file)])
    try:
        return writer.wait(2) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        writer.kill()  # is heard when the filesystem is thawed


def content(disks: Disks, snapshot_id: str, name: str, tmp_path: Path) -> str:
    """A file of a snapshot, read through a mount of its own, for which the log is played back."""
    point, image = tmp_path / "seen", tmp_path / "image"
    point.mkdir(exist_ok=True)
    run("cp", "--sparse=always", str(disks.snapshots[snapshot_id].file), str(image))
    run("mount", "-o", "loop,nouuid", str(image), str(point))
    try:
        return (point / name).read_text()
    finally:
        run("umount", str(point))


# --- taking --------------------------------------------------------------------------------------------------


def test_what_was_written_before_is_in_the_snapshot(
    disks: Disks, machine: HearingMachine, volume_id: str, wanted: Wanted, tmp_path: Path
) -> None:
    (machine.real(POINT) / "app").write_text("two")  # in memory only, were it not frozen
    taken = take(machine, replace(wanted, description="release two"))
    assert (taken.volume_id, taken.mountpoint, taken.state, taken.size_gib) == (volume_id, POINT, "completed", 1)
    found = disks.snapshots[taken.snapshot_id]
    assert found.tags == {**dict(TAGS), "bootagent:series": "Environment=staging, Name=cp", "bootagent:keep": "5"}
    assert found.description == "release two"
    assert content(disks, taken.snapshot_id, "app", tmp_path) == "two"
    assert writes(machine.real(POINT))
    assert newest(wanted.region, {"Name": "cp"}, "self").id == taken.snapshot_id
    assert any(isinstance(event, Transfer) and event.done == event.total for event in machine.heard)


def test_it_is_frozen_while_the_snapshot_is_taken(
    cloud: Cloud, disks: Disks, machine: HearingMachine, volume_id: str, wanted: Wanted
) -> None:
    seen: list[bool] = []
    answer = cloud.api._overrides["ec2", ""]

    def watch(form: object) -> object:
        if form["Action"] == "CreateSnapshot":  # type: ignore[index]
            seen.append(writes(machine.real(POINT)))
        return answer(form)  # type: ignore[arg-type]

    cloud.api.override("ec2", watch)  # type: ignore[arg-type]
    taken = take(machine, wanted)
    assert seen == [False]
    assert 2 <= taken.frozen_seconds < 30
    until(lambda: writes(machine.real(POINT)))


def test_a_volume_is_named_by_its_id_too(disks: Disks, machine: HearingMachine, volume_id: str, wanted: Wanted) -> None:
    taken = take(machine, replace(wanted, what=volume_id))
    assert taken.mountpoint == str(machine.real(POINT))
    assert "frozen" in machine.notes


def test_a_volume_that_is_not_mounted_here_is_not_frozen(
    cloud: Cloud, disks: Disks, machine: HearingMachine, wanted: Wanted, tmp_path: Path
) -> None:
    origin = disks.snapshot_of(tmp_path, tags={})
    volume = attach(machine, wanted_by(cloud, snapshot=origin))
    devices.wait(machine, volume, 20.0)
    taken = take(machine, replace(wanted, what=volume))
    assert (taken.mountpoint, taken.frozen_seconds) == (None, 0.0)
    assert "not mounted here, so not frozen" in machine.notes


# --- pruning -------------------------------------------------------------------------------------------------


def test_old_ones_of_the_series_go(
    disks: Disks, machine: HearingMachine, volume_id: str, wanted: Wanted, tmp_path: Path
) -> None:
    byhand = disks.snapshot_of(tmp_path, tags=dict(TAGS))
    other = take(machine, replace(wanted, tags=(("Name", "cp"),))).snapshot_id
    two = replace(wanted, keep=2)
    first, second = (take(machine, two).snapshot_id for _ in range(2))
    disks.hold(first)
    third = take(machine, two)
    assert (third.pruned, third.spared) == ((), (first,))
    fourth = take(machine, two)
    assert (fourth.pruned, fourth.spared) == ((second,), (first,))
    left = {third.snapshot_id, fourth.snapshot_id, first, other, byhand}
    assert left < disks.snapshots.keys()
    assert second not in disks.snapshots
    assert "not pruned: others use it" in machine.notes


def test_those_of_another_volume_stay_while_it_is_there(
    cloud: Cloud, disks: Disks, machine: HearingMachine, volume_id: str, wanted: Wanted
) -> None:
    other = made(cloud, disks, {})
    one = replace(wanted, keep=1)
    theirs = take(machine, replace(one, what=other)).snapshot_id
    first = take(machine, one)
    second = take(machine, one)
    assert (first.pruned, second.pruned) == ((), (first.snapshot_id,))
    cloud.api.ec2(cloud.region).delete_volume(VolumeId=other)
    until(lambda: other not in disks.volumes)
    assert set(take(machine, one).pruned) == {second.snapshot_id, theirs}


def test_when_it_fails_the_old_ones_stay(disks: Disks, machine: HearingMachine, volume_id: str, wanted: Wanted) -> None:
    one = replace(wanted, keep=1)
    first = take(machine, one).snapshot_id
    disks.faults.failing_snapshots = 1
    with pytest.raises(MachineError, match="EC2 could not complete snap-"):
        take(machine, one)
    assert disks.snapshots[first].state == "completed"
    third = take(machine, one)
    assert len(third.pruned) == 2  # the one that failed as well
    assert first in third.pruned
    assert {found.id for found in disks.snapshots.values() if "bootagent:series" in found.tags} == {third.snapshot_id}


def test_one_that_takes_long_is_waited_for_until_the_deadline(
    disks: Disks, machine: HearingMachine, volume_id: str, wanted: Wanted
) -> None:
    first = take(machine, replace(wanted, keep=1)).snapshot_id
    disks.faults.pending_snapshots = 2
    with pytest.raises(MachineError, match="gave up waiting for the snapshot to be completed after 1 s"):
        take(machine, replace(wanted, keep=1, within=1.0))
    taken = take(machine, replace(wanted, keep=1, wait=False))
    assert (taken.state, taken.pruned) == ("pending", ())
    assert first in disks.snapshots
    assert newest(wanted.region, dict(TAGS), "self").id == first


def test_too_many_pending_ones_are_told_before_anything_is_frozen(
    disks: Disks, machine: HearingMachine, volume_id: str, wanted: Wanted
) -> None:
    disks.faults.pending_snapshots = 5
    for _ in range(5):
        take(machine, replace(wanted, wait=False))
    machine.heard.clear()
    with pytest.raises(MachineError, match=r"5 snapshots of vol-\w+ are pending, and EC2 allows no more"):
        take(machine, wanted)
    assert machine.notes == []


# --- refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"what": "/"}, "the root filesystem is not frozen"),
        ({"what": "/nowhere"}, "nothing is mounted at /nowhere"),
        ({"what": "cp"}, "'cp' is neither an absolute path nor a volume's id"),
        ({"what": "vol-0123456789abcdef0"}, "EC2 knows no volume vol-0123456789abcdef0 in eu-west-1"),
        ({"tags": ()}, "a snapshot without tags would not be found again"),
        ({"tags": (("bootagent:keep", "9"),)}, "the tag bootagent:keep is not for you to give"),
        ({"tags": (("A", "1"), ("A", "2"))}, "a tag is given twice"),
        ({"keep": 0}, "at least one snapshot is to be kept"),
    ],
)
def test_what_cannot_be_is_refused(
    disks: Disks, machine: HearingMachine, wanted: Wanted, fields: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        take(machine, replace(wanted, **fields))  # type: ignore[arg-type]
    assert disks.snapshots == {}


def test_the_root_filesystem_is_not_frozen_by_another_name(
    disks: Disks, machine: HearingMachine, wanted: Wanted, tmp_path: Path
) -> None:
    point = machine.real("/bound")
    point.mkdir()
    run("mount", "--bind", "/usr", str(point))
    try:
        with pytest.raises(UsageError, match="/bound is on the root filesystem"):
            take(machine, replace(wanted, what="/bound"))
    finally:
        run("umount", str(point))


def test_what_is_no_volume_is_refused(disks: Disks, machine: HearingMachine, wanted: Wanted) -> None:
    point = machine.real("/tmpfs")
    point.mkdir()
    run("mount", "-t", "tmpfs", "none", str(point))
    try:
        with pytest.raises(UsageError, match="/tmpfs is on no block device"):
            take(machine, replace(wanted, what="/tmpfs"))
    finally:
        run("umount", str(point))


# --- thawed whatever happens ---------------------------------------------------------------------------------


def test_a_refused_snapshot_thaws(
    cloud: Cloud, disks: Disks, machine: HearingMachine, volume_id: str, wanted: Wanted
) -> None:
    origins = disks.snapshots.keys()
    cloud.api.fail("ec2", "CreateSnapshot", code="UnauthorizedOperation", status=403)
    with pytest.raises(BootagentError, match="allow ec2:CreateSnapshot and ec2:CreateTags"):
        take(machine, wanted)
    assert writes(machine.real(POINT))
    assert machine.notes[-2:] == ["frozen", "thawed"]
    assert disks.snapshots.keys() == origins


HOLDER = """\
import sys, time
from pathlib import Path
from bootagent.machine import Machine
from bootagent.publish import freeze
freeze.HOLD_SECONDS = float(sys.argv[2])
with freeze.frozen(Machine(Path("/")), sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_thaws(machine: HearingMachine, volume_id: str, end: signal.Signals) -> None:
    point = machine.real(POINT)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(point), "120"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    assert not writes(point)
    os.killpg(holder.pid, end)  # with its children, but for the one that minds it
    holder.wait(20)
    until(lambda: writes(point))


def test_a_process_that_hangs_is_not_waited_for(machine: HearingMachine, volume_id: str) -> None:
    point = machine.real(POINT)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(point), "4"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        assert not writes(point)
        os.kill(holder.pid, signal.SIGSTOP)
        until(lambda: writes(point))
    finally:
        holder.kill()
        holder.wait()


def test_a_hold_that_ended_too_early_is_told(
    machine: HearingMachine, volume_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "HOLD_SECONDS", 0.5)
    with (
        pytest.raises(MachineError, match=r"could be held for 0\.5 s only"),
        freeze.frozen(machine, str(machine.real(POINT))),
    ):
        time.sleep(1.0)
    assert writes(machine.real(POINT))


def test_a_snapshot_of_a_filesystem_that_was_not_held_is_deleted(
    cloud: Cloud,
    disks: Disks,
    machine: HearingMachine,
    volume_id: str,
    wanted: Wanted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(freeze, "HOLD_SECONDS", 0.0)
    before = set(disks.snapshots)
    with pytest.raises(MachineError, match="could be held"):
        take(machine, wanted)
    assert set(disks.snapshots) == before


def test_a_killed_guardian_does_not_leave_it_frozen(machine: HearingMachine, volume_id: str) -> None:
    point = machine.real(POINT)
    with pytest.raises(MachineError, match="could be held"), freeze.frozen(machine, str(point)) as hold:
        hold._guardian.kill()
        hold._guardian.wait(10)
    assert writes(point)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(hold._guardian.pid, signal.SIGKILL)  # the cat(1) it waited for


def test_what_somebody_else_holds_stays_held(machine: HearingMachine, volume_id: str) -> None:
    point = machine.real(POINT)
    run("fsfreeze", "--freeze", str(point))
    try:
        with pytest.raises(MachineError, match="cannot freeze"), freeze.frozen(machine, str(point)):
            raise AssertionError("it was frozen already")
        assert not writes(point)
    finally:
        run("fsfreeze", "--unfreeze", str(point))


# --- the step ------------------------------------------------------------------------------------------------


def test_a_volume_that_is_there_is_not_asked_about(
    cloud: Cloud, disks: Disks, machine: HearingMachine, tmp_path: Path
) -> None:
    origin = disks.snapshot_of(tmp_path, tags={})
    disks.faults.device_late = 1.0
    step = AttachedVolume(wanted_by(cloud, snapshot=origin))
    assert str(step) == f"attach the volume made from {origin} for app web"
    assert not step.is_satisfied(machine)
    step.apply(machine)
    cloud.api.forget_calls()
    assert step.is_satisfied(machine)
    assert cloud.count("ec2") == 0
    assert not AttachedVolume(replace(step.wanted, instance_id="i-another")).is_satisfied(machine)
    assert not AttachedVolume(replace(step.wanted, snapshot="snap-0another")).is_satisfied(machine)
    record = records.load(machine, step.wanted.name)
    assert record
    cloud.api.ec2(cloud.region).detach_volume(VolumeId=str(record.volume_id))
    until(lambda: not step.is_satisfied(machine))
    step.apply(machine)
    assert step.is_satisfied(machine)
    assert len(disks.volumes) == 1


def test_on_xen_nothing_is_made(cloud: Cloud, disks: Disks, machine: HearingMachine, tmp_path: Path) -> None:
    origin = disks.snapshot_of(tmp_path, tags={})
    machine.real("/sys/block/xvda").mkdir(parents=True)
    with pytest.raises(BootagentError, match="xvda is a disk of a Xen instance"):
        AttachedVolume(wanted_by(cloud, snapshot=origin)).apply(machine)
    assert disks.volumes == {}
