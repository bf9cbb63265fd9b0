"""EC2's calls about volumes, and what they answer as frozen values (Amazon EC2 API Reference)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bootagent import aws
from bootagent.ebs.kind import VolumeKind
from bootagent.ebs.owner import Tags, bears
from bootagent.ebs.patience import Patience
from bootagent.errors import AwsError

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import FilterTypeDef, VolumeTypeDef

ABSENT = "InvalidVolume.NotFound"
#: What a volume is named after here when its root is on it: it is never ours to take.
_ROOT_DEVICES = frozenset({"/dev/sda1", "/dev/sda", "/dev/xvda"})

_REMEDIES = {
    "InvalidSnapshot.NotFound": "see that the snapshot still exists, and that this account may use it",
    "VolumeLimitExceeded": "raise the account's quota of EBS storage, or see what is left over: bootagent gc",
    "MaxIOPSLimitExceeded": "raise the account's quota of provisioned IOPS",
    "AttachmentLimitExceeded": "this type of instance cannot hold more volumes; use another type",
    "InvalidVolume.ZoneMismatch": "a volume can be attached only in its own availability zone",
}


@dataclass(frozen=True)
class Attachment:
    """Where a volume is attached. ``state`` is attaching, attached, detaching or busy."""

    instance_id: str
    device: str
    state: str
    delete_on_termination: bool


@dataclass(frozen=True)
class Volume:
    """A volume as DescribeVolumes tells of it. ``snapshot`` is what it was made from."""

    id: str
    state: str
    zone: str
    size_gib: int
    snapshot: str | None
    tags: Mapping[str, str]
    attachments: tuple[Attachment, ...]
    created: str

    def here(self, instance_id: str) -> Attachment | None:
        """Its attachment to an instance."""
        return next((one for one in self.attachments if one.instance_id == instance_id), None)

    @property
    def holder(self) -> str | None:
        """The instance that has it."""
        return self.attachments[0].instance_id if self.attachments else None

    @property
    def is_root(self) -> bool:
        """Whether an instance runs from it."""
        return any(one.device in _ROOT_DEVICES for one in self.attachments)


class Calls:
    """The calls, each under the deadline of ``patience``. All raise AwsError."""

    def __init__(self, patience: Patience, region: str | None) -> None:
        self.patience = patience
        self._region = region

    @property
    def _ec2(self) -> EC2Client:
        return aws.ec2(self._region)

    def volume(self, volume_id: str) -> Volume | None:
        """The volume; None when EC2 knows none, or not yet."""
        try:
            found = self.patience.call(
                f"look at {volume_id}",
                "ec2:DescribeVolumes",
                lambda: self._ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"],
            )
        except AwsError as error:
            if error.code == ABSENT:
                return None
            raise
        return _volume(found[0]) if found else None

    def volumes(self, tags: Tags, **filters: str) -> list[Volume]:
        """The volumes that bear all of ``tags``, oldest first; ``filters`` are EC2's, with _ for -."""
        asked: list[FilterTypeDef] = [{"Name": f"tag:{key}", "Values": [value]} for key, value in tags]
        asked += [{"Name": name.replace("_", "-"), "Values": [value]} for name, value in filters.items()]

        def ask() -> list[Volume]:
            pages = self._ec2.get_paginator("describe_volumes").paginate(Filters=asked)
            return [_volume(found) for page in pages for found in page["Volumes"]]

        found = self.patience.call("look for volumes", "ec2:DescribeVolumes", ask)
        return sorted((one for one in found if bears(one.tags, tags)), key=lambda one: (one.created, one.id))

    def create(self, zone: str, snapshot: str | None, kind: VolumeKind, tags: Tags, token: str) -> str:
        """Make a volume, or get the id of the one that was made for the same ``token``."""
        asked: dict[str, Any] = {
            "AvailabilityZone": zone,
            "VolumeType": kind.type,
            "SnapshotId": snapshot,
            "Size": kind.size_gib,
            "Iops": kind.iops,
            "Throughput": kind.throughput,
            "Encrypted": True if kind.kms_key else kind.encrypted,  # or the key is refused
            "KmsKeyId": kind.kms_key,
            "VolumeInitializationRate": kind.initialization_rate if snapshot else None,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        specification: Any = {"ResourceType": "volume", "Tags": [{"Key": key, "Value": value} for key, value in tags]}
        made_of = f"make a volume from {snapshot}" if snapshot else "make a blank volume"
        try:
            return self.patience.call(
                f"{made_of} in {zone}",
                "ec2:CreateVolume",
                lambda: self._ec2.create_volume(**given, ClientToken=token, TagSpecifications=[specification])[
                    "VolumeId"
                ],
            )
        except AwsError as error:
            if error.remedy:  # it was denied, and tagging at creation is a permission of its own
                error.remedy = "allow ec2:CreateVolume and ec2:CreateTags to the instance's role"
            raise _with_remedy(error) from error.__cause__

    def attach(self, volume_id: str, instance_id: str, device: str) -> None:
        """Ask for the volume to be attached."""
        try:
            self.patience.call(
                f"attach {volume_id} to {instance_id} as {device}",
                "ec2:AttachVolume",
                lambda: self._ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device=device),
            )
        except AwsError as error:
            raise _with_remedy(error) from error.__cause__

    def detach(self, volume_id: str, instance_id: str) -> None:
        """Ask for the volume to be detached, never by force. One that is not attached there is fine."""
        self._unless(
            {ABSENT, "IncorrectState", "InvalidAttachment.NotFound"},
            f"detach {volume_id} from {instance_id}",
            "ec2:DetachVolume",
            lambda: self._ec2.detach_volume(VolumeId=volume_id, InstanceId=instance_id),
        )

    def delete(self, volume_id: str) -> None:
        """Delete the volume; one that is gone is fine."""
        self._unless(
            {ABSENT},
            f"delete {volume_id}",
            "ec2:DeleteVolume",
            lambda: self._ec2.delete_volume(VolumeId=volume_id),
        )

    def tag(self, resource_id: str, tags: Tags) -> None:
        """Set tags."""
        self.patience.call(
            f"tag {resource_id}",
            "ec2:CreateTags",
            lambda: self._ec2.create_tags(
                Resources=[resource_id], Tags=[{"Key": key, "Value": value} for key, value in tags]
            ),
        )

    def set_delete_on_termination(self, volume_id: str, attachment: Attachment, wanted: bool) -> None:
        """Say whether the volume goes with the instance it is attached to."""
        self.patience.call(
            f"set DeleteOnTermination of {volume_id} on {attachment.instance_id}",
            "ec2:ModifyInstanceAttribute",
            lambda: self._ec2.modify_instance_attribute(
                InstanceId=attachment.instance_id,
                BlockDeviceMappings=[
                    {"DeviceName": attachment.device, "Ebs": {"VolumeId": volume_id, "DeleteOnTermination": wanted}}
                ],
            ),
        )

    def _unless(self, fine: Iterable[str], doing: str, iam_action: str, ask: Any) -> None:
        try:
            self.patience.call(doing, iam_action, ask)
        except AwsError as error:
            if error.code not in fine:
                raise


def _with_remedy(error: AwsError) -> AwsError:
    error.remedy = error.remedy or _REMEDIES.get(error.code)
    return error


def _volume(found: VolumeTypeDef) -> Volume:
    return Volume(
        id=found["VolumeId"],
        state=found["State"],
        zone=found["AvailabilityZone"],
        size_gib=found["Size"],
        snapshot=found.get("SnapshotId") or None,
        tags={tag["Key"]: tag["Value"] for tag in found.get("Tags", [])},
        attachments=tuple(
            Attachment(one["InstanceId"], one["Device"], one["State"], one.get("DeleteOnTermination", False))
            for one in found.get("Attachments", [])
            if one["State"] != "detached"
        ),
        created=found["CreateTime"].isoformat(),
    )
