"""The query protocol of EC2 for the simulated EBS: forms come in, XML goes out, as the API reference has them."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from bootagent.sandbox import ebs_shapes as shapes
from bootagent.sandbox.ebs import Ebs
from bootagent.sandbox.ebs_model import ACCOUNT, Refusal, Snapshot, Volume, VolumeRequest
from bootagent.sandbox.query_form import Form, passes

#: A status and a body.
Answer = tuple[int, bytes]

_PREFIXES = ("vol-", "snap-")
_Resource = TypeVar("_Resource", Volume, Snapshot)


class EbsApi:
    """Answers the calls that are about volumes and snapshots; None for any other."""

    def __init__(self, ebs: Ebs) -> None:
        self._ebs = ebs
        self._actions: Mapping[str, Callable[[Form], object]] = {
            "CreateVolume": self._create_volume,
            "DescribeVolumes": self._describe_volumes,
            "DescribeVolumesModifications": self._describe_modifications,
            "AttachVolume": self._attach,
            "DetachVolume": self._detach,
            "DeleteVolume": self._delete_volume,
            "ModifyVolume": self._modify_volume,
            "ModifyInstanceAttribute": self._modify_instance,
            "DescribeInstanceAttribute": self._describe_instance,
            "TerminateInstances": self._terminate,
            "CreateSnapshot": self._create_snapshot,
            "DescribeSnapshots": self._describe_snapshots,
            "DeleteSnapshot": self._delete_snapshot,
            "CreateTags": self._create_tags,
            "DeleteTags": self._delete_tags,
        }

    def __call__(self, fields: Mapping[str, str]) -> Answer | None:
        """The answer to a call; None when it is not about volumes or snapshots."""
        action = fields.get("Action", "")
        handler = self._actions.get(action)
        if handler is None:
            return None
        try:
            with self._ebs.lock:
                found = handler(Form(fields))
        except Refusal as refusal:
            return refusal.status, shapes.error(refusal)
        if found is None:
            return None
        return 200, shapes.document(f"{action}Response", found)

    # --- volumes ---------------------------------------------------------------------------------------------

    def _create_volume(self, form: Form) -> object:
        request = VolumeRequest(
            zone=form.required("AvailabilityZone"),
            size=form.number("Size"),
            snapshot_id=form.text("SnapshotId"),
            volume_type=form.text("VolumeType") or "gp2",
            iops=form.number("Iops"),
            throughput=form.number("Throughput"),
            encrypted=form.flag("Encrypted"),
            kms_key_id=form.text("KmsKeyId"),
            initialization_rate=form.number("VolumeInitializationRate"),
            tags=form.tags("volume"),
        )
        return shapes.volume(self._ebs.create_volume(request, form.text("ClientToken")))

    def _describe_volumes(self, form: Form) -> object:
        return self._described(
            form, "VolumeId", self._ebs.volumes, self._ebs.volume, _volume_fields, "volumeSet", shapes.volume
        )

    def _attach(self, form: Form) -> object:
        volume_id = form.required("VolumeId")
        return shapes.attachment(
            volume_id, self._ebs.attach(volume_id, form.required("InstanceId"), form.required("Device"))
        )

    def _detach(self, form: Form) -> object:
        volume_id = form.required("VolumeId")
        return shapes.attachment(
            volume_id,
            self._ebs.detach(volume_id, form.text("InstanceId"), form.text("Device"), form.flag("Force")),
        )

    def _delete_volume(self, form: Form) -> object:
        self._ebs.delete_volume(form.required("VolumeId"))
        return {"return": True}

    def _modify_volume(self, form: Form) -> object:
        change = self._ebs.modify_volume(form.required("VolumeId"), form.number("Size"))
        return {"volumeModification": shapes.modification(change)}

    def _describe_modifications(self, form: Form) -> object:
        wanted = form.words("VolumeId")
        changes = [change for change in self._ebs.modifications.values() if change.volume_id in wanted or not wanted]
        return {"volumeModificationSet": [shapes.modification(change) for change in changes]}

    # --- instances -------------------------------------------------------------------------------------------

    def _modify_instance(self, form: Form) -> object:
        if not form.has("BlockDeviceMapping."):
            return None
        for mapping in form.items("BlockDeviceMapping"):
            delete = mapping.flag("Ebs.DeleteOnTermination")
            self._ebs.set_delete_on_termination(form.required("InstanceId"), mapping.required("DeviceName"), delete)
        return {"return": True}

    def _describe_instance(self, form: Form) -> object:
        if form.text("Attribute") != "blockDeviceMapping":
            return None
        instance_id = self._ebs.instance(form.required("InstanceId")).id
        return {
            "instanceId": instance_id,
            "blockDeviceMapping": [
                {
                    "deviceName": volume.attachment.device,
                    "ebs": {
                        "volumeId": volume.id,
                        "status": volume.attachment.state,
                        "attachTime": volume.attachment.since,
                        "deleteOnTermination": volume.attachment.delete_on_termination,
                    },
                }
                for volume in self._ebs.of_instance(instance_id)
                if volume.attachment
            ],
        }

    def _terminate(self, form: Form) -> object:
        for instance_id in form.words("InstanceId"):
            if instance_id in self._ebs.instances:
                self._ebs.terminate(instance_id)
        return None  # the instances themselves are moto's

    # --- snapshots -------------------------------------------------------------------------------------------

    def _create_snapshot(self, form: Form) -> object:
        return shapes.snapshot(
            self._ebs.create_snapshot(form.required("VolumeId"), form.text("Description") or "", form.tags("snapshot"))
        )

    def _describe_snapshots(self, form: Form) -> object:
        owners = {ACCOUNT if owner == "self" else owner for owner in form.words("Owner")}
        visible = {key: found for key, found in self._ebs.snapshots.items() if not owners or found.owner in owners}
        return self._described(
            form, "SnapshotId", visible, self._ebs.snapshot, _snapshot_fields, "snapshotSet", shapes.snapshot
        )

    def _delete_snapshot(self, form: Form) -> object:
        self._ebs.delete_snapshot(form.required("SnapshotId"))
        return {"return": True}

    # --- tags ------------------------------------------------------------------------------------------------

    def _create_tags(self, form: Form) -> object:
        resources = _ours(form)
        for tags in [self._ebs.tags_of(resource_id) for resource_id in resources]:
            tags.update({tag.required("Key"): tag.text("Value") or "" for tag in form.items("Tag")})
        return {"return": True} if resources else None

    def _delete_tags(self, form: Form) -> object:
        resources = _ours(form)
        for tags in [self._ebs.tags_of(resource_id) for resource_id in resources]:
            if not form.has("Tag."):
                tags.clear()
            for tag in form.items("Tag"):
                # Given a value, only a tag that has it is deleted.
                if tag.text("Value") in (None, tags.get(tag.required("Key"))):
                    tags.pop(tag.required("Key"), None)
        return {"return": True} if resources else None

    # --- describing ------------------------------------------------------------------------------------------

    def _described(
        self,
        form: Form,
        parameter: str,
        among: Mapping[str, _Resource],
        known: Callable[[str], _Resource],
        fields: Callable[[_Resource], Mapping[str, Sequence[str]]],
        element: str,
        shown: Callable[[_Resource], object],
    ) -> object:
        wanted, most = form.words(parameter), form.number("MaxResults")
        if wanted and most:
            raise Refusal(
                "InvalidParameterCombination", f"The parameter {parameter} cannot be used with the parameter MaxResults"
            )
        if wanted:
            found = [resource for resource in map(known, wanted) if resource.id in among]
        else:
            lag = self._ebs.faults.search_lag
            found = [resource for resource in among.values() if time.monotonic() - resource.born >= lag]
        for criterion in form.items("Filter"):
            found = [resource for resource in found if passes(criterion, resource.tags, fields(resource))]
        page, token = self._page(found, most, form.text("NextToken"))
        return {element: [shown(resource) for resource in page], "nextToken": token}

    def _page(self, found: list[_Resource], most: int | None, token: str | None) -> tuple[list[_Resource], str | None]:
        limits = [limit for limit in (most, self._ebs.faults.page_size) if limit]
        size = min(limits, default=len(found))
        start = int(base64.b64decode(token)) if token else 0
        end = start + size
        return found[start:end], base64.b64encode(str(end).encode()).decode() if end < len(found) else None


def _ours(form: Form) -> list[str]:
    resources = form.words("ResourceId")
    ours = [resource_id for resource_id in resources if resource_id.startswith(_PREFIXES)]
    if ours and ours != resources:
        raise Refusal("UnsupportedOperation", "The simulated cloud tags volumes and snapshots in calls of their own.")
    return ours


def _volume_fields(volume: Volume) -> dict[str, list[str]]:
    attachment = volume.attachment
    fields: dict[str, list[object]] = {
        "volume-id": [volume.id],
        "status": [volume.state],
        "availability-zone": [volume.zone],
        "snapshot-id": [volume.snapshot_id],
        "size": [volume.size],
        "volume-type": [volume.volume_type],
        "encrypted": [shapes.text(volume.encrypted)],
        "attachment.instance-id": [attachment.instance_id] if attachment else [],
        "attachment.device": [attachment.device] if attachment else [],
        "attachment.status": [attachment.state] if attachment else [],
        "attachment.delete-on-termination": [shapes.text(attachment.delete_on_termination)] if attachment else [],
    }
    return {name: [str(value) for value in values] for name, values in fields.items()}


def _snapshot_fields(snapshot: Snapshot) -> dict[str, list[str]]:
    fields: dict[str, object] = {
        "snapshot-id": snapshot.id,
        "status": snapshot.state,
        "volume-id": snapshot.volume_id,
        "volume-size": snapshot.size,
        "owner-id": snapshot.owner,
        "description": snapshot.description,
        "progress": f"{snapshot.progress}%",
        "encrypted": shapes.text(snapshot.encrypted),
    }
    return {name: [str(value)] for name, value in fields.items()}
