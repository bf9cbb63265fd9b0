"""A revision: the immutable identity of what a source held at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent.ebs.snapshots import Snapshot
from bootagent.git_repository import Commit
from bootagent.pull.bundle import Bundle


@dataclass(frozen=True)
class Tree:
    """A directory to be copied: of the image, or on an NFS server's mount."""

    path: str


@dataclass(frozen=True)
class InPlace:
    """What an NFS mount shows, or the image has where it is to run; there is nothing to fetch."""


@dataclass(frozen=True)
class Baked:
    """The releases that ``deploy_to`` has had since the image was made."""


Content = Bundle | Commit | Tree | Snapshot | InPlace | Baked


@dataclass(frozen=True)
class Revision:
    """``id`` is equal exactly when the content is; ``label`` is for people and for the release's REVISION file."""

    id: str
    label: str
    origin: str
    content: Content
