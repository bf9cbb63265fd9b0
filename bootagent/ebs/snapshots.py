"""Snapshots: the newest by its tags, and which of a series are too old."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from bootagent import aws
from bootagent.ebs.owner import Tags, bears, shown
from bootagent.ebs.patience import Patience
from bootagent.errors import AwsError, BootagentError

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import FilterTypeDef, SnapshotTypeDef

ABSENT = "InvalidSnapshot.NotFound"
IN_USE = "InvalidSnapshot.InUse"


@dataclass(frozen=True)
class Snapshot:
    """A snapshot as DescribeSnapshots tells of it.

    ``state`` is pending, completed or error; ``progress`` in percent. ``archived``: no volume can be made from it.
    """

    id: str
    size_gib: int
    started: datetime
    tags: Mapping[str, str]
    state: str = "completed"
    progress: int = 100
    volume_id: str | None = None
    archived: bool = False


def newest(region: str | None, tags: Mapping[str, str], owner: str) -> Snapshot:
    """The newest completed snapshot that bears all of ``tags`` and belongs to ``owner`` ("self", or an account id).

    Raises BootagentError when there is none, and AwsError.
    """
    wanted = tuple(tags.items())
    found = listed(region, wanted, owner)
    usable = [one for one in found if one.state == "completed" and not one.archived]
    if usable:
        return max(usable, key=lambda one: (one.started, one.id))
    whose = "this account" if owner == "self" else f"account {owner}"
    pending = sum(one.state == "pending" for one in found)
    counts = [
        f"{pending} pending" if pending else "",
        f"{failed} in error" if (failed := sum(one.state == "error" for one in found)) else "",
        f"{archived} archived" if (archived := sum(one.archived for one in found)) else "",
    ]
    others = ", ".join(filter(None, counts)) or "nor any other"
    raise BootagentError(
        f"{whose} has no completed snapshot with the tags {shown(wanted)} in {region or 'this region'} ({others})",
        remedy="wait until it is completed" if pending else "take one with bootagent snapshot, or check tags and owner",
    )


def listed(region: str | None, tags: Tags, owner: str = "self") -> list[Snapshot]:
    """Every snapshot of ``owner`` that bears all of ``tags``, newest first. Raises AwsError."""
    asked: list[FilterTypeDef] = [{"Name": f"tag:{key}", "Values": [value]} for key, value in tags]
    return _ordered([one for one in _described(region, asked, owner) if bears(one.tags, tags)])


def with_tag_key(region: str | None, key: str) -> list[Snapshot]:
    """Every snapshot of this account that bears a tag of that key, newest first. Raises AwsError."""
    return _ordered(_described(region, [{"Name": "tag-key", "Values": [key]}], "self"))


def create(region: str | None, volume_id: str, description: str, tags: Tags) -> str:
    """Take a snapshot of what the volume holds now; its id. It is complete later. Raises AwsError."""
    try:
        with aws.call(f"take a snapshot of {volume_id}", "ec2:CreateSnapshot"):
            return aws.ec2(region).create_snapshot(
                VolumeId=volume_id,
                Description=description,
                TagSpecifications=[
                    {"ResourceType": "snapshot", "Tags": [{"Key": key, "Value": value} for key, value in tags]}
                ],
            )["SnapshotId"]
    except AwsError as error:
        if error.remedy:  # it was denied, and tagging at creation is a permission of its own
            error.remedy = "allow ec2:CreateSnapshot and ec2:CreateTags"
        raise


def look(patience: Patience, region: str | None, snapshot_id: str) -> Snapshot | None:
    """A snapshot; None when EC2 knows none of that id, or not yet. Raises AwsError."""
    try:
        found = patience.call(
            f"look at {snapshot_id}",
            "ec2:DescribeSnapshots",
            lambda: aws.ec2(region).describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"],
        )
    except AwsError as error:
        if error.code == ABSENT:
            return None
        raise
    return _described_as(found[0]) if found else None


def delete(patience: Patience, region: str | None, snapshot_id: str) -> bool:
    """Delete a snapshot, or see that it is gone; False when others use it, such as an image. Raises AwsError."""
    try:
        patience.call(
            f"delete {snapshot_id}",
            "ec2:DeleteSnapshot",
            lambda: aws.ec2(region).delete_snapshot(SnapshotId=snapshot_id),
        )
    except AwsError as error:
        if error.code == IN_USE:
            return False
        if error.code != ABSENT:
            raise
    return True


def series(tags: Tags) -> str:
    """What the snapshots with these tags have in common, as a tag's value, which has 256 characters at most."""
    text = shown(tuple(sorted(tags)))
    return text if len(text) <= 256 else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def continued(series: list[Snapshot], volume_id: str | None, living: Collection[str]) -> list[Snapshot]:
    """What of a series the next snapshot of a volume goes on with: its own, and those of volumes that are no more.

    ``living`` are the volumes that are there: of another of them, the snapshots are not this one's to count or prune.
    """
    return [one for one in series if one.volume_id == volume_id or one.volume_id not in living]


def surplus(series: list[Snapshot], keep: int) -> list[Snapshot]:
    """Which of a series are to go, so that the newest ``keep`` completed ones stay; failed ones are of no use.

    Pending ones stay, and so does everything while fewer are completed.
    """
    completed = _ordered([one for one in series if one.state == "completed"])
    return [*completed[max(1, keep) :], *(one for one in series if one.state == "error")]


def _ordered(found: list[Snapshot]) -> list[Snapshot]:
    return sorted(found, key=lambda one: (one.started, one.id), reverse=True)


def _described(region: str | None, filters: list[FilterTypeDef], owner: str) -> list[Snapshot]:
    with aws.call("look for snapshots", "ec2:DescribeSnapshots"):
        pages = aws.ec2(region).get_paginator("describe_snapshots").paginate(OwnerIds=[owner], Filters=filters)
        return [_described_as(found) for page in pages for found in page["Snapshots"]]


def _described_as(found: SnapshotTypeDef) -> Snapshot:
    return Snapshot(
        id=found["SnapshotId"],
        size_gib=found["VolumeSize"],
        started=found["StartTime"],
        tags={tag["Key"]: tag["Value"] for tag in found.get("Tags", [])},
        state=found["State"],
        progress=_percent(found.get("Progress", "")),
        volume_id=found.get("VolumeId"),
        archived=found.get("StorageTier") == "archive",
    )


def _percent(text: str) -> int:
    digits = text.rstrip("%")
    return int(digits) if digits.isdigit() else 0
