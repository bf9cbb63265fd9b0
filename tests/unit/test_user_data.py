"""The text of user-data: what it says to a shell, to the agent, and to S3."""

from __future__ import annotations

import datetime
import shlex
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from bootagent.errors import UsageError
from bootagent.instance import user_data_tags
from bootagent.sandbox.metadata import MetadataServer, SimulatedInstance
from bootagent.user_data import LIMIT, document, fetch, install_script, script, tags_of

#: What EC2 lets people put into tags, and much that it does not.
TEXT = st.text(min_size=1, max_size=60).filter(str.isprintable)
TAGS = st.dictionaries(TEXT.filter(lambda key: "=" not in key), TEXT, min_size=1, max_size=5)
SAMPLE = {"Role": "worker", "Environment": "staging"}


# --- tags --------------------------------------------------------------------------------------------------------


def test_tags_go_under_the_keys_that_the_configuration_reads() -> None:
    assert tags_of("worker", "staging", {"Team": "ops"}) == {"Role": "worker", "Environment": "staging", "Team": "ops"}
    assert tags_of("worker", role_key="Mode") == {"Mode": "worker"}
    assert tags_of("w", "s", role_key="Mode", environment_key="Stage") == {"Mode": "w", "Stage": "s"}
    assert tags_of("worker", tags={"Role": "worker"}) == {"Role": "worker"}


