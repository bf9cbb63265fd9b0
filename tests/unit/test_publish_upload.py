"""The S3 side of publishing, against a simulated S3 that can be made to fail."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bootagent import aws
from bootagent.errors import AwsError, BootagentError, BundleError, UsageError
from bootagent.machine import Machine, Note, Transfer
from bootagent.pointer import Pointer
from bootagent.publish import upload
from bootagent.publish.archive import Bundle
from bootagent.publish.upload import Place
from bootagent.sandbox.cloud import Cloud

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PLACE = Place("deploys", "web/production.json")
#: Bytes. See S3 User Guide, "Multipart upload limits".
PART = 5 << 20
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def s3(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> S3Client:
    """The client that publishing uses, on a versioned bucket."""
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    aws._client.cache_clear()
    cloud.create_bucket("deploys")
    return aws.s3(cloud.region)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses are noted, not taken."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


def a_bundle(tmp_path: Path, content: bytes = b"not really a tar archive") -> Bundle:
    path = tmp_path / "bundle.tar.zst"
    path.write_bytes(content)
    return Bundle(path, hashlib.sha256(content).hexdigest(), len(content), files=1, unpacked_size=len(content))


def place_of(bundle: Bundle) -> Place:
    return PLACE.bundle(COMMIT, bundle.sha256, "zst")


def a_pointer(revision: str = COMMIT, **fields: str) -> Pointer:
    return dataclasses.replace(
        Pointer(
            bundle=f"web/production/bundles/{revision[:12]}.tar.zst",
            sha256=hashlib.sha256(revision.encode()).hexdigest(),
            size=7,
            revision=revision,
            created="2024-05-06T07:08:09Z",
        ),
        **fields,  # type: ignore[arg-type]
    )


def actions(cloud: Cloud) -> list[str]:
    return [call.action for call in cloud.api.calls]


# --- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://deploys/web.json", Place("deploys", "web.json")),
        ("s3://my.bucket-1/a/b c/grün.json", Place("my.bucket-1", "a/b c/grün.json")),
    ],
)
def test_a_pointer_url(url: str, place: Place) -> None:
    assert upload.parse(url) == place
    assert str(place) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "deploys/web.json",
        "https://deploys/web.json",
        "s3://deploys",
        "s3://deploys/",
        "s3://deploys/web.tar.zst",
        "s3://deploys/.json",
        "s3://deploys/web/.json",
        "s3://deploys//web.json",
        "s3://deploys/a/../web.json",
        "s3:///web.json",
        "s3://x/web.json",
        "s3://deploys/web.json\n",
    ],
)
def test_no_pointer_url(url: str) -> None:
    with pytest.raises(UsageError, match=r"is not the URL of a release pointer \(write s3://BUCKET/PATH/NAME\.json\)"):
        upload.parse(url)


def test_a_bundle_lies_beside_its_pointer_and_is_named_by_its_content() -> None:
    assert upload.parse("s3://deploys/web/production.json").bundle(COMMIT, "ab" * 32, "gz") == Place(
        "deploys", "web/production/bundles/0123456789ab-abababababababab.tar.gz"
    )


@pytest.mark.parametrize("size", [1, upload.PART_BYTES, upload.PART_BYTES + 1, 5 << 30, 400 << 30])
def test_parts_cover_a_bundle_within_what_s3_allows(size: int) -> None:
    ranges = upload.part_ranges(size)
    assert ranges[0][0] == 0
    assert all(one[0] + one[1] == next_[0] for one, next_ in itertools.pairwise(ranges))
    assert sum(ranges[-1]) == size
    assert len(ranges) <= 10_000
    assert all(length >= 5 << 20 for _, length in ranges[:-1])


# --- the bundle ----------------------------------------------------------------------------------------------


def test_a_bundle_is_uploaded_once_and_its_version_pinned(cloud: Cloud, s3: S3Client, tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path)
    heard: list[Transfer | Note] = []
    first = upload.store(Machine(listener=heard.append), s3, place_of(bundle), bundle)
    head = s3.head_object(Bucket="deploys", Key=place_of(bundle).key, ChecksumMode="ENABLED")
    assert first.uploaded
    assert first.version_id == head["VersionId"]
    assert head["ChecksumSHA256"] == base64.b64encode(bytes.fromhex(bundle.sha256)).decode()
    assert head["ContentType"] == "application/zstd"
    label = f"publish {place_of(bundle)}"
    assert heard == [Transfer(label, 0, bundle.size), Transfer(label, bundle.size, bundle.size)]

    cloud.api.forget_calls()
    assert upload.store(Machine(), s3, place_of(bundle), bundle) == upload.Stored(first.version_id, uploaded=False)
    assert actions(cloud) == ["HeadObject"]


def test_without_versions_there_is_none_to_pin(cloud: Cloud, s3: S3Client, tmp_path: Path) -> None:
    cloud.create_bucket("plain-deploys", versioned=False)
    bundle = a_bundle(tmp_path)
    place = dataclasses.replace(place_of(bundle), bucket="plain-deploys")
    assert upload.store(Machine(), s3, place, bundle) == upload.Stored(None, uploaded=True)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads in parts as small as S3, and moto, take them."""
    monkeypatch.setattr(upload, "SINGLE_BYTES", PART)
    monkeypatch.setattr(upload, "PART_BYTES", PART)


