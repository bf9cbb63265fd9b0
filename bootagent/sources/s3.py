"""The S3 source: a release pointer, or the archive itself for people who only upload one."""

from __future__ import annotations

import hashlib

from bootagent import aws, pointer
from bootagent.config.model import S3Source
from bootagent.errors import BundleError
from bootagent.pull import formats
from bootagent.pull.bundle import Bundle
from bootagent.pull.head import describe
from bootagent.sources.revision import Revision


def resolve(source: S3Source, region: str | None) -> Revision:
    """Read the pointer (one GetObject), or the archive's identity (one HeadObject).

    Raises AwsError, and BundleError for a pointer that makes no sense.
    """
    region = source.region or region
    return _from_pointer(source, region) if source.key.endswith(".json") else _from_archive(source, region)


def _from_pointer(source: S3Source, region: str | None) -> Revision:
    with aws.call(f"read {source}", "s3:GetObject"):
        answer = aws.s3(region).get_object(Bucket=source.bucket, Key=source.key)
        document = answer["Body"].read(pointer.MAX_BYTES + 1)
    if len(document) > pointer.MAX_BYTES:
        raise BundleError(f"{source} is larger than {pointer.MAX_BYTES} bytes: not a release pointer")
    found = pointer.parse(document, str(source))
    formats.of(found.bundle)  # refuse an unknown suffix before anything changes
    return Revision(
        id=f"sha256:{found.sha256}",
        label=found.revision,
        origin=f"s3://{source.bucket}/{found.bundle}",
        content=Bundle(
            bucket=source.bucket,
            key=found.bundle,
            region=region,
            size=found.size,
            etag=None,
            version_id=found.version_id,
            sha256=found.sha256,
            checksums=(),
            unpacked_size=found.unpacked_size,
            files=found.files,
        ),
    )


def _from_archive(source: S3Source, region: str | None) -> Revision:
    found = describe(region, source.bucket, source.key)
    identity = f"version:{found.version_id}" if found.version_id else f"etag:{found.etag}:{found.size}"
    # REVISION should tell releases apart in one word; an archive carries no commit.
    label = found.version_id or hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Revision(
        id=identity,
        label=label,
        origin=str(source),
        content=Bundle(
            bucket=source.bucket,
            key=source.key,
            region=region,
            size=found.size,
            etag=found.etag,
            version_id=found.version_id,
            sha256=None,
            checksums=found.checksums,
            unpacked_size=None,
            files=None,
        ),
    )
