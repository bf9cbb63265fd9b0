"""A simulated EBS: volumes and snapshots are sparse files, states change by the clock, disks come to real machines.

Codes and messages of refusals are those of the EC2 API ("Error codes for the Amazon EC2 API").
"""

from __future__ import annotations

import heapq
import itertools
import os
import re
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bootagent.sandbox.ebs_model import (
    GIB,
    Attachment,
    Faults,
    Modification,
    Refusal,
    Snapshot,
    Timing,
    Volume,
    VolumeRequest,
)
from bootagent.sandbox.loop_host import Host, StillInUse

#: Concurrent snapshots of one volume ("Amazon EBS quotas").
PENDING_SNAPSHOTS = 5
ATTACHMENTS = 27
ROOT_DEVICE = "/dev/xvda"

_BUSY_POLL_SECONDS = 0.1
_COPY_SECONDS = 120.0
_DEVICE = re.compile(r"/dev/(sd[a-z]|xvd[a-z]|xvd[b-d][a-z])[0-9]{0,2}")
_GP3_IOPS, _GP3_THROUGHPUT = 3000, 125
_RATES = range(100, 301)  # MiB/s, CreateVolume's VolumeInitializationRate
_WITH_IOPS = ("gp3", "io1", "io2")
_TYPES = (*_WITH_IOPS, "gp2", "st1", "sc1", "standard")

_Known = TypeVar("_Known", Volume, Snapshot)


@dataclass
class Instance:
    """A machine that volumes can be attached to."""

    id: str
    zone: str
    host: Host
    running: bool = True


