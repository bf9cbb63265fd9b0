"""Publishing a release: a commit of a git work tree becomes a bundle in S3, and a pointer that names it.

tree.py      which commit, whether the work tree agrees with it, and a place to read it from
archive.py   the commit as one compressed tar archive, the same bytes every time
upload.py    the bundle into the bucket, verified; then the pointer, by compare-and-swap
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from bootagent import aws
from bootagent.errors import UsageError
from bootagent.machine import Machine
from bootagent.pointer import Pointer
from bootagent.publish import archive, tree, upload


@dataclass(frozen=True)
class Published:
    """What a publication left in the bucket.

    ``uploaded`` is False when the identical bundle was there already; ``unchanged`` is True when the pointer already
    named it and was left alone.
    """

    pointer_url: str
    bundle_url: str
    pointer: Pointer
    uploaded: bool
    unchanged: bool


def publish(
    machine: Machine, *, url: str, repo: Path, ref: str = "HEAD", compression: str = "zst", region: str | None = None
) -> Published:
    """Publish a commit of ``repo`` under the pointer ``url`` (``s3://bucket/path/name.json``).

    ``ref`` HEAD demands a clean work tree; any other names a commit that is published whatever the work tree holds.
    ``compression`` is ``zst`` or ``gz``. The pointer is read first and replaced last, only if nobody else did so in
    between; until then a reader sees the release before.

    Raises UsageError when what is asked for cannot be published, CommandError when git or the compressor fails,
    BundleError when the bucket holds other content than it should, AwsError when S3 refuses, and BootagentError when
    someone else moved the pointer.
    """
    place = upload.parse(url)
    if compression not in archive.COMPRESSORS:
        raise UsageError(f"unknown compression {compression!r}", remedy=f"use {' or '.join(archive.COMPRESSORS)}")
    commit = tree.resolve(machine, repo, ref)
    if ref in tree.HEAD:
        tree.require_clean(machine, repo)
    s3 = aws.s3(region)
    before = upload.read_pointer(s3, place)
    with tempfile.TemporaryDirectory(prefix="bootagent-publish-") as scratch:
        source = tree.borrow(machine, repo, commit, Path(scratch))
        bundle = archive.pack(machine, source, compression, Path(scratch))
        target = place.bundle(commit, bundle.sha256, compression)
        stored = upload.store(machine, s3, target, bundle)
    pointer = Pointer(
        bundle=target.key,
        sha256=bundle.sha256,
        size=bundle.size,
        revision=commit,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        version_id=stored.version_id,
        unpacked_size=bundle.unpacked_size,
        files=bundle.files,
    )
    now = upload.move_pointer(s3, place, before, pointer)
    return Published(str(place), str(target), now, uploaded=stored.uploaded, unchanged=now is not pointer)