@pytest.mark.parametrize(
    ("role", "environment", "tags", "said"),
    [
        ("", None, {}, "Role is empty"),
        ("worker", None, {"Team": ""}, "Team is empty"),
        ("worker", None, {"Role": "web"}, "both 'worker' and 'web'"),
        ("worker", "staging", {"Environment": "production"}, "both 'staging' and 'production'"),
        ("worker", None, {"a=b": "c"}, "cannot be the key"),
        ("worker", None, {"": "c"}, "cannot be the key"),
        ("worker\nreboot", None, {}, "not one line of text"),
        ("worker\0", None, {}, "not one line of text"),
        ("worker", None, {"a\nb": "c"}, "not one line of text"),
        ("\udce4", None, {}, "not one line of text"),
    ],
)
def test_tags_that_cannot_be(role: str, environment: str | None, tags: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        tags_of(role, environment, tags)


# --- the three forms ---------------------------------------------------------------------------------------------


def test_a_script_for_cloud_init() -> None:
    assert script(SAMPLE) == (
        "#!/bin/sh\nexec bootagent reconfigure --lock-wait 900 --tag Role=worker --tag Environment=staging\n"
    )


@pytest.mark.spawns
@given(TAGS)
def test_a_shell_reads_every_tag_as_it_is(tags: dict[str, str]) -> None:
    text = script(tags).replace("exec bootagent", "printf '%s\\0'")
    said = subprocess.run(["sh"], input=text.encode(), capture_output=True, check=True).stdout.decode()
    words = [[f"--tag={k}={v}"] if k.startswith("-") else ["--tag", f"{k}={v}"] for k, v in tags.items()]
    assert said.split("\0")[3:-1] == [word for pair in words for word in pair]


def test_a_document_for_the_agent() -> None:
    assert document({"Role": "worker", "aws:team": 'a "b"'}) == (
        '#bootagent\n[tags]\nRole = "worker"\n"aws:team" = "a \\"b\\""\n'
    )


@given(TAGS)
def test_the_agent_reads_every_tag_as_it_is(tags: dict[str, str]) -> None:
    assert user_data_tags(document(tags).encode()) == tags


@pytest.mark.parametrize("form", [script, document])
def test_more_than_ec2_takes(form: object) -> None:
    assert callable(form)
    room = LIMIT - len(form({"Role": "x"}).encode()) + 1
    assert len(form({"Role": "x" * room}).encode()) == LIMIT
    with pytest.raises(UsageError, match=f"is {LIMIT + 1} bytes long; EC2 accepts {LIMIT}"):
        form({"Role": "x" * (room + 1)})
    with pytest.raises(UsageError):
        form({"Role": "ä" * (room // 2 + 1)})


@pytest.mark.spawns
@pytest.mark.parametrize("kind", ["deb", "pyz"])
def test_a_script_that_installs_is_a_script(kind: str) -> None:
    text = install_script(SAMPLE, f"s3://tools/a b'c.{kind}".replace(" ", "-"), configuration="[apps]\n$(reboot)\n")
    assert text.startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n"], input=text.encode(), check=True)
    assert shlex.quote(f"s3://tools/a-b'c.{kind}") in text
    assert "<<'CONFIGURATION'\n[apps]\n$(reboot)\nCONFIGURATION\n" in text
    assert ("apt-get" in text) == (kind == "deb")
    assert len(text) < LIMIT / 2  # a configuration has room


@pytest.mark.parametrize(
    "package",
    [
        "bootagent.deb",
        "s3://bucket",
        "s3://bucket/",
        "s3:///bootagent.deb",
        "s3://bucket/bootagent.rpm",
        "s3://bucket/bootagentdeb",
        "http://example.com/bootagent.deb",
        "https://example.com",
        "s3://bucket/boot agent.deb",
        "s3://bucket/boot\nagent.deb",
    ],
)
def test_packages_that_cannot_be(package: str) -> None:
    with pytest.raises(UsageError, match=r"is no s3:// or https:// URL of a \.deb or \.pyz"):
        install_script(SAMPLE, package)


def test_a_presigned_url() -> None:
    text = install_script(SAMPLE, "https://b.s3.amazonaws.com/bootagent.pyz?X-Amz-Expires=60&X-Amz-Signature=0a")
    assert "'https://b.s3.amazonaws.com/bootagent.pyz?X-Amz-Expires=60&X-Amz-Signature=0a'" in text


@pytest.mark.parametrize("digest", ["", "0" * 63, "G" * 64, "0" * 64 + "\n"])
def test_digests_that_cannot_be(digest: str) -> None:
    with pytest.raises(UsageError, match="is no SHA-256 digest"):
        install_script(SAMPLE, "s3://b/bootagent.deb", sha256=digest)


def test_a_configuration_that_would_end_itself() -> None:
    with pytest.raises(UsageError, match="has a line CONFIGURATION"):
        install_script(SAMPLE, "s3://b/bootagent.deb", configuration="[apps]\nCONFIGURATION\nreboot\n")


# --- fetching ----------------------------------------------------------------------------------------------------

ROLE = Credentials("ASIASANDBOX000000000", "sandbox", "sandbox")  # as the simulated metadata gives them


@pytest.mark.parametrize(
    ("url", "region", "expected"),
    [
        ("s3://tools/bootagent.deb", "", "https://tools.s3.eu-west-1.amazonaws.com/bootagent.deb"),
        ("s3://tools/a/b+c~d.deb", "us-east-1", "https://tools.s3.us-east-1.amazonaws.com/a/b%2Bc~d.deb"),
        ("s3://my.tools/ä.deb", "", "https://s3.eu-west-1.amazonaws.com/my.tools/%C3%A4.deb"),
    ],
)
def test_the_signature_is_what_botocore_makes(
    url: str, region: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    with MetadataServer(SimulatedInstance(region="eu-west-1")) as metadata:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.endpoint)
        request = fetch.signed(url, region)
    assert request.full_url == expected
    headers = {name.lower(): value for name, value in request.header_items()}

    stamp = datetime.datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ")
    known = AWSRequest("GET", request.full_url, headers={"X-Amz-Content-SHA256": fetch.EMPTY}, data=b"")
    signer = S3SigV4Auth(ROLE, "s3", region or "eu-west-1")
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: stamp)
    signer.add_auth(known)
    assert headers["authorization"] == known.headers["Authorization"]
    assert headers["host"] == urllib.parse.urlsplit(expected).netloc


def test_a_fetch_runs_on_its_own(tmp_path: Path) -> None:
    """It imports nothing of the package: it is run from standard input."""
    source = Path(fetch.__file__).read_text()
    names = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert names <= sys.stdlib_module_names