class Agenda:
    """Does things at their time, one after another, in a thread of its own; remembers what went wrong with them."""

    def __init__(self) -> None:
        self.problems: list[Exception] = []
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = itertools.count()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="ebs", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something so many seconds from now."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._counter), action))
            self._changed.notify()

    def close(self) -> None:
        """Do nothing more; what is being done is finished first."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._closed:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(wait)
            return None

    def _work(self) -> None:
        while action := self._next():
            try:
                action()
            except Exception as error:
                self.problems.append(error)


class Ebs:
    """Volumes and snapshots of one region, with their contents in ``directory``, shared by its instances."""

    def __init__(self, directory: Path, zones: tuple[str, ...]) -> None:
        self.timing = Timing()
        self.faults = Faults()
        self.lock = threading.RLock()
        self.agenda = Agenda()
        self.volumes: dict[str, Volume] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.instances: dict[str, Instance] = {}
        self.modifications: dict[str, Modification] = {}
        #: The volumes that somebody detached with Force.
        self.forced: list[str] = []
        self._directory = directory
        self._zones = zones
        self._tokens: dict[str, tuple[VolumeRequest, str]] = {}
        self._held_back: list[tuple[Volume, Attachment]] = []

    # --- instances -------------------------------------------------------------------------------------------

    def add_instance(self, instance_id: str, zone: str, host: Host) -> None:
        """A machine that volumes can be attached to, with a root volume that has no content here."""
        with self.lock:
            self.instances[instance_id] = Instance(instance_id, zone, host)
            root = Volume(_fresh_id("vol"), self._directory / "none", 8, zone, is_root=True, state="in-use")
            root.attachment = Attachment(instance_id, ROOT_DEVICE, "attached", delete_on_termination=True)
            self.volumes[root.id] = root

    def terminate(self, instance_id: str) -> None:
        """End an instance: its volumes are detached, and deleted where DeleteOnTermination says so."""
        with self.lock:
            self.instances[instance_id].running = False
            for volume in self.of_instance(instance_id):
                if volume.is_root:
                    del self.volumes[volume.id]
                elif attachment := volume.attachment:
                    attachment.state = "detaching"
                    self._later(0.0, self._leave, volume, attachment)

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
        if token and (earlier := self._made_with(token, request)):
            return earlier
        snapshot = self._source(request)
        _check_kind(request)
        size = request.size or (snapshot.size if snapshot else 0)
        if request.zone not in self._zones:
            raise Refusal("InvalidZone.NotFound", f"The zone '{request.zone}' does not exist.")
        if snapshot and size < snapshot.size:
            raise Refusal(
                "InvalidParameterValue",
                f"Volume of size {size}GB is smaller than snapshot '{snapshot.id}', expect size >= {snapshot.size}GB",
            )
        limit = self.faults.volume_limit
        if limit is not None and len([volume for volume in self.volumes.values() if not volume.is_root]) >= limit:
            raise Refusal("VolumeLimitExceeded", "You have exceeded your maximum volume limit for this region.")
        volume = self._new_volume(request, size, snapshot)
        if token:
            self._tokens[token] = (request, volume.id)
        fate = "error" if self.faults.take("failing_volumes") else "available"
        self._later(self.timing.create, self._created, volume, fate)
        return volume

    def delete_volume(self, volume_id: str) -> None:
        """DeleteVolume."""
        volume = self.volume(volume_id)
        if volume.attachment:
            raise Refusal("VolumeInUse", f"Volume {volume_id} is currently attached to {volume.instance_id}")
        if volume.state == "deleting":
            raise Refusal("IncorrectState", f"The volume '{volume_id}' is 'deleting'")
        volume.state = "deleting"
        self._later(self.timing.delete, self._deleted, volume)

    def attach(self, volume_id: str, instance_id: str, device: str) -> Attachment:
        """AttachVolume."""
        volume = self.volume(volume_id)
        self._check_attach(volume, self.instance(instance_id), device)
        volume.attachment = attachment = Attachment(instance_id, device)
        volume.state = "in-use"
        if not self.faults.take("stuck_attachments"):
            self._later(self.timing.attach, self._attached, volume, attachment)
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
            # It stays that long once it is off, whatever DeleteOnTermination said.
            attachment.delete_on_termination = False
            if not self.faults.take("stuck_detachments"):
                self._later(self.timing.detach, self._leave, volume, attachment)
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
        self._later(self.timing.modify, self._modified, volume, change)
        return change

    def set_delete_on_termination(self, instance_id: str, device: str, delete: bool) -> None:
        """ModifyInstanceAttribute with a block device mapping."""
        self.instance(instance_id)
        for volume in self.of_instance(instance_id):
            if volume.attachment and volume.attachment.device == device:
                volume.attachment.delete_on_termination = delete
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
        if not self.faults.take("pending_snapshots"):
            fate = "error" if self.faults.take("failing_snapshots") else "completed"
            self._later(self.timing.snapshot, self.finish_snapshot, snapshot, fate)
        return snapshot

    def new_snapshot(self, volume_id: str, size: int, description: str, tags: Mapping[str, str]) -> Snapshot:
        """A snapshot that nobody sees yet, without content."""
        fresh = _fresh_id("snap")
        return Snapshot(fresh, self._directory / fresh, volume_id, size, description, tags=dict(tags))

    def finish_snapshot(self, snapshot: Snapshot, state: str) -> None:
        """Let a snapshot be completed, or turn ``error``."""
        with self.lock:
            snapshot.state = state
            snapshot.progress = 100 if state == "completed" else snapshot.progress

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

    def _made_with(self, token: str, request: VolumeRequest) -> Volume | None:
        if len(token) > 64:
            raise Refusal("InvalidParameterValue", f"Value ({token}) for parameter clientToken is too long.")
        if token not in self._tokens:
            return None
        asked, volume_id = self._tokens[token]
        volume = self.volumes.get(volume_id)
        if asked != request or volume is None or volume.state in ("error", "deleting"):
            raise Refusal(
                "IdempotentParameterMismatch",
                f"The client token '{token}' has been used before, with other parameters or for a volume that is gone.",
            )
        return volume

    def _source(self, request: VolumeRequest) -> Snapshot | None:
        if not request.snapshot_id:
            if not request.size:
                raise Refusal("MissingParameter", "The request must contain the parameter size/snapshot")
            if request.initialization_rate:
                raise Refusal(
                    "InvalidParameterCombination", "The parameter VolumeInitializationRate requires a SnapshotId."
                )
            return None
        snapshot = self.snapshot(request.snapshot_id)
        if snapshot.state != "completed":
            raise Refusal("IncorrectState", f"Snapshot is in invalid state - {snapshot.state}")
        return snapshot

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
            iops=request.iops or (_GP3_IOPS if gp3 else None),
            throughput=request.throughput or (_GP3_THROUGHPUT if gp3 else None),
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

    def _check_attach(self, volume: Volume, instance: Instance, device: str) -> None:
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
        there = self.of_instance(instance.id)
        if device in {v.attachment.device for v in there if v.attachment} | self.faults.occupied_devices:
            raise Refusal(
                "InvalidParameterValue",
                f"Invalid value '{device}' for unixDevice. Attachment point {device} is already in use",
            )
        if len(there) > ATTACHMENTS:
            raise Refusal("AttachmentLimitExceeded", "Volume attachment limit exceeded for this instance.")

    # --- what the clock does ---------------------------------------------------------------------------------

    def _later(self, seconds: float, action: Callable[..., None], *given: object) -> None:
        self.agenda.after(seconds, lambda: action(*given))

    def _created(self, volume: Volume, state: str) -> None:
        with self.lock:
            if volume.state == "creating":
                volume.state = state

    def _deleted(self, volume: Volume) -> None:
        with self.lock:
            self.volumes.pop(volume.id, None)
            volume.file.unlink(missing_ok=True)

    def _attached(self, volume: Volume, attachment: Attachment) -> None:
        with self.lock:
            if volume.attachment is not attachment or attachment.state != "attaching":
                return
            attachment.state = "attached"
            if self.faults.take("reversed_arrivals"):
                self._held_back.append((volume, attachment))
                return
        # The API says so a moment before the kernel does.
        self._later(self.faults.device_late, self._arrive, volume, attachment)

    def _arrive(self, volume: Volume, attachment: Attachment) -> None:
        if volume.attachment is not attachment or attachment.state != "attached":
            return
        self.instances[attachment.instance_id].host.plug(volume.id, volume.file, attachment.device)
        attachment.plugged = True
        with self.lock:
            waiting, self._held_back = self._held_back, []
        for other in waiting:
            self._arrive(*other)

    def _leave(self, volume: Volume, attachment: Attachment) -> None:
        if volume.attachment is not attachment:
            return
        if attachment.plugged:
            try:
                self.instances[attachment.instance_id].host.unplug(volume.id)
            except StillInUse:
                attachment.state = "busy"
                self._later(_BUSY_POLL_SECONDS, self._leave, volume, attachment)
                return
        with self.lock:
            volume.attachment = None
            volume.state = "available"
            if attachment.delete_on_termination:
                self._deleted(volume)

    def _modified(self, volume: Volume, change: Modification) -> None:
        os.truncate(volume.file, change.target_size * GIB)
        with self.lock:
            volume.size = change.target_size
            change.state = "optimizing"
            attachment = volume.attachment
        if attachment and attachment.plugged:
            self.instances[attachment.instance_id].host.resized(volume.id)
        self._later(self.timing.modify, self._optimized, change)

    def _optimized(self, change: Modification) -> None:
        change.state = "completed"


def _check_kind(request: VolumeRequest) -> None:
    kind, rate = request.volume_type, request.initialization_rate
    if kind not in _TYPES:
        raise Refusal("UnknownVolumeType", f"Unsupported volume type '{kind}' for volume creation.")
    if request.iops and kind not in _WITH_IOPS:
        raise Refusal("InvalidParameterCombination", f"The parameter iops is not supported for {kind} volumes.")
    if not request.iops and kind in ("io1", "io2"):
        raise Refusal("MissingParameter", f"The parameter iops must be specified for {kind} volumes.")
    if request.throughput and kind != "gp3":
        raise Refusal("InvalidParameterCombination", f"The parameter throughput is not supported for {kind} volumes.")
    if kind == "gp3" and request.iops and request.iops < _GP3_IOPS:
        raise Refusal("InvalidParameterValue", f"Volume iops of {request.iops} is too low; minimum is {_GP3_IOPS}.")
    if request.kms_key_id and not request.encrypted:
        raise Refusal(
            "InvalidParameterDependency", "The parameter KmsKeyId requires the parameter Encrypted to be set."
        )
    if rate and rate not in _RATES:
        raise Refusal("InvalidParameterValue", f"The volume initialization rate {rate} is not between 100 and 300.")


def _fresh_id(kind: str) -> str:
    return f"{kind}-0{secrets.token_hex(8)}"


def _copy(source: Path, target: Path) -> None:
    """Copy a sparse file; one of 8 GiB with nothing in it takes no room and no time."""
    argv = ["cp", "--sparse=always", "--reflink=auto", "--", str(source), str(target)]
    subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COPY_SECONDS, check=True)
