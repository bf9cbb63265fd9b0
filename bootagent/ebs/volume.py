"""One volume for one purpose: found or made, attached, and let go when it is no longer used.

The record is written before each call that makes something, the volume is tagged as it is made, and the call carries a
token; so whatever a killed run made is found by the next, and made once.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from bootagent import own_file, records
from bootagent.ebs import attachment, choice
from bootagent.ebs.attachment import VolumeLost
from bootagent.ebs.calls import Calls, Volume
from bootagent.ebs.kind import VolumeKind
from bootagent.ebs.owner import BLANK, FOR, FORMAT, INSTANCE, LASTING, RECORD, SNAPSHOT, Tags, bears, shown
from bootagent.ebs.patience import Patience
from bootagent.errors import AwsError, BootagentError, MachineError
from bootagent.machine import Machine
from bootagent.records import Record

#: How many volumes a run makes, when they turn out to be in error.
MOST_ATTEMPTS = 3
#: How long what EC2 has made may be absent from a look by tags.
LAG_SECONDS = 10.0
RELEASE_SECONDS = 300.0


@dataclass(frozen=True)
class Wanted:
    """A volume and where it is wanted.

    ``name`` is its record's, ``purpose`` says what for: "app web". ``tags`` it gets besides ours when it is made.
    ``find`` are the tags of a volume that outlives instances; without them it is this instance's own. ``snapshot`` is
    what a new one is made from, None for a blank one; with ``create`` false none is made. With ``by_snapshot``, one
    made from another snapshot is another volume, as for releases; without, it is the same, as for data.
    ``device`` is the name to ask EC2 for first, ``within`` the deadline of it all in seconds. ``marker`` is a file that
    says what has been done with its content: it goes before a new one is made.
    """

    name: str
    purpose: str
    instance_id: str
    region: str | None
    zone: str
    snapshot: str | None = None
    tags: Tags = ()
    find: Tags = ()
    kind: VolumeKind = field(default_factory=VolumeKind)
    device: str = "/dev/sdf"
    delete_on_termination: bool = True
    create: bool = True
    by_snapshot: bool = True
    within: float = 300.0
    marker: str | None = None


def attach(machine: Machine, wanted: Wanted) -> str:
    """Find or make the volume and attach it to this instance; returns its id. Safe to kill at any point.

    Raises BootagentError when it cannot be told which volume is meant, there is none, or it is in another zone;
    MachineError at the deadline, and AwsError.
    """
    calls = Calls(Patience(machine, wanted.within), wanted.region)
    lost: list[str] = []
    while True:
        record = _identified(machine, calls, wanted, lost)
        volume_id = str(record.volume_id)
        try:
            held = attachment.bring(calls, volume_id, wanted.instance_id, wanted.zone, wanted.device)
        except VolumeLost as loss:
            lost.append(volume_id)
            _give_up(machine, calls, wanted, record, loss.volume)
            if len(lost) == MOST_ATTEMPTS:
                raise _never_usable(wanted, lost) from None
            continue
        attachment.set_delete_on_termination(calls, volume_id, wanted.instance_id, wanted.delete_on_termination)
        records.save(machine, replace(record, attached=True, device=held.device))
        return volume_id


def release(
    machine: Machine, name: str, instance_id: str, within: float = RELEASE_SECONDS, *, delete: bool = True
) -> None:
    """Let go of a volume that is no longer used, and unmounted: detach it, delete it, forget its record.

    It is deleted only when this agent made it from a snapshot, for this instance, to go with it; never with ``delete``
    false, as for data. The token of one that was deleted makes no other: that much is remembered. Safe to kill, and to
    call again. Raises MachineError at the deadline, and AwsError; the record stays then.
    """
    record = records.load(machine, name, instance_id)
    if record and record.buried:
        return
    deleted = False
    if record:
        calls = Calls(Patience(machine, within), record.region)
        for volume_id in _volumes_of(machine, calls, record):
            deleted = _let_go(calls, volume_id, record, delete) or deleted
    if record and deleted:
        records.bury(machine, record)
    else:
        records.forget(machine, name)


def mark_formatted(machine: Machine, region: str | None, volume_id: str, filesystem: str, within: float = 60.0) -> None:
    """Say on a volume that was blank what filesystem is on it. Raises AwsError."""
    Calls(Patience(machine, within), region).tag(volume_id, ((FORMAT, filesystem),))


def is_blank(tags: Mapping[str, str]) -> bool:
    """Whether a volume's tags say that it was made blank by this agent, and not formatted since."""
    return tags.get(FORMAT) == BLANK


def owner_tags(wanted: Wanted) -> Tags:
    """The tags a volume is made with."""
    ours = {FOR: wanted.purpose, "Name": f"{wanted.purpose} ({wanted.instance_id})"}
    if wanted.find:
        # No word of this instance, which it outlives, and which another may be a moment ahead of in making it.
        ours["Name"] = wanted.purpose
    else:
        ours |= {INSTANCE: wanted.instance_id, RECORD: wanted.name}
    if wanted.find or not wanted.delete_on_termination:
        ours[LASTING] = "yes"
    ours |= {SNAPSHOT: wanted.snapshot} if wanted.snapshot else {FORMAT: BLANK}
    # What was asked for wins where it is not what we find it by.
    given = {key: value for key, value in (*wanted.tags, *wanted.find) if key == "Name" or key not in ours}
    return tuple({**ours, **given}.items())


