"""A simulated EBS: volumes and snapshots are sparse files, states change by the clock, disks come to real machines.

Codes and messages of refusals are those of the EC2 API ("Error codes for the Amazon EC2 API").
"""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from bootagent.sandbox import ebs_rules as rules
from bootagent.sandbox.ebs_changes import Changes, Instance
from bootagent.sandbox.ebs_model import GIB, Attachment, Modification, Refusal, Snapshot, Volume, VolumeRequest
from bootagent.sandbox.loop_host import Host

#: Concurrent snapshots of one volume ("Amazon EBS quotas").
PENDING_SNAPSHOTS = 5

_ROOT_DEVICE, _ROOT_SIZE = "/dev/xvda", 8
_COPY_SECONDS = 120.0

_Known = TypeVar("_Known", Volume, Snapshot)


class Ebs:
    """Volumes and snapshots of one region, with their contents in ``directory``, shared by its instances."""

    def __init__(self, directory: Path, zones: tuple[str, ...]) -> None:
        self.changes = Changes()
        self.timing, self.faults, self.lock = self.changes.timing, self.changes.faults, self.changes.lock
        self.volumes, self.instances = self.changes.volumes, self.changes.instances
        self.snapshots: dict[str, Snapshot] = {}
        self.modifications: dict[str, Modification] = {}
        #: The volumes that somebody detached with Force.
        self.forced: list[str] = []
        self._directory = directory
        self._zones = zones
        self._tokens: dict[str, tuple[VolumeRequest, str]] = {}

    # --- instances -------------------------------------------------------------------------------------------

    def add_instance(self, instance_id: str, zone: str, host: Host) -> None:
        """A machine that volumes can be attached to, with a root volume whose content is not what the machine has."""
        with self.lock:
            self.instances[instance_id] = Instance(instance_id, zone, host)
            root = self._new_volume(VolumeRequest(zone, _ROOT_SIZE), _ROOT_SIZE, None)
            root.is_root, root.state = True, "in-use"
            root.attachment = Attachment(instance_id, _ROOT_DEVICE, "attached", delete_on_termination=True)

    def terminate(self, instance_id: str) -> None:
        """End an instance: its volumes are detached, and deleted where DeleteOnTermination says so."""
        with self.lock:
            self.instances[instance_id].running = False
            for volume in self.of_instance(instance_id):
                if volume.attachment:
                    volume.attachment.state = "detaching"
                    self.changes.end(volume, volume.attachment)

    def of_instance(self, instance_id: str) -> list[Volume]:
        """The volumes attached to an instance, or on their way to or from it."""
        return [volume for volume in self.volumes.values() if volume.instance_id == instance_id]

    # --- volumes ---------------------------------------------------------------------------------------------

    def volume(self, volume_id: str) -> Volume:
        """The volume of an id. Raises Refusal, for a while also for a fresh one, as the faults say."""
        return self._known(
            self.volumes.get(volume_id), "InvalidVolume.NotFound", f"The volume '{volume_id}' does not exist."
        )

    def create_volume(self, request: VolumeRequest, token: str | None) -> Volume:
        """CreateVolume: a new volume, or the one made with the same token before."""
        if token:
            asked, earlier = self._tokens.get(token, (None, ""))
            made = self.volumes.get(earlier)
            rules.check_token(token, request, asked, made)
            if made:
                return made
        snapshot = self.snapshot(request.snapshot_id) if request.snapshot_id else None
        rules.check_kind(request)
        size = rules.check_size(request, snapshot)
        if request.zone not in self._zones:
            raise Refusal("InvalidZone.NotFound", f"The zone '{request.zone}' does not exist.")
        limit = self.faults.volume_limit
        if limit is not None and len([volume for volume in self.volumes.values() if not volume.is_root]) >= limit:
            raise Refusal("VolumeLimitExceeded", "You have exceeded your maximum volume limit for this region.")
        volume = self._new_volume(request, size, snapshot)
        if token:
            self._tokens[token] = (request, volume.id)
        self.changes.create(volume)
        return volume

    def delete_volume(self, volume_id: str) -> None:
        """DeleteVolume."""
        volume = self.volume(volume_id)
        if volume.attachment:
            raise Refusal("VolumeInUse", f"Volume {volume_id} is currently attached to {volume.instance_id}")
        if volume.state == "deleting":
            raise Refusal("IncorrectState", f"The volume '{volume_id}' is 'deleting'")
        volume.state = "deleting"
        self.changes.delete(volume)

    def attach(self, volume_id: str, instance_id: str, device: str) -> Attachment:
        """AttachVolume."""
        volume = self.volume(volume_id)
        there = self.of_instance(instance_id)
        taken = {other.attachment.device for other in there if other.attachment} | self.faults.occupied_devices
        rules.check_attach(volume, self.instance(instance_id), device, taken, len(there))
        volume.attachment = attachment = Attachment(instance_id, device)
        volume.state = "in-use"
        self.changes.attach(volume, attachment)
        return attachment

    def detach(self, volume_id: str, instance_id: str | None, device: str | None, force: bool) -> Attachment:
        """DetachVolume. One that is mounted stays ``busy`` until it is not."""
        volume = self.volume(volume_id)
        attachment = volume.attachment
        if attachment is None:
            raise Refusal("IncorrectState", f"Volume '{volume_id}' is in the '{volume.state}' state.")
        if (instance_id or attachment.instance_id) != attachment.instance_id or (
            device or attachment.device
        ) != attachment.device:
            raise Refusal(
                "InvalidAttachment.NotFound",
                f"The volume '{volume_id}' is not attached to instance '{instance_id}' as device '{device}'.",
            )
        if volume.is_root:
            raise Refusal("OperationNotPermitted", f"Unable to detach root volume '{volume_id}' from '{instance_id}'")
        if force:
            self.forced.append(volume_id)
        if attachment.state in ("attaching", "attached"):
            attachment.state = "detaching"
            self.changes.detach(volume, attachment)
        return attachment

    def modify_volume(self, volume_id: str, size: int | None) -> Modification:
        """ModifyVolume, of the size alone."""
        volume = self.volume(volume_id)
        last = self.modifications.get(volume_id)
        if last and last.state == "modifying":
            raise Refusal("IncorrectModificationState", f"Volume {volume_id} is already being modified.")
        target = size or volume.size
        if target < volume.size:
            raise Refusal("InvalidParameterValue", "New size cannot be smaller than existing size")
        self.modifications[volume_id] = change = Modification(volume_id, volume.size, target)
        self.changes.modify(volume, change)
        return change

    def set_delete_on_termination(self, instance_id: str, device: str, delete: bool) -> None:
        """ModifyInstanceAttribute with a block device mapping."""
        self.instance(instance_id)
        for volume in self.of_instance(instance_id):
            if volume.attachment and volume.attachment.device == device:
                self.changes.keep(volume.attachment, delete)
                return
        raise Refusal("InvalidInstanceAttributeValue", f"No device is currently mapped at {device}")

    def instance(self, instance_id: str) -> Instance:
        """The instance of an id. Raises Refusal."""
        found = self.instances.get(instance_id)
        if found is None:
            raise Refusal("InvalidInstanceID.NotFound", f"The instance ID '{instance_id}' does not exist")
        return found

    # --- snapshots -------------------------------------------------------------------------------------------

    def snapshot(self, snapshot_id: str) -> Snapshot:
        """The snapshot of an id. Raises Refusal, for a while also for a fresh one, as the faults say."""
        return self._known(
            self.snapshots.get(snapshot_id),
            "InvalidSnapshot.NotFound",
            f"The snapshot '{snapshot_id}' does not exist.",
        )

    def create_snapshot(self, volume_id: str, description: str, tags: Mapping[str, str]) -> Snapshot:
        """CreateSnapshot: of what the volume holds now."""
        volume = self.volume(volume_id)
        if volume.state not in ("available", "in-use"):
            raise Refusal("IncorrectState", f"Volume '{volume_id}' is in the '{volume.state}' state.")
        pending = [s for s in self.snapshots.values() if s.volume_id == volume_id and s.state == "pending"]
        if len(pending) >= PENDING_SNAPSHOTS:
            raise Refusal(
                "ConcurrentSnapshotLimitExceeded",
                "Maximum allowed in-progress snapshots for a single volume exceeded.",
            )
        snapshot = self.new_snapshot(volume_id, volume.size, description, tags)
        snapshot.encrypted = volume.encrypted
        _copy(volume.file, snapshot.file)
        self._add(self.snapshots, snapshot)
        self.changes.take_snapshot(snapshot)
        return snapshot

    def new_snapshot(self, volume_id: str, size: int, description: str, tags: Mapping[str, str]) -> Snapshot:
        """A snapshot that nobody sees yet, without content."""
        fresh = _fresh_id("snap")
        return Snapshot(fresh, self._directory / fresh, volume_id, size, description, tags=dict(tags))

    def delete_snapshot(self, snapshot_id: str) -> None:
        """DeleteSnapshot."""
        snapshot = self.snapshot(snapshot_id)
        if snapshot.used_by:
            raise Refusal(
                "InvalidSnapshot.InUse", f"The snapshot {snapshot_id} is currently in use by {snapshot.used_by}"
            )
        del self.snapshots[snapshot_id]
        snapshot.file.unlink(missing_ok=True)

    # --- tags ------------------------------------------------------------------------------------------------

    def tags_of(self, resource_id: str) -> dict[str, str]:
        """The tags of a volume or snapshot, to be changed. Raises Refusal."""
        return (self.volume if resource_id.startswith("vol-") else self.snapshot)(resource_id).tags

    # --- making ----------------------------------------------------------------------------------------------

    def _new_volume(self, request: VolumeRequest, size: int, snapshot: Snapshot | None) -> Volume:
        fresh = _fresh_id("vol")
        gp3 = request.volume_type == "gp3"
        encrypted = request.encrypted or bool(snapshot and snapshot.encrypted)
        volume = Volume(
            id=fresh,
            file=self._directory / fresh,
            size=size,
            zone=request.zone,
            snapshot_id=snapshot.id if snapshot else "",
            volume_type=request.volume_type,
            iops=request.iops or (rules.GP3_IOPS if gp3 else None),
            throughput=request.throughput or (rules.GP3_THROUGHPUT if gp3 else None),
            encrypted=encrypted,
            kms_key_id=request.kms_key_id or ("alias/aws/ebs" if encrypted else None),
            initialization_rate=request.initialization_rate,
            tags=dict(request.tags),
        )
        if snapshot:
            _copy(snapshot.file, volume.file)
        else:
            volume.file.touch(mode=0o600)
        os.truncate(volume.file, size * GIB)
        self._add(self.volumes, volume)
        return volume

    def add_snapshot(self, snapshot: Snapshot) -> None:
        """Let a snapshot whose content is there be seen."""
        with self.lock:
            self._add(self.snapshots, snapshot)

    def _add(self, where: dict[str, _Known], fresh: _Known) -> None:
        fresh.unseen = self.faults.unseen
        fresh.born = time.monotonic()
        where[fresh.id] = fresh

    def _known(self, found: _Known | None, code: str, message: str) -> _Known:
        if found is None:
            raise Refusal(code, message)
        if found.unseen > 0:
            found.unseen -= 1
            raise Refusal(code, message)
        return found


def _fresh_id(kind: str) -> str:
    return f"{kind}-0{secrets.token_hex(8)}"


def _copy(source: Path, target: Path) -> None:
    """Copy a sparse file; one of 8 GiB with nothing in it takes no room and no time."""
    argv = ["cp", "--sparse=always", "--reflink=auto", "--", str(source), str(target)]
    subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COPY_SECONDS, check=True)