@pytest.mark.usefixtures("small_parts")
def test_a_large_bundle_goes_in_parts(cloud: Cloud, s3: S3Client, tmp_path: Path) -> None:
    content = os.urandom(2 * PART + 1)
    bundle = a_bundle(tmp_path, content)
    heard: list[Transfer | Note] = []
    stored = upload.store(Machine(listener=heard.append), s3, place_of(bundle), bundle)
    found = actions(cloud)
    assert found.count("UploadPart") == 3
    assert "GetObject" not in found, "the checksum of the parts should have been enough"
    assert s3.get_object(Bucket="deploys", Key=place_of(bundle).key)["Body"].read() == content
    done = [event.done for event in heard if isinstance(event, Transfer)]
    assert done == sorted(done)
    assert done[-1] == bundle.size
    assert upload.store(Machine(), s3, place_of(bundle), bundle) == upload.Stored(stored.version_id, uploaded=False)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("action", ["UploadPart", "CompleteMultipartUpload"])
def test_an_upload_in_parts_that_fails_leaves_none(cloud: Cloud, s3: S3Client, tmp_path: Path, action: str) -> None:
    cloud.api.fail("s3", action, code="AccessDenied", status=403)
    bundle = a_bundle(tmp_path, os.urandom(PART + 1))
    with pytest.raises(AwsError, match="AccessDenied") as caught:
        upload.store(Machine(), s3, place_of(bundle), bundle)
    assert caught.value.iam_action == "s3:PutObject"
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="deploys")
    assert "Contents" not in s3.list_objects_v2(Bucket="deploys")


@pytest.mark.usefixtures("small_parts")
def test_an_upload_in_parts_is_begun_anew_when_s3_is_busy(
    cloud: Cloud, s3: S3Client, tmp_path: Path, pauses: list[float]
) -> None:
    cloud.api.fail("s3", "CompleteMultipartUpload", code="ConditionalRequestConflict", status=409)
    bundle = a_bundle(tmp_path, os.urandom(PART + 1))
    assert upload.store(Machine(), s3, place_of(bundle), bundle).uploaded
    assert actions(cloud).count("CreateMultipartUpload") == 2
    assert pauses == [0.5]
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="deploys")


@pytest.mark.parametrize("content", [b"something else", b"X" * len(b"not really a tar archive")])
def test_other_content_under_the_name_is_refused(s3: S3Client, tmp_path: Path, content: bytes) -> None:
    bundle = a_bundle(tmp_path)
    s3.put_object(Bucket="deploys", Key=place_of(bundle).key, Body=content, ChecksumAlgorithm="SHA256")
    with pytest.raises(BundleError, match="is there with other content than its name says"):
        upload.store(Machine(), s3, place_of(bundle), bundle)
    assert s3.get_object(Bucket="deploys", Key=place_of(bundle).key)["Body"].read() == content


def test_what_has_no_checksum_is_read_back(cloud: Cloud, s3: S3Client, tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path)
    s3.put_object(Bucket="deploys", Key=place_of(bundle).key, Body=bundle.path.read_bytes())
    cloud.api.forget_calls()
    assert not upload.store(Machine(), s3, place_of(bundle), bundle).uploaded
    assert actions(cloud) == ["HeadObject", "GetObject"]


