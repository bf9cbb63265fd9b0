"""A snapshot of a volume, taken where it is mounted, and the old ones of its series pruned.

The filesystem is frozen for the moment of the call: a snapshot holds what the volume held then, however long EC2 takes
to complete it (Amazon EBS User Guide, "Create Amazon EBS snapshots").
"""

from __future__ import annotations

import os
import re
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bootagent import disks, mounts
from bootagent.ebs import owner, snapshots
from bootagent.ebs.attachment import FRESH_SECONDS
from bootagent.ebs.calls import Calls
from bootagent.ebs.owner import Tags
from bootagent.ebs.patience import Patience
from bootagent.ebs.snapshots import Snapshot
from bootagent.errors import AwsError, MachineError, UsageError
from bootagent.machine import Machine, Note, Transfer
from bootagent.publish.freeze import Hold, frozen

GIB = 1024**3
#: Of one volume ("Amazon EBS quotas").
MOST_PENDING = 5
#: How long the calls before and after the snapshot may take, in all.
CALLS_SECONDS = 300.0
#: A first snapshot of a big volume takes hours.
COMPLETE_SECONDS = 24 * 3600.0

_VOLUME = re.compile(r"vol-[0-9a-f]{8,17}")
_SERIAL = re.compile(r"vol([0-9a-f]{8,17})")


@dataclass(frozen=True)
class Wanted:
    """The snapshot to take: of ``what``, a mountpoint or a volume's id.

    ``tags`` make a series, of which ``keep`` stay; those of another volume that is there are not touched. With ``wait``
    it is waited for, ``within`` so many seconds.
    """

    what: str
    tags: Tags
    keep: int = 5
    region: str | None = None
    description: str | None = None
    wait: bool = True
    within: float = COMPLETE_SECONDS


@dataclass(frozen=True)
class Taken:
    """What came of it. ``state`` is pending or completed; ``mountpoint`` None: it was not mounted here, nor frozen.

    ``frozen_seconds`` is how long writers had to wait. ``pruned`` are the old ones that went, ``spared`` those that
    should have but are in use by others.
    """

    snapshot_id: str
    volume_id: str
    mountpoint: str | None
    state: str
    size_gib: int | None
    frozen_seconds: float
    pruned: tuple[str, ...]
    spared: tuple[str, ...]


@dataclass(frozen=True)
class _Target:
    volume_id: str
    point: str | None  # a real path


def take(machine: Machine, wanted: Wanted) -> Taken:
    """Take a snapshot, wait until it is completed, and delete the old ones of its series.

    Raises UsageError for what cannot be asked for, MachineError when the filesystem cannot be frozen, the snapshot
    fails or is not completed in time, and AwsError. The old ones stay then.
    """
    _check(wanted)
    target = _target(machine, wanted.what)
    patience = Patience(machine, CALLS_SECONDS)
    _refuse_unready(Calls(patience, wanted.region), target, wanted)
    snapshot_id, held = _take(machine, target, wanted)
    machine.tell(Note("snapshot taken", {"snapshot": snapshot_id, "volume": target.volume_id}))
    if wanted.wait:
        now: Snapshot | None = _completed(machine, wanted, snapshot_id)
    else:
        now = snapshots.look(patience, wanted.region, snapshot_id)
    pruned, spared = _prune(machine, wanted, target.volume_id)
    return Taken(
        snapshot_id=snapshot_id,
        volume_id=target.volume_id,
        mountpoint=wanted.what if wanted.what.startswith("/") else target.point,
        state=now.state if now else "pending",
        size_gib=now.size_gib if now else None,
        frozen_seconds=round(held, 3),
        pruned=pruned,
        spared=spared,
    )


# --- of what -------------------------------------------------------------------------------------------------


def _check(wanted: Wanted) -> None:
    if not wanted.tags:
        raise UsageError("a snapshot without tags would not be found again", remedy="name some with --tag KEY=VALUE")
    for key, _ in wanted.tags:
        if key.startswith((owner.PREFIX, "aws:")):
            raise UsageError(f"the tag {key} is not for you to give", remedy="use another key")
    if len({key for key, _ in wanted.tags}) < len(wanted.tags):
        raise UsageError("a tag is given twice", remedy="name each key once")
    if wanted.keep < 1:
        raise UsageError("at least one snapshot is to be kept", remedy="use --keep 1, or more")


def _target(machine: Machine, what: str) -> _Target:
    if _VOLUME.fullmatch(what):
        return _Target(what, _point_of(machine, what))
    if not what.startswith("/"):
        raise UsageError(f"{what!r} is neither an absolute path nor a volume's id")
    mount = mounts.at(machine, what)
    if what.rstrip("/") == "":
        raise UsageError("the root filesystem is not frozen: nothing would run", remedy="name the volume's mountpoint")
    if mount is None:
        raise UsageError(f"nothing is mounted at {what}", remedy="name the volume's mountpoint; findmnt lists them")
    _refuse_root(machine, mount.device, what)
    return _Target(_volume_of(machine, mount.device, what), mount.point)


def _point_of(machine: Machine, volume_id: str) -> str | None:
    """Where a volume is mounted, itself or a partition of it; None: nowhere."""
    device = disks.find(machine, volume_id)
    if device is None:
        return None
    numbers = _numbers(machine.real("/sys/block") / device.name)
    found = [mount for mount in mounts.table() if mount.device in numbers]
    for mount in found:
        _refuse_root(machine, mount.device, volume_id)
    if len({mount.device for mount in found}) > 1:
        raise UsageError(
            f"{volume_id} has several filesystems mounted, and they cannot be frozen at once",
            remedy="keep one filesystem on a volume",
        )
    return found[0].point if found else None


