"""What was left over: volumes whose instance is gone, and snapshots too old to keep.

Volumes normally go with their instance (DeleteOnTermination), and snapshots are pruned by the next one. What is found
here was made in a run that was cut short. Nothing that holds the only copy of data is ever a stray.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Literal

from bootagent import aws, records
from bootagent.ebs import owner, snapshots
from bootagent.ebs.calls import Calls, Volume
from bootagent.ebs.patience import Patience
from bootagent.ebs.snapshots import Snapshot
from bootagent.errors import AwsError
from bootagent.machine import Machine

#: A volume younger than this may belong to a run that is under way.
YOUNG = timedelta(hours=1)
CALLS_SECONDS = 300.0
#: How many of a series stay when its tags do not say.
DEFAULT_KEEP = 5

#: Filters take up to 200 values (EC2 API Reference, "Filter").
_AT_ONCE = 200
#: Of apps a volume holds a copy, for which there is a snapshot; any other may hold data.
_REPLACEABLE = "app "


@dataclass(frozen=True)
class Stray:
    """Something that nobody needs. ``purpose`` says what for it was made; ``since`` is when, in RFC 3339.

    ``instance`` is whose it was, ``why`` a clause that says why it is a stray.
    """

    kind: Literal["volume", "snapshot"]
    id: str
    name: str | None
    purpose: str
    instance: str | None
    since: str
    size_gib: int
    why: str


@dataclass(frozen=True)
class Removal:
    """What became of a stray: ``error`` says why it is still there, None: it is deleted."""

    stray: Stray
    error: str | None = None


def strays(
    machine: Machine, region: str | None, *, instance_id: str | None = None, zone: str | None = None
) -> list[Stray]:
    """What this agent left over in a region, or in one zone of it: volumes, then snapshots, oldest first.

    ``instance_id`` is the instance that this is; the records here tell which of its volumes it needs.
    Raises AwsError.
    """
    calls = Calls(Patience(machine, CALLS_SECONDS), region)
    where = {"availability_zone": zone} if zone else {}
    loose = [one for one in calls.volumes((), tag_key=owner.INSTANCE, **where) if _is_loose(one)]
    living = _living(calls, region, {one.tags[owner.INSTANCE] for one in loose})
    needed = {one.volume_id for one in records.all(machine, instance_id)} if instance_id else set()
    found = []
    for volume in loose:
        if volume.id not in needed and (why := _why_stray(volume, living, instance_id)):
            found.append(_stray_volume(volume, why))
    return [*found, *(_stray_snapshot(one) for one in _old_snapshots(calls, region))]


def delete(machine: Machine, region: str | None, found: Iterable[Stray]) -> list[Removal]:
    """Delete strays, each after another look at it. What cannot be deleted keeps none of the others."""
    return [Removal(one, _deleted(machine, region, one)) for one in found]


# --- volumes -------------------------------------------------------------------------------------------------


def _is_loose(volume: Volume) -> bool:
    free = volume.state in ("available", "error") and not volume.attachments
    return free and owner.LASTING not in volume.tags and not _may_hold_data(volume)


def _may_hold_data(volume: Volume) -> bool:
    """Whether there may be something on it that no snapshot has: somebody detached it to keep that, it seems."""
    replaceable = volume.tags.get(owner.FOR, "").startswith(_REPLACEABLE) and owner.SNAPSHOT in volume.tags
    return not replaceable and not owner.is_blank(volume.tags)


def _why_stray(volume: Volume, living: set[str], instance_id: str | None) -> str | None:
    whose = volume.tags[owner.INSTANCE]
    if whose not in living:
        return f"its instance {whose} is gone"
    young = datetime.now(timezone.utc) - datetime.fromisoformat(volume.created) < YOUNG
    # Of another instance that is there, its own records tell.
    return "this instance does not need it" if whose == instance_id and not young else None


def _living(calls: Calls, region: str | None, wanted: set[str]) -> set[str]:
    """Which of the instances are there, if only stopped."""
    ids = sorted(wanted)
    found: set[str] = set()
    for start in range(0, len(ids), _AT_ONCE):
        found |= _described(calls, region, ids[start : start + _AT_ONCE])
    return found


def _described(calls: Calls, region: str | None, ids: Sequence[str]) -> set[str]:
    def ask() -> set[str]:
        # By a filter: an id that is long gone is an error otherwise.
        pages = aws.ec2(region).get_paginator("describe_instances")
        return {
            instance["InstanceId"]
            for page in pages.paginate(Filters=[{"Name": "instance-id", "Values": list(ids)}])
            for reservation in page["Reservations"]
            for instance in reservation["Instances"]
            if instance["State"]["Name"] != "terminated"
        }

    return calls.patience.call("see which instances are there", "ec2:DescribeInstances", ask)


def _stray_volume(volume: Volume, why: str) -> Stray:
    return Stray(
        kind="volume",
        id=volume.id,
        name=volume.tags.get("Name"),
        purpose=volume.tags.get(owner.FOR, ""),
        instance=volume.tags[owner.INSTANCE],
        since=volume.created,
        size_gib=volume.size_gib,
        why=why,
    )


# --- snapshots -----------------------------------------------------------------------------------------------


def _old_snapshots(calls: Calls, region: str | None) -> list[Snapshot]:
    """Of each series what the next snapshot of one of its volumes would prune: the newest says how many stay."""
    series: dict[str, list[Snapshot]] = {}
    for one in snapshots.with_tag_key(region, owner.SERIES):  # newest first
        series.setdefault(one.tags[owner.SERIES], []).append(one)
    old: dict[str, Snapshot] = {}
    for members in series.values():
        living = {found for found in {one.volume_id for one in members} if found and calls.volume(found)}
        for volume_id in (*living,) or (None,):
            line = snapshots.continued(members, volume_id, living)
            old |= {one.id: one for one in snapshots.surplus(line, _keep(line[0]))}
    return sorted(old.values(), key=lambda one: (one.started, one.id))


def _keep(newest: Snapshot) -> int:
    said = newest.tags.get(owner.KEEP, "")
    return int(said) if said.isdigit() and int(said) > 0 else DEFAULT_KEEP


def _stray_snapshot(one: Snapshot) -> Stray:
    return Stray(
        kind="snapshot",
        id=one.id,
        name=one.tags.get("Name"),
        purpose=one.tags[owner.SERIES],
        instance=None,
        since=one.started.isoformat(),
        size_gib=one.size_gib,
        why="it is in error" if one.state == "error" else "newer ones of its series are there",
    )


# --- deleting ------------------------------------------------------------------------------------------------


def _deleted(machine: Machine, region: str | None, stray: Stray) -> str | None:
    calls = Calls(Patience(machine, CALLS_SECONDS), region)
    try:
        if stray.kind == "snapshot":
            gone = snapshots.delete(calls.patience, region, stray.id)
            return None if gone else "others use it, such as an image"
        volume = calls.volume(stray.id)
        if volume is None or volume.state in ("deleting", "deleted"):
            return None
        if not _is_loose(volume):
            return f"it is {volume.state} now"
        calls.delete(stray.id)
    except AwsError as error:
        return str(error)
    return None
