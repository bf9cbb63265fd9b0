"""The S3 side of publishing: a bundle under a name that never gets other content, then the pointer that names it.

Every write is conditional (S3 User Guide, "conditional writes"): a bundle only where nothing is yet, the pointer only
where it is still what was read.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bootagent import aws, pointer
from bootagent.errors import AwsError, BootagentError, BundleError, UsageError
from bootagent.machine import Machine, Transfer
from bootagent.pointer import Pointer
from bootagent.publish.archive import Bundle

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

MIB = 1024 * 1024
#: Up to here one request carries a bundle; more goes in parts, so that a dropped connection costs a part.
SINGLE_BYTES = 64 * MIB
PART_BYTES = 16 * MIB
MAX_PARTS = 10_000
#: Times PART_BYTES is the memory an upload takes.
PARTS_AT_ONCE = 4
#: Seconds between tries when S3 answers that another write to the same key is under way.
PAUSES = (0.5, 1.0, 2.0, 4.0)

# An answer to HEAD has no body and so no code but its status.
_TAKEN = {"PreconditionFailed", "412"}
_BUSY = {"ConditionalRequestConflict", "OperationAborted", "409"}
_UNCONDITIONAL = {"NotImplemented", "501"}
_DENIED = {"AccessDenied", "403"}

_CONTENT_TYPES = {"zst": "application/zstd", "gz": "application/gzip"}


@dataclass(frozen=True)
class Place:
    """An object in a bucket."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def bundle(self, commit: str, sha256: str, compression: str) -> Place:
        """Where the bundle with this content goes, for the pointer here: beside it, in a directory of its name."""
        stem = self.key.removesuffix(".json")
        return Place(self.bucket, f"{stem}/bundles/{commit[:12]}-{sha256[:16]}.tar.{compression}")


@dataclass(frozen=True)
class Current:
    """The pointer as it is in the bucket; both are None where there is none, or none we may see."""

    pointer: Pointer | None
    etag: str | None


@dataclass(frozen=True)
class Stored:
    """A verified bundle in the bucket; ``version_id`` is None where the bucket keeps no versions."""

    version_id: str | None
    uploaded: bool


def parse(url: str) -> Place:
    """The place a pointer's URL names, ``s3://bucket/path/name.json``; raises UsageError when it is none."""
    found = re.fullmatch(r"s3://([A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9])/(.+)", url)
    if not found:
        raise UsageError(f"{url!r} is not the URL of a release pointer", remedy="write s3://BUCKET/PATH/NAME.json")
    place = Place(found[1], found[2])
    parts = place.key.split("/")
    if not place.key.endswith(".json") or parts[-1] == ".json" or not {"", ".", ".."}.isdisjoint(parts):
        raise UsageError(f"{url!r} is not the URL of a release pointer", remedy="write s3://BUCKET/PATH/NAME.json")
    return place


def read_pointer(s3: S3Client, place: Place) -> Current:
    """The pointer that is there now.

    Raises BundleError when something else is there; it is not ours to replace. S3 denies, to those who may not list,
    what does not exist; so a denial counts as absence here, and the conditional write finds out.
    """
    try:
        with aws.call(f"read {place}", "s3:GetObject"):
            answer = s3.get_object(Bucket=place.bucket, Key=place.key)
            with contextlib.closing(answer["Body"]) as body:
                document = body.read(pointer.MAX_BYTES + 1)
    except AwsError as error:
        if (aws.is_absent(error) and error.code != "NoSuchBucket") or error.code in _DENIED:
            return Current(None, None)
        raise
    try:
        if len(document) > pointer.MAX_BYTES:
            raise BundleError(f"{place} is not a release pointer: it is longer than {pointer.MAX_BYTES} bytes")
        return Current(pointer.parse(document, str(place)), answer["ETag"])
    except BundleError as error:
        raise BundleError(
            f"{error.sentence}, so it is not replaced", remedy="publish under another name, or remove it first"
        ) from error