def _refuse_root(machine: Machine, device: str, what: str) -> None:
    roots = [mounts.topmost(mounts.table(), "/"), mounts.at(machine, "/")]
    if any(root and root.device == device for root in roots):
        raise UsageError(
            f"{what} is on the root filesystem, which is not frozen: nothing would run",
            remedy="keep what is to be snapshot on a volume of its own",
        )


def _volume_of(machine: Machine, number: str, what: str) -> str:
    """The id of the volume that is the block device ``number``, or has it as a partition."""
    for entry in sorted(machine.real("/sys/block").glob("*")):
        if number in _numbers(entry):
            serial = _text(entry / "device/serial")
            if found := _SERIAL.fullmatch(serial):
                return f"vol-{found[1]}"
            raise UsageError(
                f"{what} is on {entry.name}, whose serial number {serial!r} is no EBS volume's",
                remedy="name the volume: bootagent snapshot vol-…; it is not frozen then",
            )
    raise UsageError(f"{what} is on no block device of this machine", remedy="name the mountpoint of an EBS volume")


def _numbers(entry: Path) -> set[str]:
    """The MAJOR:MINOR of a disk in /sys/block, and of its partitions."""
    return {_text(file) for file in (entry / "dev", *entry.glob(f"{entry.name}*/dev"))} - {""}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _refuse_unready(calls: Calls, target: _Target, wanted: Wanted) -> None:
    """Find out what can be found out before anything is held up; the credentials are fetched by it, too."""
    if calls.volume(target.volume_id) is None:
        raise UsageError(f"EC2 knows no volume {target.volume_id} in {wanted.region or 'this region'}")
    found = snapshots.listed(wanted.region, ((owner.SERIES, snapshots.series(wanted.tags)),))
    pending = [one.id for one in found if one.state == "pending" and one.volume_id == target.volume_id]
    if len(pending) >= MOST_PENDING:
        raise MachineError(
            f"{len(pending)} snapshots of {target.volume_id} are pending, and EC2 allows no more: {', '.join(pending)}",
            remedy="try again when one of them is completed",
        )


# --- the snapshot --------------------------------------------------------------------------------------------


def _take(machine: Machine, target: _Target, wanted: Wanted) -> tuple[str, float]:
    """The id of the snapshot, and for how many seconds the filesystem was held."""
    ours = ((owner.SERIES, snapshots.series(wanted.tags)), (owner.KEEP, str(wanted.keep)))
    description = wanted.description or f"{target.point or target.volume_id} of {os.uname().nodename}, by bootagent"
    made: str | None = None
    holding: AbstractContextManager[Hold | None] = nullcontext()
    if target.point:
        holding = frozen(machine, target.point)
    else:
        machine.tell(Note("not mounted here, so not frozen", {"volume": target.volume_id}))
    try:
        with holding as hold:
            made = snapshots.create(wanted.region, target.volume_id, description, (*wanted.tags, *ours))
    except MachineError:
        if made:  # not held until the call had returned: what it holds may be torn
            snapshots.delete(Patience(machine, CALLS_SECONDS), wanted.region, made)
        raise
    return made, hold.seconds if hold else 0.0


def _completed(machine: Machine, wanted: Wanted, snapshot_id: str) -> Snapshot:
    patience = Patience(machine, wanted.within)
    start = time.monotonic()
    last = -1
    while True:
        found = snapshots.look(patience, wanted.region, snapshot_id)
        if found and found.progress != last:
            last = found.progress
            total = found.size_gib * GIB
            machine.tell(Transfer(f"snapshot {snapshot_id}", total * last // 100, total))
        if found and found.state == "completed":
            return found
        if found and found.state == "error":
            raise MachineError(f"EC2 could not complete {snapshot_id}; the old snapshots stay", remedy="take another")
        if found is None and time.monotonic() - start > FRESH_SECONDS:
            raise MachineError(f"{snapshot_id} is gone before it was completed; the old snapshots stay")
        patience.wait(
            "waiting for the snapshot to be completed",
            {"snapshot": snapshot_id},
            remedy="it goes on by itself; the old ones are pruned the next time",
        )


def _prune(machine: Machine, wanted: Wanted, volume_id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which of the series were deleted, and which are in use by others."""
    calls = Calls(Patience(machine, CALLS_SECONDS), wanted.region)
    series: Tags = ((owner.SERIES, snapshots.series(wanted.tags)),)
    found = snapshots.listed(wanted.region, (*series, *wanted.tags))
    others = {one.volume_id for one in found if one.volume_id} - {volume_id}
    found = snapshots.continued(found, volume_id, {one for one in others if calls.volume(one)})
    pruned: list[str] = []
    spared: list[str] = []
    for one in snapshots.surplus(found, wanted.keep):
        try:
            gone = snapshots.delete(Patience(machine, CALLS_SECONDS), wanted.region, one.id)
        except AwsError as error:  # the snapshot itself is there: that is what counts
            machine.tell(Note("could not prune", {"snapshot": one.id, "error": str(error)}))
            spared.append(one.id)
            continue
        if not gone:
            machine.tell(Note("not pruned: others use it", {"snapshot": one.id}))
        (pruned if gone else spared).append(one.id)
    return tuple(pruned), tuple(spared)