def test_someone_else_may_upload_the_same_bundle_meanwhile(cloud: Cloud, s3: S3Client, tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path)
    upload.store(Machine(), s3, place_of(bundle), bundle)
    cloud.api.fail("s3", "HeadObject", code="NotFound", status=404)  # it was not there yet when we looked
    assert not upload.store(Machine(), s3, place_of(bundle), bundle).uploaded


def test_a_busy_key_is_tried_again(cloud: Cloud, s3: S3Client, tmp_path: Path, pauses: list[float]) -> None:
    cloud.api.fail("s3", "PutObject", code="ConditionalRequestConflict", status=409, times=2)
    bundle = a_bundle(tmp_path)
    assert upload.store(Machine(), s3, place_of(bundle), bundle).uploaded
    assert pauses == [0.5, 1.0]


def test_a_key_that_stays_busy_is_an_error(cloud: Cloud, s3: S3Client, tmp_path: Path, pauses: list[float]) -> None:
    cloud.api.fail("s3", "PutObject", code="ConditionalRequestConflict", status=409, times=99)
    bundle = a_bundle(tmp_path)
    with pytest.raises(AwsError, match="ConditionalRequestConflict"):
        upload.store(Machine(), s3, place_of(bundle), bundle)
    assert len(pauses) == len(upload.PAUSES)


def test_throttling_is_waited_out(cloud: Cloud, s3: S3Client, tmp_path: Path) -> None:
    for action in ("HeadObject", "PutObject"):
        cloud.api.fail("s3", action, code="SlowDown", status=503, times=2)
    bundle = a_bundle(tmp_path)
    assert upload.store(Machine(), s3, place_of(bundle), bundle).uploaded


def test_a_store_without_conditional_writes_is_named_as_such(cloud: Cloud, s3: S3Client, tmp_path: Path) -> None:
    cloud.api.fail("s3", "PutObject", code="NotImplemented", status=501)
    bundle = a_bundle(tmp_path)
    with pytest.raises(BootagentError, match="has no conditional writes"):
        upload.store(Machine(), s3, place_of(bundle), bundle)


def test_who_may_not_put_is_told_the_action(cloud: Cloud, s3: S3Client, tmp_path: Path) -> None:
    cloud.api.fail("s3", "PutObject", code="AccessDenied", status=403)
    bundle = a_bundle(tmp_path)
    with pytest.raises(AwsError, match=r"cannot put s3://deploys/web/production/bundles/.*allow s3:PutObject"):
        upload.store(Machine(), s3, place_of(bundle), bundle)


def test_who_may_not_list_can_publish(cloud: Cloud, s3: S3Client, tmp_path: Path) -> None:
    # Without s3:ListBucket, S3 answers 403 for what does not exist.
    cloud.api.fail("s3", "GetObject", code="AccessDenied", status=403)
    cloud.api.fail("s3", "HeadObject", code="AccessDenied", status=403)
    before = upload.read_pointer(s3, PLACE)
    assert before == upload.Current(None, None)
    bundle = a_bundle(tmp_path)
    assert upload.store(Machine(), s3, place_of(bundle), bundle).uploaded
    assert upload.move_pointer(s3, PLACE, before, a_pointer()) == a_pointer()


def test_who_may_not_get_is_told_the_action(cloud: Cloud, s3: S3Client, tmp_path: Path) -> None:
    cloud.api.fail("s3", "HeadObject", code="AccessDenied", status=403, times=2)
    bundle = a_bundle(tmp_path)
    with pytest.raises(AwsError) as caught:
        upload.store(Machine(), s3, place_of(bundle), bundle)
    assert caught.value.iam_action == "s3:GetObject"


def test_a_bucket_that_is_not_there_is_an_error_at_once(s3: S3Client) -> None:
    with pytest.raises(AwsError, match="NoSuchBucket"):
        upload.read_pointer(s3, Place("nobodys-bucket", "web.json"))


# --- the pointer ---------------------------------------------------------------------------------------------


def test_the_pointer_moves_from_one_to_the_next(s3: S3Client) -> None:
    nothing = upload.read_pointer(s3, PLACE)
    assert nothing == upload.Current(None, None)
    assert upload.move_pointer(s3, PLACE, nothing, a_pointer("one")).revision == "one"
    one = upload.read_pointer(s3, PLACE)
    assert one.pointer == a_pointer("one")
    upload.move_pointer(s3, PLACE, one, a_pointer("two"))
    assert upload.read_pointer(s3, PLACE).pointer == a_pointer("two")


