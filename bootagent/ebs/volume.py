"""One volume for one purpose: found or made, attached, and let go when it is no longer used."""

from __future__ import annotations

from dataclasses import replace

from bootagent import records
from bootagent.ebs import attachment
from bootagent.ebs.attachment import VolumeLost
from bootagent.ebs.calls import Calls, Volume
from bootagent.ebs.identity import gone, identified, may_hold_data, taken
from bootagent.ebs.owner import FOR, FORMAT, INSTANCE, LASTING, RECORD, SNAPSHOT, Tags, is_blank
from bootagent.ebs.patience import Patience
from bootagent.ebs.wanted import Wanted
from bootagent.errors import MachineError
from bootagent.machine import Machine
from bootagent.records import Record

#: How many volumes a run makes, when they turn out to be in error.
MOST_ATTEMPTS = 3
RELEASE_SECONDS = 300.0


def attach(machine: Machine, wanted: Wanted) -> str:
    """Find or make the volume and attach it to this instance; returns its id. Safe to kill at any point.

    Raises BootagentError when it cannot be told which volume is meant, there is none, or it is in another zone;
    MachineError at the deadline, and AwsError.
    """
    calls = Calls(Patience(machine, wanted.within), wanted.region)
    lost: list[str] = []
    while True:
        record = identified(machine, calls, wanted, lost)
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
    elif may_hold_data(wanted, record) and not wanted.by_snapshot:  # it is not to be missed in silence
        raise gone(wanted, record)
    fresh = Record(wanted.name, wanted.instance_id, wanted.region, attempt=record.attempt + 1)
    records.save(machine, fresh)


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
    others = taken(machine, record.name, record.instance_id)
    found = [record.volume_id] if record.volume_id else []
    if not found:
        ours: Tags = ((INSTANCE, record.instance_id), (RECORD, record.name))
        found = [one.id for one in calls.volumes(ours) if one.state not in ("deleting", "deleted")]
    return [volume_id for volume_id in found if volume_id not in others]


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
