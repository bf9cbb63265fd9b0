"""A volume that is wanted, and what EC2 is told of it when it is made: its tags, and its token."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from bootagent.ebs.kind import VolumeKind
from bootagent.ebs.owner import BLANK, FOR, FORMAT, INSTANCE, LASTING, RECORD, SNAPSHOT, Tags


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


def own_tags(wanted: Wanted) -> Tags:
    """The tags that a volume of this instance has for its purpose."""
    return ((INSTANCE, wanted.instance_id), (FOR, wanted.purpose))


def token(wanted: Wanted, attempt: int) -> str:
    """EC2's ClientToken, at most 64 characters: the same for the same intent, so that no try makes a second volume."""
    whose = [wanted.zone, *wanted.find] if wanted.find else [wanted.instance_id, wanted.name]
    what = wanted.snapshot if wanted.by_snapshot else None
    intent = json.dumps([whose, wanted.purpose, what, attempt])
    return f"bootagent-{hashlib.sha256(intent.encode()).hexdigest()[:48]}"
