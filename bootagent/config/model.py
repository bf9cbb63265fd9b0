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
    """What the image holds: the tree at ``path``; None: the releases that ``deploy_to`` has already.

    Without ``copy`` the services run in ``deploy_to`` itself, which is no place of releases.
    """

    path: str | None
    copy: bool = True

    def __str__(self) -> str:
        if not self.copy:
            return "the image itself"
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
class Secret:
    """Values for the environment that are kept elsewhere.

    ``origin`` is ``ssm:PATH`` (every parameter below it, when it ends in a slash) or ``secretsmanager:NAME[#KEY]``.
    ``name`` is the variable; None: the parameters', or keys', own names.
    """

    name: str | None
    origin: str


@dataclass(frozen=True)
class EnvironmentTree:
    """Directories as ``chpst -e`` reads them: ``layers``, then ``APP/`` and ``APP/SERVICE/``; the inner wins.

    ``path`` is where they are: absolute in the image, relative in the release, or in the repository ``git``.
    """

    path: str
    git: GitSource | None
    layers: tuple[str, ...]


@dataclass(frozen=True)
class ProcessLimits:
    """What each process of a service may have: setrlimit(2). Sizes in bytes; None: as it is."""

    memory: int | None = None
    open_files: int | None = None
    processes: int | None = None
    core: int | None = None
    file_size: int | None = None


@dataclass(frozen=True)
class Cgroup:
    """What a service may have as a whole. ``memory`` in bytes, ``cpus`` in processors' time; None: as it is."""

    memory: int | None = None
    cpus: float | None = None
    processes: int | None = None


Runtime = Literal["auto", "asdf", "mise", "none"]


@dataclass(frozen=True)
class Service:
    """A service as configured. ``command`` None: the release's own service directory of this name. Times in seconds.

    ``after`` are services, as ``APP.SERVICE``, that must be healthy first. ``directory`` is where it runs: absolute, or
    below current. ``reload`` is the signal that has it take up a new release; None: it is restarted. ``stop`` is run
    before it is told to end. ``umask`` is in octal digits.
    """

    name: str
    command: tuple[str, ...] | None
    user: str
    group: str | None
    env: tuple[tuple[str, str], ...]
    log: str
    stable_for: float
    stop_within: float
    check: Check
    after: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()
    runtime: Runtime = "auto"
    wrapper: tuple[str, ...] = ()
    directory: str = ""
    umask: str | None = None
    limits: ProcessLimits = ProcessLimits()
    cgroup: Cgroup | None = None
    reload: Literal["HUP", "USR1", "USR2"] | None = None
    stop: tuple[str, ...] | None = None


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
    ``after`` are apps whose services must be healthy before this one's are started. ``stop`` is the hook for when they
    are stopped for good; ``hooks_within`` is in seconds.
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
    hooks_within: float
    release_services: str
    services: tuple[Service, ...]
    unnamed: Service
    only: tuple[str, ...] | None
    limits: Limits
    after: tuple[str, ...] = ()
    environment: EnvironmentTree | None = None
    stop: tuple[str, ...] | None = None

    @property
    def current(self) -> str:
        """The directory its services run in."""
        runs_in_deploy_to = isinstance(self.source, ImageSource) and not self.source.copy
        return self.deploy_to if runs_in_deploy_to else f"{self.deploy_to}/current"

    @property
    def in_place(self) -> bool:
        """Whether releases come and go where they are read, so that there is nothing to stage and no link to switch."""
        match self.source:
            case NfsSource(copy=copy):
                return not copy
            case EbsSource(holds=holds):
                return holds == "deploy_to"
            case ImageSource(copy=copy):
                return not copy
        return False


@dataclass(frozen=True)
class Runit:
    """Where runit lives: the directory runsvdir watches, and the one that keeps service directories."""

    service_dir: str
    definitions: str


@dataclass(frozen=True)
class ElasticIp:
    """An elastic IP by its allocation id, or any free one of those with ``tags``."""

    allocation: str | None
    tags: Tags


@dataclass(frozen=True)
class TargetGroup:
    """A target group, by name or ARN; ``port`` None: the group's own."""

    group: str
    port: int | None


@dataclass(frozen=True)
class Traffic:
    """How traffic reaches an instance. ``load_balancers`` are classic ones; times in seconds.

    ``within``: until the address is ours and the balancers find the node healthy; ``drain_within``: until they have let
    it go.
    """

    elastic_ip: ElasticIp | None
    target_groups: tuple[TargetGroup, ...]
    load_balancers: tuple[str, ...]
    within: float
    drain_within: float


@dataclass(frozen=True)
class Lifecycle:
    """The autoscaling group's lifecycle hooks, by name, that the agent answers; times in seconds.

    ``diagnosis`` is an s3:// URL, a prefix.
    """

    launching: str | None
    terminating: str | None
    sustained: float
    give_up_after: float
    on_failure: Literal["abandon", "stay"]
    diagnosis: str | None


@dataclass(frozen=True)
class Telling:
    """Who is told how a run ended, beside the log and the state; ``metrics`` is a file for Prometheus."""

    console: bool = True
    tags: bool = False
    metrics: str | None = None


@dataclass(frozen=True)
class Config:
    """What this instance is to be. ``mode`` is None where the configuration knows no modes.

    Where the mode says what to run and no role is told, ``role`` is the mode's name.
    """

    role: str
    environment: str | None
    apps: tuple[App, ...]
    volumes: tuple[DataVolume, ...]
    runit: Runit
    mode: str | None = None
    traffic: Traffic | None = None
    lifecycle: Lifecycle | None = None
    telling: Telling = Telling()
