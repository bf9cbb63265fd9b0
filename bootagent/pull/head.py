"""What S3 says about an object before it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bootagent import aws


@dataclass(frozen=True)
class Description:
    """One version of an object: its size in bytes, what pins it, and S3's checksums over the whole of it."""

    size: int
    etag: str | None
    version_id: str | None
    checksums: tuple[tuple[str, str], ...]


def describe(region: str | None, bucket: str, key: str, version_id: str | None = None) -> Description:
    """Ask S3 (HeadObject) for an object's size, ETag, version and full-object checksums.

    A checksum of checksums (``ChecksumType`` COMPOSITE, or a value ending in ``-N``) says nothing about the bytes read
    in one go, and is left out. Raises AwsError when the object is not there or may not be read.
    """
    action = "s3:GetObjectVersion" if version_id else "s3:GetObject"
    version = {"VersionId": version_id} if version_id else {}
    with aws.call(f"look at s3://{bucket}/{key}", action):
        found: Any = aws.s3(region).head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED", **version)  # type: ignore[arg-type]
    checksums = tuple(
        sorted(
            (name, value)
            for name, value in found.items()
            if name.startswith("Checksum")
            and name != "ChecksumType"
            and found.get("ChecksumType") != "COMPOSITE"
            and "-" not in value
        )
    )
    given = found.get("VersionId")  # "null" is the version of objects from before versioning, and no name of one
    return Description(
        found["ContentLength"], found.get("ETag"), version_id or (given if given != "null" else None), checksums
    )
