"""A revision: the immutable identity of what a source held at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent.pull.bundle import Bundle


@dataclass(frozen=True)
class Revision:
    """``id`` is equal exactly when the content is; ``label`` is for people and for the release's REVISION file."""

    id: str
    label: str
    origin: str
    bundle: Bundle