def test_a_pointer_to_the_same_bundle_is_left_alone(cloud: Cloud, s3: S3Client) -> None:
    upload.move_pointer(s3, PLACE, upload.read_pointer(s3, PLACE), a_pointer())
    before = upload.read_pointer(s3, PLACE)
    cloud.api.forget_calls()
    later = dataclasses.replace(a_pointer(), created="2025-01-01T00:00:00Z")
    assert upload.move_pointer(s3, PLACE, before, later) == a_pointer()
    assert actions(cloud) == []


@pytest.mark.parametrize("first_ever", [True, False])
def test_who_comes_second_is_told_who_was_first(s3: S3Client, first_ever: bool) -> None:
    if not first_ever:
        upload.move_pointer(s3, PLACE, upload.Current(None, None), a_pointer("zero"))
    before = upload.read_pointer(s3, PLACE)
    upload.move_pointer(s3, PLACE, before, a_pointer("theirs"))
    with pytest.raises(BootagentError) as caught:
        upload.move_pointer(s3, PLACE, before, a_pointer("ours"))
    assert str(caught.value) == (
        "s3://deploys/web/production.json was moved by someone else while this was under way: it names revision theirs"
        " (web/production/bundles/theirs.tar.zst), published 2024-05-06T07:08:09Z"
        " (revision ours is uploaded and unharmed; publish again if it is the one to serve)"
    )
    assert caught.value.exit_code == 1
    assert upload.read_pointer(s3, PLACE).pointer == a_pointer("theirs")


def test_who_comes_second_with_the_same_bundle_is_done(s3: S3Client) -> None:
    theirs = dataclasses.replace(a_pointer(), created="2024-05-06T07:08:08Z")
    upload.move_pointer(s3, PLACE, upload.Current(None, None), theirs)
    assert upload.move_pointer(s3, PLACE, upload.Current(None, None), a_pointer()) == theirs


def test_a_write_whose_answer_was_lost_is_recognised(s3: S3Client) -> None:
    upload.move_pointer(s3, PLACE, upload.Current(None, None), a_pointer("one"))
    before = upload.read_pointer(s3, PLACE)
    wanted = a_pointer("two")
    upload.move_pointer(s3, PLACE, before, dataclasses.replace(wanted))
    assert upload.move_pointer(s3, PLACE, before, wanted) is wanted


def test_a_pointer_removed_meanwhile_is_not_brought_back(s3: S3Client) -> None:
    upload.move_pointer(s3, PLACE, upload.Current(None, None), a_pointer("one"))
    before = upload.read_pointer(s3, PLACE)
    s3.delete_object(Bucket="deploys", Key=PLACE.key)
    with pytest.raises(BootagentError, match="was removed, or hidden from us, while this was under way"):
        upload.move_pointer(s3, PLACE, before, a_pointer("two"))


@pytest.mark.parametrize(
    "document",
    [b"", b"{}", b"[]", b'{"format": 2}', b"not json", a_pointer().to_json() + b" " * 70_000],
    ids=["empty", "object", "list", "newer", "text", "long"],
)
def test_what_is_no_pointer_is_never_replaced(s3: S3Client, document: bytes) -> None:
    s3.put_object(Bucket="deploys", Key=PLACE.key, Body=document)
    with pytest.raises(BundleError, match=r"so it is not replaced \(publish under another name, or remove it first\)"):
        upload.read_pointer(s3, PLACE)


@pytest.mark.parametrize(
    ("code", "status", "wanted"),
    [
        ("AccessDenied", 403, "allow s3:PutObject"),
        ("NotImplemented", 501, "has no conditional writes"),
        ("NoSuchBucket", 404, "NoSuchBucket"),
    ],
)
def test_a_pointer_that_cannot_be_put(cloud: Cloud, s3: S3Client, code: str, status: int, wanted: str) -> None:
    cloud.api.fail("s3", "PutObject", code=code, status=status)
    with pytest.raises(BootagentError, match=wanted):
        upload.move_pointer(s3, PLACE, upload.Current(None, None), a_pointer())


def test_a_busy_pointer_is_tried_again(cloud: Cloud, s3: S3Client, pauses: list[float]) -> None:
    cloud.api.fail("s3", "PutObject", code="ConditionalRequestConflict", status=409)
    assert upload.move_pointer(s3, PLACE, upload.Current(None, None), a_pointer()) == a_pointer()
    assert pauses == [0.5]
