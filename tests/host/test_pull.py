"""Pulling over real connections, from a small S3 of our own that misbehaves on request."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bootagent import aws
from bootagent.errors import AwsError, BundleError
from bootagent.machine import Identity, Machine, Note, Transfer
from bootagent.pull import ranges
from bootagent.pull.bundle import Bundle, Limits, Unpacked, pull
from bootagent.pull.head import describe

LIMITS = Limits(max_bytes=1 << 30, max_files=10_000, reserve_bytes=0)
ETAG = '"v1"'


@dataclass
class Store:
    """One object, and what goes wrong with it. ``answer`` may take over a request (its number counts from 1)."""

    content: bytes = b""
    etag: str = ETAG
    answer: Callable[[Any, int], bool] = lambda handler, number: False
    requests: list[str] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)
    url: str = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store
    lock: threading.Lock

    def do_GET(self) -> None:
        with self.lock:
            self.store.requests.append(self.headers.get("Range", ""))
            self.store.connections.add(self.client_address)
            number = len(self.store.requests)
        if not self.store.answer(self, number):
            self.serve()

    def serve(self, most: int | None = None, delay: float = 0) -> None:
        """Answer as S3 does; with ``most`` hang up after so many bytes, with ``delay`` wait before each 10 kB."""
        wanted = self.headers.get("If-Match")
        if wanted not in (None, self.store.etag):
            return self.fail(412, "PreconditionFailed")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        assert asked
        first, last = int(asked[1]), int(asked[2])
        body = self.store.content[first : last + 1]
        self.send_response(206)
        self.send_header("ETag", self.store.etag)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.store.content)}")
        self.end_headers()
        with contextlib.suppress(OSError):
            if delay:
                for at in range(0, len(body), 10_000):
                    time.sleep(delay)
                    self.wfile.write(body[at : at + 10_000])
            else:
                self.wfile.write(body[:most])
        if most is not None:
            self.hang_up()
        return None

    def fail(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>as asked</Message></Error>".encode()
        self.send_response(status)
        self.send_header("x-amz-request-id", "R1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is what some of these tests are about."""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    held = Store()
    handler = type("Handler", (_Handler,), {"store": held, "lock": threading.Lock()})
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        held.url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", held.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        aws._client.cache_clear()
        yield held
        aws._client.cache_clear()
        server.shutdown()


@pytest.fixture
def into(tmp_path: Path) -> Path:
    directory = tmp_path / "release"
    directory.mkdir()
    return directory


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("range-")]


