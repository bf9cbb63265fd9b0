"""The configuration as the rest of the agent sees it: frozen, complete, for one role."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class S3Source:
    """A release pointer (``.json``) or an archive in S3."""

    bucket: str
    key: str
    region: str | None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


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
    ``only`` narrows the services by name; None means all.
    """

    name: str
    deploy_to: str
    user: str
    group: str | None
    source: S3Source
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
    runit: Runit