def store(machine: Machine, s3: S3Client, place: Place, bundle: Bundle) -> Stored:
    """Have the bundle in the bucket at ``place``, uploaded only if it is not there yet, and verified either way.

    Raises BundleError when other content is there.
    """
    try:
        version = _verified(s3, place, bundle)
    except AwsError as error:
        if not (aws.is_absent(error) or error.code in _DENIED) or error.code == "NoSuchBucket":
            raise
    else:
        return Stored(version, uploaded=False)
    machine.tell(Transfer(f"publish {place}", 0, bundle.size))
    send = _send_whole if bundle.size <= SINGLE_BYTES else _send_in_parts
    uploaded = _conditionally(place, lambda: send(machine, s3, place, bundle))
    return Stored(_verified(s3, place, bundle), uploaded)


def move_pointer(s3: S3Client, place: Place, before: Current, wanted: Pointer) -> Pointer:
    """Make the pointer ``wanted`` unless it names the same bundle already; returns the one that is there.

    Raises BootagentError when someone else moved or removed it since ``before`` was read.
    """
    if before.pointer and _same_bundle(before.pointer, wanted):
        return before.pointer
    document = wanted.to_json()
    condition: dict[str, Any] = {"IfMatch": before.etag} if before.etag else {"IfNoneMatch": "*"}

    def put() -> None:
        # IfMatch takes s3:GetObject too, but a denial would have been met when the bundle was verified.
        with aws.call(f"put {place}", "s3:PutObject"):
            s3.put_object(
                Bucket=place.bucket,
                Key=place.key,
                Body=document,
                ContentType="application/json",
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=base64.b64encode(hashlib.sha256(document).digest()).decode(),
                **condition,
            )

    try:
        if _conditionally(place, put):
            return wanted
    except AwsError as error:
        if not (before.etag and aws.is_absent(error)):
            raise
    # Not as it was: someone else was here, or it was us and only the answer was lost on its way.
    now = read_pointer(s3, place).pointer
    if now and (now == wanted or _same_bundle(now, wanted)):
        return wanted if now == wanted else now
    kept = f"revision {wanted.revision} is uploaded and unharmed; publish again if it is the one to serve"
    if now is None:
        raise BootagentError(f"{place} was removed, or hidden from us, while this was under way", remedy=kept)
    raise BootagentError(
        f"{place} was moved by someone else while this was under way: it names revision {now.revision} ({now.bundle}),"
        f" published {now.created}",
        remedy=kept,
    )


