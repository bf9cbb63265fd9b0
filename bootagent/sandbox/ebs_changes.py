"""What the clock does to simulated volumes and snapshots: every change takes its time, and disks come and go."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from bootagent.sandbox.agenda import Agenda
from bootagent.sandbox.ebs_model import GIB, Attachment, Faults, Modification, Snapshot, Timing, Volume
from bootagent.sandbox.loop_host import Host, StillInUse

_BUSY_POLL_SECONDS = 0.1


@dataclass
class Instance:
    """A machine that volumes can be attached to."""

    id: str
    zone: str
    host: Host
    running: bool = True


class Changes:
    """Brings what the API has promised about, in a thread of its own. ``lock`` guards all that it changes."""

    def __init__(self) -> None:
        self.timing = Timing()
        self.faults = Faults()
        self.lock = threading.RLock()
        self.agenda = Agenda()
        self.volumes: dict[str, Volume] = {}
        self.instances: dict[str, Instance] = {}
        self._held_back: list[tuple[Volume, Attachment]] = []

    def create(self, volume: Volume) -> None:
        """From ``creating`` to ``available``, or ``error``."""
        state = "error" if self.faults.take("failing_volumes") else "available"
        self._later(self.timing.create, self._created, volume, state)

    def delete(self, volume: Volume) -> None:
        """From ``deleting`` to nothing."""
        self._later(self.timing.delete, self._deleted, volume)

    def attach(self, volume: Volume, attachment: Attachment) -> None:
        """From ``attaching`` to ``attached`` and a device."""
        if not self.faults.take("stuck_attachments"):
            self._later(self.timing.attach, self._attached, volume, attachment)

    def detach(self, volume: Volume, attachment: Attachment) -> None:
        """From ``detaching``, perhaps by way of ``busy``, to ``available``."""
        if not self.faults.take("stuck_detachments"):
            self._later(self.timing.detach, self._leave, volume, attachment)

    def end(self, volume: Volume, attachment: Attachment) -> None:
        """The instance is no more: the volume leaves it at once, and goes too if it is to."""
        self._later(0.0, self._leave, volume, attachment, attachment.delete_on_termination)

    def keep(self, attachment: Attachment, delete_on_termination: bool) -> None:
        """Let an attachment have DeleteOnTermination, or not."""
        if not self.faults.take("lost_attributes"):
            self._later(self.faults.attribute_lag, self._kept, attachment, delete_on_termination)

    def modify(self, volume: Volume, change: Modification) -> None:
        """From ``modifying`` to ``optimizing``, when the size counts, to ``completed``."""
        self._later(self.timing.modify, self._modified, volume, change)

    def take_snapshot(self, snapshot: Snapshot) -> None:
        """From ``pending`` to ``completed``, or ``error``."""
        if not self.faults.take("pending_snapshots"):
            state = "error" if self.faults.take("failing_snapshots") else "completed"
            self._later(self.timing.snapshot, self.finish_snapshot, snapshot, state)

    def finish_snapshot(self, snapshot: Snapshot, state: str) -> None:
        """Let a snapshot be ``completed``, or ``error``, at once."""
        with self.lock:
            snapshot.state = state
            snapshot.progress = 100 if state == "completed" else snapshot.progress

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

    def _leave(self, volume: Volume, attachment: Attachment, then_delete: bool = False) -> None:
        if volume.attachment is not attachment:
            return
        if attachment.plugged:
            try:
                self.instances[attachment.instance_id].host.unplug(volume.id)
            except StillInUse:
                attachment.state = "busy"
                self._later(_BUSY_POLL_SECONDS, self._leave, volume, attachment, then_delete)
                return
        with self.lock:
            volume.attachment = None
            volume.state = "available"
            if then_delete:
                self._deleted(volume)

    def _kept(self, attachment: Attachment, delete_on_termination: bool) -> None:
        attachment.delete_on_termination = delete_on_termination

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
