"""What EC2 refuses of volumes, with its codes and messages ("Error codes for the Amazon EC2 API")."""

from __future__ import annotations

import re
from collections.abc import Collection

from bootagent.sandbox.ebs_changes import Instance
from bootagent.sandbox.ebs_model import Refusal, Snapshot, Volume, VolumeRequest

#: Attachments of one instance, its root volume not counted ("Amazon EBS volume limits for Amazon EC2 instances").
ATTACHMENTS = 27
GP3_IOPS, GP3_THROUGHPUT = 3000, 125

_DEVICE = re.compile(r"/dev/(sd[a-z]|xvd[a-z]|xvd[b-d][a-z])[0-9]{0,2}")
_RATES = range(100, 301)  # MiB/s, CreateVolume's VolumeInitializationRate
_WITH_IOPS = ("gp3", "io1", "io2")
_TYPES = (*_WITH_IOPS, "gp2", "st1", "sc1", "standard")
_TOKEN_LENGTH = 64


def check_kind(request: VolumeRequest) -> None:
    """Whether the type of a volume goes with what else is asked of it. Raises Refusal."""
    kind, rate = request.volume_type, request.initialization_rate
    if kind not in _TYPES:
        raise Refusal("UnknownVolumeType", f"Unsupported volume type '{kind}' for volume creation.")
    if request.iops and kind not in _WITH_IOPS:
        raise Refusal("InvalidParameterCombination", f"The parameter iops is not supported for {kind} volumes.")
    if not request.iops and kind in ("io1", "io2"):
        raise Refusal("MissingParameter", f"The parameter iops must be specified for {kind} volumes.")
    if request.throughput and kind != "gp3":
        raise Refusal("InvalidParameterCombination", f"The parameter throughput is not supported for {kind} volumes.")
    if kind == "gp3" and request.iops and request.iops < GP3_IOPS:
        raise Refusal("InvalidParameterValue", f"Volume iops of {request.iops} is too low; minimum is {GP3_IOPS}.")
    if request.kms_key_id and not request.encrypted:
        raise Refusal(
            "InvalidParameterDependency", "The parameter KmsKeyId requires the parameter Encrypted to be set."
        )
    if rate and rate not in _RATES:
        raise Refusal("InvalidParameterValue", f"The volume initialization rate {rate} is not between 100 and 300.")


def check_size(request: VolumeRequest, snapshot: Snapshot | None) -> int:
    """The size of the volume asked for, in GiB. Raises Refusal."""
    if snapshot is None:
        if not request.size:
            raise Refusal("MissingParameter", "The request must contain the parameter size/snapshot")
        if request.initialization_rate:
            raise Refusal(
                "InvalidParameterCombination", "The parameter VolumeInitializationRate requires a SnapshotId."
            )
        return request.size
    if snapshot.state != "completed":
        raise Refusal("IncorrectState", f"Snapshot is in invalid state - {snapshot.state}")
    size = request.size or snapshot.size
    if size < snapshot.size:
        raise Refusal(
            "InvalidParameterValue",
            f"Volume of size {size}GB is smaller than snapshot '{snapshot.id}', expect size >= {snapshot.size}GB",
        )
    return size


def check_token(token: str, request: VolumeRequest, asked: VolumeRequest | None, volume: Volume | None) -> None:
    """Whether a client token may be used, that was perhaps used before. Raises Refusal."""
    if len(token) > _TOKEN_LENGTH:
        raise Refusal("InvalidParameterValue", f"Value ({token}) for parameter clientToken is too long.")
    if asked is None:
        return
    if asked != request or volume is None or volume.state in ("error", "deleting"):
        raise Refusal(
            "IdempotentParameterMismatch",
            f"The client token '{token}' has been used before, with other parameters or for a volume that is gone.",
        )


def check_attach(volume: Volume, instance: Instance, device: str, taken: Collection[str], count: int) -> None:
    """Whether a volume can be attached, beside ``count`` others; ``taken`` are device names. Raises Refusal."""
    if not instance.running:
        raise Refusal("IncorrectState", f"Instance '{instance.id}' is not 'running'.")
    if volume.zone != instance.zone:
        raise Refusal(
            "InvalidVolume.ZoneMismatch",
            f"The volume '{volume.id}' is not in the same availability zone as instance '{instance.id}'",
        )
    if volume.attachment:
        raise Refusal("VolumeInUse", f"{volume.id} is already attached to an instance")
    if volume.state != "available":
        raise Refusal("IncorrectState", f"{volume.id} is not 'available'.")
    if not _DEVICE.fullmatch(device):
        raise Refusal(
            "InvalidParameterValue",
            f"Value ({device}) for parameter device is invalid. {device} is not a valid EBS device name.",
        )
    if device in taken:
        raise Refusal(
            "InvalidParameterValue",
            f"Invalid value '{device}' for unixDevice. Attachment point {device} is already in use",
        )
    if count > ATTACHMENTS:
        raise Refusal("AttachmentLimitExceeded", "Volume attachment limit exceeded for this instance.")