def archive(size: int = 9_000_000) -> bytes:
    """A tar of files that do not compress, so that there are several ranges of it."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for number in range(3):
            info = tarfile.TarInfo(f"d/f{number}")
            info.size = size // 3
            tar.addfile(info, io.BytesIO(os.urandom(info.size)))
    return content.getvalue()


def zip_archive(size: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as made:
        made.writestr("d/f", b"x" * size)
    return content.getvalue()


def bundle_of(store: Store, key: str = "app.tar", **changes: Any) -> Bundle:
    return replace(Bundle("bucket", key, None, len(store.content), etag=ETAG), **changes)


def fetch(
    bundle: Bundle,
    into: Path,
    *,
    limits: Limits = LIMITS,
    within: float = 30,
    identity: Identity | None = None,
    machine: Machine | None = None,
) -> Unpacked:
    return pull(machine or Machine(), bundle, into, limits=limits, identity=identity, within=within, label="pull")


def contents(archive_of: bytes, into: Path) -> bool:
    with tarfile.open(fileobj=io.BytesIO(archive_of)) as tar:
        members = [(member.name, tar.extractfile(member)) for member in tar.getmembers() if member.isreg()]
        return all(file and (into / name).read_bytes() == file.read() for name, file in members)


def compressed(command: list[str], data: bytes) -> bytes:
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


# --- the good case ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "command"),
    [
        ("app.tar", ["cat"]),
        ("app.tar.gz", ["gzip", "-c"]),
        ("app.tgz", ["gzip", "-c"]),
        ("app.tar.zst", ["zstd", "-qc"]),
        ("app.tar.xz", ["xz", "-0c"]),
    ],
)
def test_every_format_is_pulled_and_verified(store: Store, into: Path, key: str, command: list[str]) -> None:
    tar = archive()
    store.content = compressed(command, tar)
    told: list[Transfer | Note] = []
    digest = hashlib.sha256(store.content).hexdigest()
    bundle = bundle_of(store, key, sha256=digest, files=3, unpacked_size=9_000_000)
    assert fetch(bundle, into, machine=Machine(listener=told.append)) == Unpacked(3, 9_000_000, digest)
    assert contents(tar, into)
    assert told[-1] == Transfer("pull", len(store.content), len(store.content))
    assert len(store.requests) == -(-len(store.content) // ranges.PART)
    assert len(store.connections) <= ranges.CONNECTIONS


def test_gzip_files_of_several_members_are_whole(store: Store, into: Path) -> None:
    tar = archive(300_000)
    store.content = gzip.compress(tar[:100_000]) + gzip.compress(tar[100_000:])
    fetch(bundle_of(store, "app.tar.gz"), into)
    assert contents(tar, into)


def test_a_zip_is_pulled(store: Store, into: Path) -> None:
    store.content = zip_archive(5_000_000)
    assert fetch(bundle_of(store, "app.zip"), into).files == 1
    assert (into / "d/f").stat().st_size == 5_000_000
    assert [path.name for path in into.iterdir()] == ["d"]


def test_one_small_object_takes_one_request(store: Store, into: Path) -> None:
    store.content = compressed(["zstd", "-qc"], archive(3000))
    fetch(bundle_of(store, "app.tar.zst"), into)
    assert len(store.requests) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("key", ["app.tar.zst", "app.zip"])
def test_it_unpacks_as_the_apps_user(store: Store, machine_root: Path, key: str) -> None:
    into = machine_root / "release"
    into.mkdir()
    identity = Machine().identity("nobody")
    assert identity
    os.chown(into, identity.uid, identity.gid)
    store.content = compressed(["zstd", "-qc"], archive(3000)) if key == "app.tar.zst" else zip_archive(3000)
    fetch(bundle_of(store, key), into, identity=identity)
    assert {path.stat().st_uid for path in into.rglob("*")} == {identity.uid}


# --- a network that misbehaves ---------------------------------------------------------------------------------


def test_a_dropped_connection_goes_on_where_it_ended(store: Store, into: Path) -> None:
    store.content = archive()
    store.answer = lambda handler, number: bool(number <= 4 and (handler.serve(most=300_000), True))
    fetch(bundle_of(store), into)
    assert contents(store.content, into)
    starts = sorted(int(asked.split("=")[1].split("-")[0]) for asked in store.requests)
    resumed = [start for start in starts if start % ranges.PART]
    assert len(resumed) == 4, "each dropped part is asked for once more, from the middle"


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests")])
def test_a_busy_server_is_asked_again(store: Store, into: Path, status: int, code: str) -> None:
    store.content = archive()
    store.answer = lambda handler, number: bool(number <= 3 and (handler.fail(status, code), True))
    fetch(bundle_of(store), into)
    assert contents(store.content, into)


def test_an_object_replaced_while_it_is_read_is_noticed(store: Store, into: Path) -> None:
    store.content = archive()

    def replace_it(handler: _Handler, number: int) -> bool:
        if number == 3:
            store.etag = '"v2"'
        return False

    store.answer = replace_it
    with pytest.raises(BundleError, match=r"s3://bucket/app\.tar was replaced or deleted while it was read"):
        fetch(bundle_of(store), into)


def test_an_object_deleted_while_it_is_read_is_noticed(store: Store, into: Path) -> None:
    store.content = archive()
    store.answer = lambda handler, number: bool(number == 3 and (handler.fail(404, "NoSuchKey"), True))
    with pytest.raises(BundleError, match="was replaced or deleted"):
        fetch(bundle_of(store), into)


def test_an_object_of_another_size_is_noticed(store: Store, into: Path) -> None:
    store.content = archive()
    with pytest.raises(BundleError, match=r"has \d+ bytes; \d+ were expected"):
        fetch(bundle_of(store, size=len(store.content) - 512, etag=None), into)


def test_a_denial_is_not_asked_again(store: Store, into: Path) -> None:
    store.content = archive(3000)
    store.answer = lambda handler, number: bool((handler.fail(403, "AccessDenied"), True))
    with pytest.raises(AwsError, match="allow s3:GetObject to") as caught:
        fetch(bundle_of(store), into)
    assert (caught.value.code, caught.value.request_id, len(store.requests)) == ("AccessDenied", "R1", 1)


def test_a_slow_server_is_left_at_the_deadline(store: Store, into: Path) -> None:
    store.content = archive()
    store.answer = lambda handler, number: bool((handler.serve(delay=0.2), True))
    started = time.monotonic()
    with pytest.raises(BundleError, match=r"was not pulled in time: \d+ of \d+ bytes"):
        fetch(bundle_of(store), into, within=1)
    assert time.monotonic() - started < 3


def test_a_silent_server_is_left_at_the_deadline(store: Store, into: Path) -> None:
    store.content = archive(3000)

    def stay_silent(handler: _Handler, number: int) -> bool:
        time.sleep(2.5)
        handler.hang_up()
        return True

    store.answer = stay_silent
    started = time.monotonic()
    with pytest.raises(BundleError, match="was not pulled in time"):
        fetch(bundle_of(store), into, within=1)
    assert time.monotonic() - started < 3
    time.sleep(2)  # an answer that never starts cannot be interrupted; its thread ends with the connection


# --- a bundle that is not what it should be --------------------------------------------------------------------


def test_a_wrong_sha256_is_named_with_the_right_one(store: Store, into: Path) -> None:
    store.content = archive()
    found = hashlib.sha256(store.content).hexdigest()
    with pytest.raises(BundleError, match=f"its sha256 is {found}, the pointer says {'0' * 64}"):
        fetch(bundle_of(store, sha256="0" * 64), into)


def test_a_wrong_sha256_explains_a_damaged_archive(store: Store, into: Path) -> None:
    good = compressed(["zstd", "-qc"], archive())
    store.content = good[:3_000_000] + b"x" * 1000 + good[3_001_000:]
    with pytest.raises(BundleError, match="its sha256 is"):
        fetch(bundle_of(store, "app.tar.zst", sha256=hashlib.sha256(good).hexdigest()), into)


@pytest.mark.parametrize("key", ["app.tar", "app.zip"])
@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("ChecksumSHA256", lambda data: hashlib.sha256(data).digest()),
        ("ChecksumSHA1", lambda data: hashlib.sha1(data).digest()),
        ("ChecksumCRC32", lambda data: zlib.crc32(data).to_bytes(4, "big")),
    ],
)
def test_checksums_of_s3_are_verified(
    store: Store, into: Path, key: str, name: str, digest: Callable[[bytes], bytes]
) -> None:
    store.content = zip_archive(3000) if key == "app.zip" else archive(3000)
    right, wrong = (base64.b64encode(digest(data)).decode() for data in (store.content, b"else"))
    fetch(bundle_of(store, key, checksums=((name, right), ("ChecksumCRC64NVME", "unknown"))), into)
    shutil.rmtree(into)
    into.mkdir()
    with pytest.raises(BundleError, match=f"{name} is .*, S3 says"):
        fetch(bundle_of(store, key, checksums=((name, wrong),)), into)


@pytest.mark.parametrize(
    ("key", "command"), [("a.tar.gz", ["gzip", "-c"]), ("a.tar.zst", ["zstd", "-qc"]), ("a.tar.xz", ["xz", "-0c"])]
)
@pytest.mark.parametrize("cut", [5, 4_000_000])
def test_truncated_bundles_are_damaged(store: Store, into: Path, key: str, command: list[str], cut: int) -> None:
    store.content = compressed(command, archive())[:-cut]
    with pytest.raises(BundleError, match=f"s3://bucket/{key} is damaged: "):
        fetch(bundle_of(store, key), into)


def test_a_web_page_is_not_an_archive(store: Store, into: Path) -> None:
    store.content = b"<!DOCTYPE html><title>404</title>"
    with pytest.raises(BundleError, match=r"s3://bucket/app.tar.gz is not a .tar.gz archive: it holds an HTML page"):
        fetch(bundle_of(store, "app.tar.gz"), into)
    assert not list(into.iterdir())


def test_an_unknown_suffix_is_refused_with_the_known_ones(store: Store, into: Path) -> None:
    with pytest.raises(BundleError, match=r"app\.rar.*known are \.tar, \.tar\.gz, \.tgz, \.tar\.zst, \.tar\.xz, \.zip"):
        fetch(bundle_of(store, "app.rar", size=1), into)


def test_a_missing_tool_is_named_with_its_package(store: Store, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    with pytest.raises(BundleError, match=r"needs zstd, which is not installed \(install zstd\)"):
        fetch(bundle_of(store, "app.tar.zst", size=1), into)


def test_an_empty_object_is_refused(store: Store, into: Path) -> None:
    with pytest.raises(BundleError, match="is empty"):
        fetch(bundle_of(store, "app.tar.gz"), into)


def test_a_hostile_archive_is_refused_with_the_reason(store: Store, into: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../outside"))
    store.content = compressed(["zstd", "-qc"], content.getvalue())
    with pytest.raises(BundleError, match=r"app\.tar\.zst is refused: '\.\./' climbs with '\.\.'"):
        fetch(bundle_of(store, "app.tar.zst"), into)
    assert not (into.parent / "outside").exists()


def test_a_refusal_ends_the_pull_early(store: Store, into: Path) -> None:
    store.content = archive(60_000_000)
    with pytest.raises(BundleError, match="1000 bytes allowed"):
        fetch(bundle_of(store, sha256="0" * 64), into, limits=replace(LIMITS, max_bytes=1000))
    assert len(store.requests) < 25


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"files": 4}, "holds 3 members; the pointer says 4"),
        ({"unpacked_size": 1}, "unpacks to 3000 bytes; the pointer says 1"),
        ({"unpacked_size": 2 << 30}, "are allowed"),
        ({"files": 10_001}, "10000 are allowed"),
    ],
)
def test_what_the_pointer_says_must_be_so(store: Store, into: Path, changes: dict[str, Any], sentence: str) -> None:
    store.content = archive(3000)
    with pytest.raises(BundleError, match=sentence):
        fetch(bundle_of(store, **changes), into)


def test_room_is_looked_for_before_the_first_byte(store: Store, into: Path) -> None:
    store.content = archive(3000)
    with pytest.raises(BundleError, match="make room"):
        fetch(bundle_of(store), into, limits=replace(LIMITS, reserve_bytes=1 << 60))
    assert not store.requests


def test_no_process_is_left_after_a_failure(store: Store, into: Path) -> None:
    store.content = archive()
    store.answer = lambda handler, number: bool(number == 4 and (handler.fail(403, "AccessDenied"), True))
    with pytest.raises(AwsError):
        fetch(bundle_of(store), into)
    assert Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text() == ""


# --- memory, and what S3 says beforehand -----------------------------------------------------------------------


def test_memory_does_not_follow_the_size_of_the_bundle(store: Store, into: Path) -> None:
    store.content = archive(150_000_000)
    runner = (
        "import sys; from pathlib import Path; from bootagent.machine import Machine\n"
        "from bootagent.pull.bundle import Bundle, Limits, pull\n"
        "bundle = Bundle('bucket', 'app.tar', None, int(sys.argv[1]))\n"
        "limits = Limits(1 << 40, 99, 0)\n"
        "pull(Machine(), bundle, Path(sys.argv[2]), limits=limits, identity=None, within=60, label='x')\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    command = [sys.executable, "-c", runner, str(len(store.content)), str(into)]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    assert int(done.stdout) < 68 << 10, "KiB; 64 MiB and what a loaded machine adds"


def test_describe_says_what_pins_an_object(aws_api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    aws_api.reset()
    for name, value in {"ENDPOINT_URL": aws_api.endpoint, "ACCESS_KEY_ID": "t", "SECRET_ACCESS_KEY": "t"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    aws._client.cache_clear()
    client = aws.s3("us-east-1")
    client.create_bucket(Bucket="described")
    client.put_object(Bucket="described", Key="plain", Body=b"12345", ChecksumAlgorithm="SHA256")
    found = describe("us-east-1", "described", "plain")
    assert (found.size, found.version_id) == (5, None)
    assert found.etag == '"827ccb0eea8a706c4c34a16891f84e7b"'
    assert ("ChecksumSHA256", base64.b64encode(hashlib.sha256(b"12345").digest()).decode()) in found.checksums
    client.put_bucket_versioning(Bucket="described", VersioningConfiguration={"Status": "Enabled"})
    version = client.put_object(Bucket="described", Key="plain", Body=b"123")["VersionId"]
    client.put_object(Bucket="described", Key="plain", Body=b"1")
    assert describe("us-east-1", "described", "plain", version).size == 3
    assert describe("us-east-1", "described", "plain").version_id not in (None, version, "null")
    with pytest.raises(AwsError, match="cannot look at s3://described/absent") as caught:
        describe("us-east-1", "described", "absent")
    assert aws.is_absent(caught.value)
    aws._client.cache_clear()