def part_ranges(size: int) -> list[tuple[int, int]]:
    """The parts of an upload of ``size`` bytes, as (offset, length): a function of the size alone."""
    length = max(PART_BYTES, -(-size // MAX_PARTS))
    return [(offset, min(length, size - offset)) for offset in range(0, size, length)]


def checksum(bundle: Bundle) -> str:
    """The SHA-256 (base64) S3 keeps of a bundle sent our way: of the whole, or for parts, of their digests in a row.

    See S3 User Guide, "Checking object integrity": SHA-256 of a multipart upload is always composite.
    """
    if bundle.size <= SINGLE_BYTES:
        return base64.b64encode(bytes.fromhex(bundle.sha256)).decode()
    parts = (_read(bundle, offset, length) for offset, length in part_ranges(bundle.size))
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    return base64.b64encode(hashlib.sha256(digests).digest()).decode()


def _same_bundle(one: Pointer, other: Pointer) -> bool:
    return (one.bundle, one.sha256, one.size, one.version_id) == (
        other.bundle,
        other.sha256,
        other.size,
        other.version_id,
    )


def _conditionally(place: Place, write: Callable[[], None]) -> bool:
    """Carry out a conditional write; False when its condition does not hold (412). Busy answers (409) are retried."""
    for pause in (*PAUSES, None):
        try:
            write()
        except AwsError as error:
            if error.code in _TAKEN:
                return False
            if error.code in _UNCONDITIONAL:
                raise BootagentError(
                    f"the store behind {place} has no conditional writes, without which two publishers could undo"
                    f" each other's work: {error.sentence}",
                    remedy="use S3, or a store with If-Match and If-None-Match on PutObject",
                ) from error
            if error.code not in _BUSY or pause is None:
                raise
            time.sleep(pause)
        else:
            return True
    raise AssertionError("unreachable: the last try returns or raises")


def _send_whole(machine: Machine, s3: S3Client, place: Place, bundle: Bundle) -> None:
    with bundle.path.open("rb") as body, aws.call(f"put {place}", "s3:PutObject"):
        s3.put_object(
            Bucket=place.bucket,
            Key=place.key,
            Body=body,
            ContentType=_content_type(place),
            ChecksumAlgorithm="SHA256",
            ChecksumSHA256=checksum(bundle),
            IfNoneMatch="*",
        )
    machine.tell(Transfer(f"publish {place}", bundle.size, bundle.size))


def _send_in_parts(machine: Machine, s3: S3Client, place: Place, bundle: Bundle) -> None:
    with aws.call(f"put {place}", "s3:PutObject"):
        upload = s3.create_multipart_upload(
            Bucket=place.bucket,
            Key=place.key,
            ContentType=_content_type(place),
            ChecksumAlgorithm="SHA256",
            ChecksumType="COMPOSITE",
        )["UploadId"]

    def send(number: int, offset: int, length: int) -> CompletedPartTypeDef:
        data = _read(bundle, offset, length)
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        with aws.call(f"put part {number} of {place}", "s3:PutObject"):
            answer = s3.upload_part(
                Bucket=place.bucket,
                Key=place.key,
                UploadId=upload,
                PartNumber=number,
                Body=data,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=digest,
            )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": digest}

    try:
        ranges = part_ranges(bundle.size)
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            sending = {pool.submit(send, number, *range_): range_ for number, range_ in enumerate(ranges, 1)}
            try:
                done = 0
                for future in as_completed(sending):
                    future.result()
                    done += sending[future][1]
                    machine.tell(Transfer(f"publish {place}", done, bundle.size))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        with aws.call(f"complete {place}", "s3:PutObject"):
            s3.complete_multipart_upload(
                Bucket=place.bucket,
                Key=place.key,
                UploadId=upload,
                MultipartUpload={"Parts": [future.result() for future in sending]},
                IfNoneMatch="*",
            )
    except BaseException:
        # Parts nobody completes are paid for until someone removes them. What went wrong is told, not this.
        with contextlib.suppress(AwsError), aws.call(f"abort {place}", "s3:AbortMultipartUpload"):
            s3.abort_multipart_upload(Bucket=place.bucket, Key=place.key, UploadId=upload)
        raise


def _verified(s3: S3Client, place: Place, bundle: Bundle) -> str | None:
    """Check that the object at ``place`` is the bundle, and return its version; raises AwsError when it is absent.

    By size and checksum; where the store has kept none, or one of another kind, by reading it back.
    """
    with aws.call(f"look at {place}", "s3:GetObject"):
        head = s3.head_object(Bucket=place.bucket, Key=place.key, ChecksumMode="ENABLED")
    version = head.get("VersionId", "null")
    same = head["ContentLength"] == bundle.size
    # Of a composite one, some answers give the number of parts behind a hyphen.
    if same and head.get("ChecksumSHA256", "").partition("-")[0] != checksum(bundle):
        digest = hashlib.sha256()
        with aws.call(f"read {place}", "s3:GetObject"):
            answer = s3.get_object(Bucket=place.bucket, Key=place.key)
            with contextlib.closing(answer["Body"]) as body:
                while chunk := body.read(MIB):
                    digest.update(chunk)
        same = digest.hexdigest() == bundle.sha256
        version = answer.get("VersionId", "null")
    if not same:
        raise BundleError(
            f"{place} is there with other content than its name says", remedy="find out who wrote it, and remove it"
        )
    return None if version == "null" else version


def _content_type(place: Place) -> str:
    return _CONTENT_TYPES[place.key.rpartition(".")[2]]


def _read(bundle: Bundle, offset: int, length: int) -> bytes:
    with bundle.path.open("rb") as file:
        file.seek(offset)
        return file.read(length)
