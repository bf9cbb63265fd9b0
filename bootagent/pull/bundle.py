"""Pulling a bundle: fetch, verify, decompress and unpack, all at once and in constant memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bootagent.errors import BundleError
from bootagent.machine import Identity, Machine, Transfer
from bootagent.pull import formats, program
from bootagent.pull.digests import Digests
from bootagent.pull.pipeline import Pipeline, Unreadable
from bootagent.pull.ranges import Ranges, Source

TELL_SECONDS = 0.1
_HEAD = 512


@dataclass(frozen=True)
class Bundle:
    """What to fetch: the immutable identity of one archive.

    ``size`` is in bytes. ``etag`` (sent as If-Match) and ``version_id`` pin the object, so that all ranges are of one.
    ``sha256`` (hex) comes from a release pointer and is of the archive as it lies in the bucket; ``checksums`` are S3's
    own over the full object, as in ``("ChecksumSHA256", base64)``. ``unpacked_size`` (bytes of all regular files) and
    ``files`` (members of every type) come from the pointer and must match exactly.
    """

    bucket: str
    key: str
    region: str | None
    size: int
    etag: str | None = None
    version_id: str | None = None
    sha256: str | None = None
    checksums: tuple[tuple[str, str], ...] = ()
    unpacked_size: int | None = None
    files: int | None = None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True)
class Limits:
    """How much a bundle may unpack to, and the bytes that must stay free on the filesystem."""

    max_bytes: int
    max_files: int
    reserve_bytes: int


@dataclass(frozen=True)
class Unpacked:
    """What was unpacked: members, bytes of regular files, and the SHA-256 (hex) of the archive."""

    files: int
    size: int
    sha256: str


def pull(
    machine: Machine,
    bundle: Bundle,
    into: Path,
    *,
    limits: Limits,
    identity: Identity | None,
    within: float,
    label: str,
) -> Unpacked:
    """Fetch a bundle and unpack it into ``into``, an empty directory that ``identity`` owns, in ``within`` seconds.

    ``machine`` hears of the progress as Transfer events named ``label``. Nothing in ``into`` may be used unless this
    returns: raises BundleError when the bundle is not what was published, damaged, hostile, too large or late, and
    AwsError when it cannot be read.
    """
    deadline = time.monotonic() + within
    kind = formats.of(bundle.key)
    command = kind.decompressor(str(bundle))
    _expect_room(machine, bundle, into, limits, kind)
    digests = Digests(bundle.sha256, bundle.checksums)
    source = Source(bundle.bucket, bundle.key, bundle.region, bundle.size, bundle.etag, bundle.version_id)

    def pipeline(archive: int | None = None) -> Pipeline:
        return Pipeline(
            machine,
            into,
            command=command,
            program=program.unpacker(
                "tar" if archive is None else "zip",
                max_bytes=limits.max_bytes,
                max_files=limits.max_files,
                reserve=limits.reserve_bytes,
                identity=identity,
            ),
            identity=identity,
            name=str(bundle),
            deadline=deadline,
            archive=archive,
        )

    def stream(ranges: Ranges) -> Iterator[memoryview]:
        return _told(_checked(ranges.stream(), kind, bundle), machine.tell, label, bundle.size)

    if kind.is_zip:
        # A zip archive is read from its end, so it has to lie somewhere: nameless, and gone with the last descriptor.
        with tempfile.TemporaryFile(dir=into) as file:
            with Ranges(source, deadline=deadline) as ranges:
                for data in stream(ranges):
                    digests.update(data)
                    try:
                        file.write(data)
                    except OSError as error:
                        raise BundleError(f"{bundle} could not be stored at {into}: {error.strerror}") from error
            digests.check(str(bundle))
            file.seek(0)
            with pipeline(file.fileno()) as processes:
                files, size = processes.finish()
    else:
        # The processes start first: what S3 takes to answer is theirs to start in.
        with pipeline() as processes, Ranges(source, deadline=deadline) as ranges:
            files, size = _pump(stream(ranges), digests, processes, str(bundle))
    _expect_contents(bundle, files, size)
    return Unpacked(files, size, digests.sha256)


def _pump(stream: Iterator[memoryview], digests: Digests, processes: Pipeline, name: str) -> tuple[int, int]:
    readable = True
    for data in stream:
        digests.update(data)
        if readable:
            try:
                processes.write(data)
            except Unreadable:
                if processes.refused() or not digests.is_checking:
                    processes.finish()
                    raise BundleError(f"{name} could not be unpacked") from None
                readable = False  # that the bytes are not the published ones is the better thing to say, if it is so
    digests.check(name)
    return processes.finish()


def _checked(stream: Iterator[memoryview], kind: formats.Format, bundle: Bundle) -> Iterator[memoryview]:
    """The stream, its first bytes held back until they are seen to be what the suffix promises."""
    head = b""
    wanted = min(_HEAD, bundle.size)
    for data in stream:
        if len(head) >= wanted:
            yield data
            continue
        head += data
        if len(head) >= wanted:
            kind.check(head, str(bundle))
            yield memoryview(head)


def _told(
    stream: Iterator[memoryview], tell: Callable[[Transfer], None], label: str, total: int
) -> Iterator[memoryview]:
    done, last = 0, 0.0
    for data in stream:
        yield data
        done += len(data)
        now = time.monotonic()
        if now - last >= TELL_SECONDS or done == total:
            last = now
            tell(Transfer(label, done, total))


def _expect_room(machine: Machine, bundle: Bundle, into: Path, limits: Limits, kind: formats.Format) -> None:
    """Fail before the first byte when it is already known that there are too many."""
    name = str(bundle)
    if bundle.size == 0:
        raise BundleError(f"{name} is empty", remedy="publish it again")
    if bundle.unpacked_size is not None and bundle.unpacked_size > limits.max_bytes:
        raise BundleError(f"{name} unpacks to {bundle.unpacked_size} bytes; {limits.max_bytes} are allowed")
    if bundle.files is not None and bundle.files > limits.max_files:
        raise BundleError(f"{name} holds {bundle.files} files; {limits.max_files} are allowed")
    free = machine.free_space(into)
    # Without a pointer, what is packed is the least that will be written.
    needed = (bundle.unpacked_size or 0) + (bundle.size if kind.is_zip else 0) + limits.reserve_bytes
    if free.free_bytes < needed:
        raise BundleError(
            f"{name} needs {needed} bytes ({limits.reserve_bytes} of them to stay free); {free.free_bytes} are free"
            f" at {into}",
            remedy="make room, or keep fewer releases",
        )
    if bundle.files is not None and free.inodes is not None and free.inodes < bundle.files:
        raise BundleError(f"{name} needs {bundle.files} inodes; {free.inodes} are free at {into}", remedy="make room")


def _expect_contents(bundle: Bundle, files: int, size: int) -> None:
    if bundle.files is not None and files != bundle.files:
        raise BundleError(f"{bundle} holds {files} members; the pointer says {bundle.files}", remedy="publish it again")
    if bundle.unpacked_size is not None and size != bundle.unpacked_size:
        raise BundleError(
            f"{bundle} unpacks to {size} bytes; the pointer says {bundle.unpacked_size}", remedy="publish it again"
        )
