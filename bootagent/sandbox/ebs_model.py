"""What the simulated EBS keeps of volumes and snapshots, how long its changes take, and what may go wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

ACCOUNT = "123456789012"
GIB = 1024**3


class Refusal(Exception):
    """An error answer of the API: its code and message."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


@dataclass
class Timing:
    """How long each change takes, in seconds. AWS needs 1 to 4 s for an attach, and hours for some snapshots."""

    create: float = 0.1
    attach: float = 0.2
    detach: float = 0.2
    delete: float = 0.1
    modify: float = 0.2
    snapshot: float = 0.2


@dataclass
class Faults:
    """What is wrong with EBS at the moment. A number counts the next ones it befalls, unless it says seconds."""

    #: Seconds from "attached" until the kernel of the instance sees the device.
    device_late: float = 0.0
    #: Attachments that stay "attaching" until they are detached.
    stuck_attachments: int = 0
    #: Detachments that stay "detaching" for ever.
    stuck_detachments: int = 0
    #: Volumes that turn "error" after CreateVolume has succeeded, as with a KMS key that may not be used.
    failing_volumes: int = 0
    #: Snapshots that turn "error".
    failing_snapshots: int = 0
    #: Snapshots that stay "pending".
    pending_snapshots: int = 0
    #: Devices whose arrival is held back until the next one has arrived.
    reversed_arrivals: int = 0
    #: How many times each fresh id is answered with NotFound first: EC2 is eventually consistent.
    unseen: int = 0
    #: Seconds until a fresh resource is found without its id.
    search_lag: float = 0.0
    #: Seconds until a change of DeleteOnTermination, which was answered with success, takes effect.
    attribute_lag: float = 0.0
    #: Changes of DeleteOnTermination that are answered with success and have no effect.
    lost_attributes: int = 0
    #: Device names that are taken on every instance though no volume is seen there.
    occupied_devices: set[str] = field(default_factory=set)
    #: How many volumes there may be, before VolumeLimitExceeded.
    volume_limit: int | None = None
    #: How many results an answer has at most, whatever was asked.
    page_size: int | None = None

    def take(self, name: str) -> bool:
        """Whether the fault of this name befalls now; one less of them is left."""
        left = getattr(self, name)
        if left > 0:
            setattr(self, name, left - 1)
        return bool(left > 0)


@dataclass
class Attachment:
    """A volume on an instance. ``state`` is attaching, attached, detaching or busy; ``plugged``: the kernel sees it."""

    instance_id: str
    device: str
    state: str = "attaching"
    since: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    delete_on_termination: bool = False
    plugged: bool = False


@dataclass
class Volume:
    """A volume; ``file`` is its content, ``size`` in GiB. ``state`` is creating, available, in-use, deleting, error."""

    id: str
    file: Path
    size: int
    zone: str
    snapshot_id: str = ""
    volume_type: str = "gp2"
    iops: int | None = None
    throughput: int | None = None
    encrypted: bool = False
    kms_key_id: str | None = None
    initialization_rate: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    state: str = "creating"
    attachment: Attachment | None = None
    is_root: bool = False
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    born: float = 0.0
    unseen: int = 0

    @property
    def instance_id(self) -> str | None:
        """The instance it is on, or on its way to or from."""
        return self.attachment.instance_id if self.attachment else None


@dataclass
class Snapshot:
    """A snapshot; ``size`` is the volume's in GiB, ``state`` is pending, completed or error."""

    id: str
    file: Path
    volume_id: str
    size: int
    description: str = ""
    owner: str = ACCOUNT
    encrypted: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    state: str = "pending"
    progress: int = 0
    used_by: str | None = None
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    born: float = 0.0
    unseen: int = 0


@dataclass
class Modification:
    """The last change of a volume's size; ``state`` is modifying, optimizing or completed."""

    volume_id: str
    original_size: int
    target_size: int
    state: str = "modifying"
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))


@dataclass(frozen=True)
class VolumeRequest:
    """The parameters of CreateVolume, but for the client token."""

    zone: str
    size: int | None = None
    snapshot_id: str | None = None
    volume_type: str = "gp2"
    iops: int | None = None
    throughput: int | None = None
    encrypted: bool = False
    kms_key_id: str | None = None
    initialization_rate: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
