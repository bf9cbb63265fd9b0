"""Bringing one volume to one instance, through every state EC2 may show on the way, and taking it away."""

from __future__ import annotations

import time

from bootagent.ebs.calls import Attachment, Calls, Volume
from bootagent.errors import AwsError, BootagentError, MachineError

#: An attachment takes seconds. One that takes this long never ends: another device name may help.
STUCK_SECONDS = 90.0
#: How many times that is tried.
MOST_STUCK = 3
#: How long a volume that EC2 has just named may be unknown to it.
FRESH_SECONDS = 30.0
#: Seconds between two calls that set the same thing, while it does not show.
AGAIN_SECONDS = 10.0

#: Of ours to give: Amazon EC2 User Guide, "Device names for volumes".
_NAMES = tuple(f"/dev/sd{letter}" for letter in "fghijklmnop")


class VolumeLost(Exception):
    """The volume will never be attached: it is gone (``volume`` None), or it is in error."""

    def __init__(self, volume: Volume | None) -> None:
        super().__init__()
        self.volume = volume


def bring(calls: Calls, volume_id: str, instance_id: str, zone: str, first: str) -> Attachment:
    """Attach a volume, waiting for it to be made or let go; returns the attachment once it is complete.

    ``first`` is the device name to ask for first. Raises VolumeLost, MachineError at the deadline, BootagentError
    for a volume in another zone, and AwsError.
    """
    names = [first, *(name for name in _NAMES if name != first)]
    stuck = 0
    since: float | None = None
    while True:
        volume = present(calls, volume_id)
        refuse_other_zone(volume, instance_id, zone)
        here = volume.here(instance_id)
        if here and here.state == "attached":
            return here
        if here and here.state == "attaching":
            since = since or time.monotonic()
            if time.monotonic() - since > STUCK_SECONDS:
                stuck += 1
                names = [name for name in names if name != here.device]
                if stuck == MOST_STUCK or not names:
                    raise _stuck(volume_id, instance_id, stuck)
                calls.detach(volume_id, instance_id)
                since = None
            _wait(calls, "waiting for the volume to be attached", volume, device=here.device)
            continue
        if here or volume.attachments:
            _wait_for_holder(calls, volume, instance_id)
            continue
        refusal = ""
        if volume.state == "available":
            refusal = _ask(calls, volume_id, instance_id, names)
            if not refusal:
                since = time.monotonic()
                continue
        elif volume.state == "in-use":  # attached a moment ago, and to whom does not show yet
            refusal = "in use"
        _wait(calls, _doing(refusal), volume, **({"refused": refusal} if refusal else {}))


def present(calls: Calls, volume_id: str) -> Volume:
    """The volume, given that it should be there; a fresh one may be unknown for a while.

    Raises VolumeLost when it is in error, gone, or unknown for too long.
    """
    start = time.monotonic()
    while (volume := calls.volume(volume_id)) is None:
        if time.monotonic() - start > FRESH_SECONDS:
            raise VolumeLost(None)
        calls.patience.wait("waiting for EC2 to know the volume", {"volume": volume_id})
    if volume.state in ("deleting", "deleted"):
        raise VolumeLost(None)
    if volume.state == "error":
        raise VolumeLost(volume)
    return volume


def take_away(calls: Calls, volume_id: str, instance_id: str) -> Volume | None:
    """Detach a volume from an instance and wait until it is; returns it, None when it is gone.

    Raises MachineError at the deadline, and AwsError.
    """
    asked: float | None = None
    while True:
        volume = calls.volume(volume_id)
        if volume is None or volume.state in ("deleting", "deleted"):
            return None
        here = volume.here(instance_id)
        if here is None:
            return volume
        if asked is None or (here.state == "attached" and time.monotonic() - asked > AGAIN_SECONDS):
            calls.detach(volume_id, instance_id)
            asked = time.monotonic()
        calls.patience.wait(
            "waiting for the volume to be detached",
            {"volume": volume_id, "state": here.state},
            remedy="see that nothing has it mounted",
        )


def set_delete_on_termination(calls: Calls, volume_id: str, instance_id: str, wanted: bool) -> None:
    """Say whether an attached volume goes with its instance, and read back that EC2 has it so.

    EC2 sets it to false for a volume that is attached to a running instance.
    Raises MachineError at the deadline, and AwsError.
    """
    asked: float | None = None
    while True:
        volume = calls.volume(volume_id)
        here = volume.here(instance_id) if volume else None
        if here and here.delete_on_termination == wanted:
            return
        if here and (asked is None or time.monotonic() - asked > AGAIN_SECONDS):
            calls.set_delete_on_termination(volume_id, here, wanted)
            asked = time.monotonic()
            continue
        calls.patience.wait("waiting for DeleteOnTermination to be set", {"volume": volume_id, "wanted": wanted})


def refuse_other_zone(volume: Volume, instance_id: str, zone: str) -> None:
    """Raises BootagentError for a volume that can never be attached to an instance in ``zone``."""
    if volume.zone != zone:
        raise BootagentError(
            f"{volume.id} is in {volume.zone}, and {instance_id} in {zone}: it cannot be attached",
            remedy=f"launch the instance in {volume.zone}, or make a volume in {zone} from a snapshot of it",
        )


# --- inside --------------------------------------------------------------------------------------------------


def _ask(calls: Calls, volume_id: str, instance_id: str, names: list[str]) -> str:
    """Ask for the first of ``names`` that is free, dropping others; returns why EC2 refused, "" when it did not."""
    while names:
        try:
            calls.attach(volume_id, instance_id, names[0])
            return ""
        except AwsError as error:
            if error.code == "InvalidParameterValue" and "already in use" in error.sentence:
                names.pop(0)
            elif error.code in ("VolumeInUse", "IncorrectState", "InvalidVolume.NotFound"):
                return error.code  # what that means, the next look tells
            else:
                raise
    raise MachineError(
        f"no device name is free on {instance_id} for {volume_id}: all of /dev/sd[f-p] are in use",
        remedy="detach a volume that is no longer needed",
    )


def _wait_for_holder(calls: Calls, volume: Volume, instance_id: str) -> None:
    if volume.here(instance_id):
        _wait(calls, "waiting for the volume to be detached", volume, remedy="see that nothing has it mounted")
    else:
        holder = volume.holder
        remedy = f"terminate {holder}, or detach the volume from it"
        _wait(calls, "waiting for the volume's holder to let it go", volume, remedy=remedy, holder=str(holder))


def _wait(calls: Calls, what: str, volume: Volume, *, remedy: str | None = None, **details: str) -> None:
    calls.patience.wait(what, {"volume": volume.id, **details}, remedy)


def _doing(refusal: str) -> str:
    return "waiting for EC2 to attach the volume" if refusal else "waiting for the volume to be available"


def _stuck(volume_id: str, instance_id: str, times: int) -> MachineError:
    return MachineError(
        f"attaching {volume_id} to {instance_id} got stuck {times} times, each time for {STUCK_SECONDS:g} s",
        remedy="replace the instance, or reboot it: its device names are used up",
    )
