"""The configuration as the rest of the agent sees it: frozen, complete, for one role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bootagent.ebs.kind import VolumeKind

Tags = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class S3Source:
    """A release pointer (``.json``) or an archive in S3."""

    bucket: str
    key: str
    region: str | None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True)
class NfsSource:
    """A release on an NFS server, read through the mount, or copied from it.

    ``path`` is where the release is, below the mountpoint, when it is copied. ``within`` is in seconds.
    """

    server: str
    export: str
    mountpoint: str
    options: tuple[str, ...]
    copy: bool
    path: str
    within: float

    def __str__(self) -> str:
        return f"{self.server}:{self.export}"


@dataclass(frozen=True)
class EbsSource:
    """The newest completed snapshot that carries ``snapshot``'s tags; ``holds`` says what is on it.

    ``bind``: ``deploy_to`` shows what is mounted at ``mountpoint``. ``within`` is in seconds.
    """

    snapshot: Tags
    owner: str
    holds: Literal["deploy_to", "release"]
    mountpoint: str
    bind: bool
    options: tuple[str, ...]
    device: str
    volume: VolumeKind
    within: float

    def __str__(self) -> str:
        return "snapshots with " + ", ".join(f"{key}={value}" for key, value in self.snapshot)


@dataclass(frozen=True)
class GitSource:
    """A ref of a git repository. ``key``: a deploy key's file, or ``ssm:`` and the name of a parameter."""

    url: str
    ref: str
    key: str | None
    known_hosts: str
    submodules: bool


@dataclass(frozen=True)
class ImageSource:
    """What the image holds: the tree at ``path``; None: the releases that ``deploy_to`` has already."""

    path: str | None

    def __str__(self) -> str:
        return f"the image's {self.path}" if self.path else "what the image holds"


Source = S3Source | NfsSource | EbsSource | GitSource | ImageSource


@dataclass(frozen=True)
class DataVolume:
    """A volume of a role, with data that is not a release.

    ``tags`` identify one that outlives instances; without them it is the instance's own. ``snapshot`` says what a new
    one is made from; without it, and with a size, a new one is blank. ``within`` is in seconds.
    """

    name: str
    mountpoint: str
    tags: Tags
    snapshot: Tags
    owner: str
    filesystem: Literal["xfs", "ext4"]
    options: tuple[str, ...]
    user: str | None
    group: str | None
    device: str
    volume: VolumeKind
    delete_on_termination: bool
    within: float


@dataclass(frozen=True)
class LinkedFile:
    """A file of ``shared/`` linked into each release; ``origin`` is an absolute path, an s3:// URL, or None."""

    path: str
    origin: str | None


@dataclass(frozen=True)
class Check:
    """How to see that a service works: at most one of the three. ``within`` is in seconds."""

    http: str | None
    tcp: str | None
    command: tuple[str, ...] | None
    within: float


@dataclass(frozen=True)
class Service:
    """A service as configured. ``command`` None: the release's own service directory of this name. Times in seconds."""

    name: str
    command: tuple[str, ...] | None
    user: str
    group: str | None
    env: tuple[tuple[str, str], ...]
    log: str
    stable_for: float
    stop_within: float
    check: Check


@dataclass(frozen=True)
class Limits:
    """What a bundle may cost: bytes unpacked, members, bytes that stay free, seconds."""

    unpacked: int
    files: int
    reserve: int
    within: float


@dataclass(frozen=True)
class App:
    """One app of the role.

    ``unnamed`` stands for any service of a release that is not among ``services``; its name is "*", in its log too.
    ``only`` narrows the services by name; None means all. ``fallback`` is what serves when nothing can be fetched.
    """

    name: str
    deploy_to: str
    user: str
    group: str | None
    source: Source
    fallback: ImageSource | None
    linked_files: tuple[LinkedFile, ...]
    linked_dirs: tuple[str, ...]
    keep_releases: int
    prepare: tuple[str, ...] | None
    prepare_within: float
    release_services: str
    services: tuple[Service, ...]
    unnamed: Service
    only: tuple[str, ...] | None
    limits: Limits

    @property
    def in_place(self) -> bool:
        """Whether releases come and go where they are read, so that there is nothing to stage and no link to switch."""
        match self.source:
            case NfsSource(copy=copy):
                return not copy
            case EbsSource(holds=holds):
                return holds == "deploy_to"
        return False


@dataclass(frozen=True)
class Runit:
    """Where runit lives: the directory runsvdir watches, and the one that keeps service directories."""

    service_dir: str
    definitions: str


@dataclass(frozen=True)
class Config:
    """What this instance is to be."""

    role: str
    environment: str | None
    apps: tuple[App, ...]
    volumes: tuple[DataVolume, ...]
    runit: Runit
