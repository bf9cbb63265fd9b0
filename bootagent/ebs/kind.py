"""What kind of volume to make."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VolumeKind:
    """The parameters of EC2's CreateVolume; None: EC2's own default.

    ``throughput`` and ``initialization_rate`` are in MiB/s, ``size_gib`` in GiB (None: the snapshot's).
    """

    type: str = "gp3"
    iops: int | None = None
    throughput: int | None = None
    encrypted: bool | None = None
    kms_key: str | None = None
    initialization_rate: int | None = None
    size_gib: int | None = None
