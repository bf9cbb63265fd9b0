"""Which volume is meant: known by its record, found by its tags, or made.

The record is written before each call that makes something, the volume is tagged as it is made, and the call carries a
token; so whatever a killed run made is found by the next, and made once.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace

from bootagent import own_file, records
from bootagent.ebs import attachment, choice
from bootagent.ebs.attachment import VolumeLost
from bootagent.ebs.calls import Calls, Volume
from bootagent.ebs.owner import SNAPSHOT, bears, is_blank, shown
from bootagent.ebs.wanted import Wanted, own_tags, owner_tags, token
from bootagent.errors import AwsError, BootagentError, MachineError
from bootagent.machine import Machine
from bootagent.records import Record

#: How long what EC2 has made may be absent from a look by tags.
LAG_SECONDS = 10.0


def identified(machine: Machine, calls: Calls, wanted: Wanted, lost: Collection[str]) -> Record:
    """The record, with the id of the volume: known, found by its tags, or made. Those in ``lost`` are of no use."""
    record = records.load(machine, wanted.name, wanted.instance_id)
    record = replace(record or Record(wanted.name, wanted.instance_id, wanted.region), buried=False)
    if record.volume_id and _still_meant(calls, wanted, record):
        return record
    while True:
        if volume := _found(machine, calls, wanted, lost):
            return _adopted(machine, record, volume)
        if wanted.find and may_hold_data(wanted, record) and _is_meant_yet(calls, wanted, record):
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


def taken(machine: Machine, name: str, instance_id: str) -> set[str]:
    """The volumes that other records of this instance name."""
    return {one.volume_id for one in records.all(machine, instance_id) if one.volume_id and one.name != name}


def may_hold_data(wanted: Wanted, record: Record) -> bool:
    """Whether the volume of the record was here, or was found with data of another instance before it got here."""
    found = bool(wanted.find and record.volume_id) and not (record.blank or record.pristine)
    return record.attached or found


def gone(wanted: Wanted, record: Record) -> MachineError:
    """The error for a volume that is missed, and what is to be done about it."""
    return MachineError(
        f"{record.volume_id}, the volume for {wanted.purpose}, is gone: EC2 knows it no more",
        remedy=f"remove {records.DIRECTORY}/{wanted.name}.json to have a new one made; to restore a snapshot, "
        f"first make a volume from it with the tags {shown(wanted.find or own_tags(wanted))}",
    )


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
            raise gone(wanted, record) from None
        volume = loss.volume
    return bears(volume.tags, wanted.find)


def _found(machine: Machine, calls: Calls, wanted: Wanted, lost: Collection[str]) -> Volume | None:
    if wanted.find:
        return choice.lasting(calls.volumes(wanted.find), wanted.instance_id, wanted.zone, wanted.find, lost)
    asked = own_tags(wanted)
    if wanted.by_snapshot and wanted.snapshot:
        asked = (*asked, (SNAPSHOT, wanted.snapshot))
    return choice.own(calls.volumes(asked), wanted.instance_id, taken(machine, wanted.name, wanted.instance_id))


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


def _refuse_to_make(wanted: Wanted) -> None:
    if not wanted.create:
        how = f"with the tags {shown(wanted.find)}" if wanted.find else f"of {wanted.instance_id}"
        raise BootagentError(
            f"there is no volume {how} in {wanted.zone} for {wanted.purpose}",
            remedy="make one and tag it so, or give a size or a snapshot to make one from",
        )
    if wanted.snapshot is None and wanted.kind.size_gib is None:
        raise BootagentError(f"a blank volume for {wanted.purpose} needs a size", remedy="give it one")
