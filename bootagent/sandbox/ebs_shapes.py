"""Volumes and snapshots in the shapes of the EC2 API reference, and those as XML: a list's elements are ``item``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from xml.sax.saxutils import escape

from bootagent.sandbox.ebs_model import Attachment, Modification, Refusal, Snapshot, Volume

_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"


def volume(found: Volume) -> object:
    """A volume, as Volume in the API reference."""
    return {
        "volumeId": found.id,
        "size": found.size,
        "snapshotId": found.snapshot_id,
        "availabilityZone": found.zone,
        "status": found.state,
        "createTime": found.created,
        "volumeType": found.volume_type,
        "iops": found.iops,
        "throughput": found.throughput,
        "encrypted": found.encrypted,
        "kmsKeyId": found.kms_key_id,
        "multiAttachEnabled": False,
        "volumeInitializationRate": found.initialization_rate,
        "attachmentSet": [attachment(found.id, found.attachment)] if found.attachment else [],
        "tagSet": _tags(found.tags),
    }


def attachment(volume_id: str, found: Attachment) -> object:
    """An attachment, as VolumeAttachment there."""
    return {
        "volumeId": volume_id,
        "instanceId": found.instance_id,
        "device": found.device,
        "status": found.state,
        "attachTime": found.since,
        "deleteOnTermination": found.delete_on_termination,
    }


def snapshot(found: Snapshot) -> object:
    """A snapshot, as Snapshot there."""
    return {
        "snapshotId": found.id,
        "volumeId": found.volume_id,
        "status": found.state,
        "statusMessage": "Client.InternalError" if found.state == "error" else None,
        "startTime": found.started,
        "progress": f"{found.progress}%",
        "ownerId": found.owner,
        "volumeSize": found.size,
        "description": found.description,
        "encrypted": found.encrypted,
        "storageTier": "standard",
        "tagSet": _tags(found.tags),
    }


def modification(found: Modification) -> object:
    """A change of a volume, as VolumeModification there."""
    return {
        "volumeId": found.volume_id,
        "modificationState": found.state,
        "originalSize": found.original_size,
        "targetSize": found.target_size,
        "progress": 100 if found.state == "completed" else 0,
        "startTime": found.started,
    }


def _tags(tags: Mapping[str, str]) -> object:
    return [{"key": key, "value": value} for key, value in tags.items()]


# --- XML -----------------------------------------------------------------------------------------------------


def document(name: str, content: object) -> bytes:
    """The answer to a call, ``name`` with what it holds."""
    return f'<{name} xmlns="{_NAMESPACE}"><requestId>sandbox</requestId>{_xml(content)}</{name}>'.encode()


def error(refusal: Refusal) -> bytes:
    """The answer to a call that is refused."""
    content = {"Code": refusal.code, "Message": refusal.message}
    return (
        f"<Response><Errors><Error>{_xml(content)}</Error></Errors><RequestID>sandbox</RequestID></Response>".encode()
    )


def _xml(value: object) -> str:
    if isinstance(value, Mapping):
        return "".join(f"<{name}>{_xml(below)}</{name}>" for name, below in value.items() if below is not None)
    if isinstance(value, list):
        return "".join(f"<item>{_xml(below)}</item>" for below in value)
    return escape(text(value))


def text(value: object) -> str:
    """A plain value as EC2 writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03}Z"
    return str(value)
