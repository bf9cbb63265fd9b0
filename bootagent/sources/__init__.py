"""Where releases come from: each source resolves its moving name to one immutable :class:`Revision`."""

from __future__ import annotations

from bootagent.config.model import S3Source
from bootagent.sources import s3
from bootagent.sources.revision import Revision

__all__ = ["Revision", "resolve"]


def resolve(source: S3Source, region: str | None) -> Revision:
    """What the source holds right now. Raises AwsError or BundleError."""
    return s3.resolve(source, region)