def token(wanted: Wanted, attempt: int) -> str:
    """EC2's ClientToken, at most 64 characters: the same for the same intent, so that no try makes a second volume."""
    whose = [wanted.zone, *wanted.find] if wanted.find else [wanted.instance_id, wanted.name]
    what = wanted.snapshot if wanted.by_snapshot else None
    intent = json.dumps([whose, wanted.purpose, what, attempt])
    return f"bootagent-{hashlib.sha256(intent.encode()).hexdigest()[:48]}"


# --- which volume --------------------------------------------------------------------------------------------


def _identified(machine: Machine, calls: Calls, wanted: Wanted, lost: Collection[str]) -> Record:
    """The record, with the id of the volume: known, found by its tags, or made. Those in ``lost`` are of no use."""
    record = records.load(machine, wanted.name, wanted.instance_id)
    record = replace(record or Record(wanted.name, wanted.instance_id, wanted.region), buried=False)
    if record.volume_id and _still_meant(calls, wanted, record):
        return record
    while True:
        if volume := _found(machine, calls, wanted, lost):
            return _adopted(machine, record, volume)
        if wanted.find and _may_hold_data(wanted, record) and _is_meant_yet(calls, wanted, record):
            return record
        _refuse_to_make(wanted)
        record = replace(
            record,
            region=wanted.region,
            volume_id=None,
            snapshot=wanted.snapshot,
            blank=wanted.snapshot is None,
            attached=False,
            size_bytes=None,
            mountpoints=(),
            pristine=wanted.snapshot is not None,
        )
        if wanted.marker:
            own_file.forget(machine, wanted.marker)
        records.save(machine, record)
        try:
            tags = owner_tags(wanted)
            made = calls.create(wanted.zone, wanted.snapshot, wanted.kind, tags, token(wanted, record.attempt))
        except AwsError as error:
            if error.code != "IdempotentParameterMismatch":
                raise
            # The token made a volume before, with other parameters: there it is, or it is no more.
            if volume := _found_late(machine, calls, wanted, lost):
                return _adopted(machine, record, volume)
            record = replace(record, attempt=record.attempt + 1)
            continue
        if wanted.find and _is_retagged(calls, wanted, made):
            record = replace(record, attempt=record.attempt + 1)
            continue
        record = replace(record, volume_id=made)
        records.save(machine, record)
        return record


def _still_meant(calls: Calls, wanted: Wanted, record: Record) -> bool:
    """Whether the volume of the record is the one that is wanted now."""
    if wanted.find:
        volume = calls.volume(str(record.volume_id))
        return volume is not None and volume.state not in ("deleting", "deleted") and bears(volume.tags, wanted.find)
    if wanted.by_snapshot and record.snapshot != wanted.snapshot:
        raise BootagentError(
            f"{record.volume_id} was made from {record.snapshot or 'nothing'} for {record.name}, not from "
            f"{wanted.snapshot or 'nothing'}",
            remedy="have it released first",
        )
    return True


def _is_meant_yet(calls: Calls, wanted: Wanted, record: Record) -> bool:
    """Whether what was attached here bears the tags after all, and EC2 was late to show it; if not, it lost them.

    Raises MachineError when it is gone.
    """
    try:
        volume = attachment.present(calls, str(record.volume_id))
    except VolumeLost as loss:
        if loss.volume is None:
            raise _gone(wanted, record) from None
        volume = loss.volume
    return bears(volume.tags, wanted.find)


def _found(machine: Machine, calls: Calls, wanted: Wanted, lost: Collection[str]) -> Volume | None:
    if wanted.find:
        return choice.lasting(calls.volumes(wanted.find), wanted.instance_id, wanted.zone, wanted.find, lost)
    asked = _own(wanted)
    if wanted.by_snapshot and wanted.snapshot:
        asked = (*asked, (SNAPSHOT, wanted.snapshot))
    return choice.own(calls.volumes(asked), wanted.instance_id, _taken(machine, wanted.name, wanted.instance_id))


def _own(wanted: Wanted) -> Tags:
    return ((INSTANCE, wanted.instance_id), (FOR, wanted.purpose))


def _found_late(machine: Machine, calls: Calls, wanted: Wanted, lost: Collection[str]) -> Volume | None:
    start = time.monotonic()
    while (volume := _found(machine, calls, wanted, lost)) is None:
        if time.monotonic() - start > LAG_SECONDS:
            return None
        calls.patience.wait("waiting for EC2 to show what an earlier run made", {"for": wanted.purpose})
    return volume


