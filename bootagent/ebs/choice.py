"""Which of several volumes is meant. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bootagent.ebs.calls import Volume
from bootagent.ebs.owner import BLANK, FORMAT, Tags, shown
from bootagent.errors import BootagentError, MachineError

_FREE = ("creating", "available")


def own(found: Sequence[Volume], instance_id: str, taken: Collection[str]) -> Volume | None:
    """The volume that this instance made for the purpose; ``taken`` are those that another record names.

    One that is attached here comes first, then the oldest; a failed one last, so that it is seen and removed.
    """
    left = [one for one in found if one.id not in taken and one.state not in ("deleting", "deleted")]
    left.sort(key=lambda one: (one.here(instance_id) is None, one.state == "error", one.created, one.id))
    return left[0] if left else None


def lasting(
    found: Sequence[Volume], instance_id: str, zone: str, tags: Tags, lost: Collection[str] = ()
) -> Volume | None:
    """The volume that outlives instances: attached here, else the only one that is free, else one that is held.

    None when there is none. Roots of instances do not count, nor those in ``lost``, which were found to be of no use.
    Raises BootagentError when there is more than one to choose from, or none but in other zones; MachineError when
    there is none but a failed one that may have held data.
    """
    usable = [one for one in found if one.state in (*_FREE, "in-use") and not one.is_root]
    inside = [one for one in usable if one.zone == zone]
    for group in (
        [one for one in inside if one.here(instance_id)],
        [one for one in inside if one.state in _FREE and not one.attachments],
    ):
        if len(group) > 1:
            raise BootagentError(
                f"several volumes in {zone} bear the tags {shown(tags)}: {', '.join(one.id for one in group)}",
                remedy="leave the tags on one of them only",
            )
        if group:
            return group[0]
    if inside:
        return inside[0]
    if usable:
        where = ", ".join(f"{one.id} in {one.zone}" for one in usable)
        raise BootagentError(
            f"no volume in {zone} bears the tags {shown(tags)}, but there is {where}",
            remedy="launch the instance there; where each zone has its own, tell them apart by a tag such as "
            "Zone={availability_zone}",
        )
    failed = [one.id for one in found if one.state == "error" and one.id not in lost and one.tags.get(FORMAT) != BLANK]
    if failed:  # what it held is not to be missed in silence
        raise MachineError(
            f"no volume that can be used bears the tags {shown(tags)}: {', '.join(failed)} has them and is in error",
            remedy="see its status in EC2; make another with these tags from a snapshot, or take them away from this "
            "one to have a new one made",
        )
    return None
