"""Snapshots: the newest by its tags, and which of a series are too old."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from bootagent import aws
from bootagent.ebs.owner import Tags, bears, shown
from bootagent.errors import BootagentError

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import FilterTypeDef, SnapshotTypeDef


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
        return [described(found) for page in pages for found in page["Snapshots"]]


def described(found: SnapshotTypeDef) -> Snapshot:
    """What EC2 answered as a value."""
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