def _is_retagged(calls: Calls, wanted: Wanted, volume_id: str) -> bool:
    """Whether the token brought back a volume of an earlier run, from which somebody has taken the tags since."""
    start = time.monotonic()
    while (volume := calls.volume(volume_id)) is None or not bears(volume.tags, wanted.find):
        if time.monotonic() - start > LAG_SECONDS:
            return volume is not None
        calls.patience.wait("waiting for EC2 to show the volume's tags", {"volume": volume_id})
    return False


def _adopted(machine: Machine, record: Record, volume: Volume) -> Record:
    adopted = replace(
        record,
        volume_id=volume.id,
        snapshot=volume.tags.get(SNAPSHOT),
        blank=is_blank(volume.tags),
        attached=False,
        size_bytes=None,
        mountpoints=(),
    )
    records.save(machine, adopted)
    return adopted


def _taken(machine: Machine, name: str, instance_id: str) -> set[str]:
    """The volumes that other records of this instance name."""
    return {one.volume_id for one in records.all(machine, instance_id) if one.volume_id and one.name != name}


def _refuse_to_make(wanted: Wanted) -> None:
    if not wanted.create:
        how = f"with the tags {shown(wanted.find)}" if wanted.find else f"of {wanted.instance_id}"
        raise BootagentError(
            f"there is no volume {how} in {wanted.zone} for {wanted.purpose}",
            remedy="make one and tag it so, or give a size or a snapshot to make one from",
        )
    if wanted.snapshot is None and wanted.kind.size_gib is None:
        raise BootagentError(f"a blank volume for {wanted.purpose} needs a size", remedy="give it one")


# --- what went wrong -----------------------------------------------------------------------------------------


def _give_up(machine: Machine, calls: Calls, wanted: Wanted, record: Record, failed: Volume | None) -> None:
    """Make the next try start afresh. A failed volume is deleted when it is ours and never held anything."""
    if failed:
        ours = failed.tags.get(FOR) == wanted.purpose and (SNAPSHOT in failed.tags or is_blank(failed.tags))
        if record.attached or failed.attachments or not ours:
            raise MachineError(
                f"{failed.id}, the volume for {wanted.purpose}, is in error: EC2 lost it or cannot use it",
                remedy="see the volume's status in EC2; make another from a snapshot, and delete this one",
            )
        calls.delete(failed.id)
    elif _may_hold_data(wanted, record) and not wanted.by_snapshot:  # it is not to be missed in silence
        raise _gone(wanted, record)
    fresh = Record(wanted.name, wanted.instance_id, wanted.region, attempt=record.attempt + 1)
    records.save(machine, fresh)


def _may_hold_data(wanted: Wanted, record: Record) -> bool:
    """Whether the volume of the record was here, or was found with data of another instance before it got here."""
    found = bool(wanted.find and record.volume_id) and not (record.blank or record.pristine)
    return record.attached or found


def _gone(wanted: Wanted, record: Record) -> MachineError:
    return MachineError(
        f"{record.volume_id}, the volume for {wanted.purpose}, is gone: EC2 knows it no more",
        remedy=f"remove {records.DIRECTORY}/{wanted.name}.json to have a new one made; to restore a snapshot, "
        f"first make a volume from it with the tags {shown(wanted.find or _own(wanted))}",
    )


def _never_usable(wanted: Wanted, lost: list[str]) -> MachineError:
    origin = f" from {wanted.snapshot}" if wanted.snapshot else ""
    return MachineError(
        f"EC2 made {len(lost)} volumes{origin} for {wanted.purpose}, and none could be used: {', '.join(lost)}",
        remedy="encrypted with a KMS key the role may not use? allow kms:CreateGrant, kms:Decrypt and "
        "kms:GenerateDataKeyWithoutPlaintext",
    )


# --- letting go ----------------------------------------------------------------------------------------------


def _volumes_of(machine: Machine, calls: Calls, record: Record) -> list[str]:
    """The volumes of a record that no other names: the one it names, or what a killed run made and could not note."""
    taken = _taken(machine, record.name, record.instance_id)
    found = [record.volume_id] if record.volume_id else []
    if not found:
        ours: Tags = ((INSTANCE, record.instance_id), (RECORD, record.name))
        found = [one.id for one in calls.volumes(ours) if one.state not in ("deleting", "deleted")]
    return [volume_id for volume_id in found if volume_id not in taken]


def _let_go(calls: Calls, volume_id: str, record: Record, delete: bool) -> bool:
    """Whether it was deleted."""
    volume = calls.volume(volume_id)
    if volume is None:
        return False
    doomed = volume.tags.get(INSTANCE) == record.instance_id and SNAPSHOT in volume.tags and LASTING not in volume.tags
    here = volume.here(record.instance_id)
    if doomed and record.attached and here and here.state == "attached" and not here.delete_on_termination:
        # Somebody took back what we had set: it is to stay. Once it is detached nothing else would tell.
        calls.tag(volume_id, ((LASTING, "yes"),))
        doomed = False
    left = attachment.take_away(calls, volume_id, record.instance_id)
    if delete and doomed and left and not left.attachments:
        calls.delete(volume_id)
        return True
    return False
