"""The IAM policies: enforced by the simulated cloud, they let a run through, and with anything less it fails."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from moto import settings

from bootagent.sandbox.cloud import Cloud
from tests.conftest import Agent
from tests.host.packages.conftest import CHECKOUT, git
from tests.host.stage import BUCKET, App, Stage

POLICIES = CHECKOUT / "packaging/iam"
SECRETS = "secrets.json"
S3, TAGS, PUBLISH, TELLING = "s3.json", "tags.json", "publish.json", "telling.json"


def actions(name: str) -> list[str]:
    """What a policy allows."""
    found: list[str] = [action for statement in policy(name)["Statement"] for action in statement["Action"]]
    return found


def policy(name: str, prefix: str = "web") -> Any:
    """A policy for one prefix of the tests' bucket."""
    text = (POLICIES / name).read_text()
    return json.loads(text.replace("BUCKET", BUCKET).replace("PREFIX", prefix))


def without(document: Any, action: str) -> Any:
    """A policy that allows everything but one action."""
    for statement in document["Statement"]:
        statement["Action"] = [allowed for allowed in statement["Action"] if allowed != action]
    document["Statement"] = [statement for statement in document["Statement"] if statement["Action"]]
    return document


@contextlib.contextmanager
def may(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, *documents: Any) -> Iterator[Mapping[str, str]]:
    """Whoever has the credentials in this environment may do what the policies say, and nobody else anything."""
    iam = client(cloud, "iam")
    iam.create_user(UserName="agent")
    for number, document in enumerate(documents):
        if document["Statement"]:
            iam.put_user_policy(UserName="agent", PolicyName=f"p{number}", PolicyDocument=json.dumps(document))
    key = iam.create_access_key(UserName="agent")["AccessKey"]
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    yield {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", math.inf)


def client(cloud: Cloud, service: str) -> Any:
    """A client of the sandbox's own, whose calls are not counted."""
    return cloud.api._client(service, cloud.region)


@pytest.mark.parametrize("refused", [None, *actions(S3)])
def test_pulling(refused: str | None, stage: Stage, web: App, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    web.publish("one")
    allowed = policy(S3) if refused is None else without(policy(S3), refused)
    with may(stage.cloud, monkeypatch, allowed) as env:
        ran = agent("reconfigure", env=env)
    if refused is None:
        assert ran.code == 0, ran.stderr
        assert web.answer() == "one"
        assert {call.service for call in stage.cloud.calls} == {"s3"}
    else:
        assert ran.code == 1
        assert f"allow {refused} to the instance's role" in ran.stderr


def test_pulling_from_somewhere_else(stage: Stage, web: App, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    web.publish("one")
    with may(stage.cloud, monkeypatch, policy(S3, prefix="api")) as env:
        assert agent("reconfigure", env=env).code == 1


# Nothing is encrypted in the simulated cloud.
@pytest.mark.parametrize("refused", [None, *(action for action in actions(SECRETS) if action != "kms:Decrypt")])
def test_secrets(refused: str | None, stage: Stage, web: App, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("/web/A", "/web/B"):
        client(stage.cloud, "ssm").put_parameter(Name=name, Value="x", Type="SecureString")
    client(stage.cloud, "secretsmanager").create_secret(Name="web", SecretString='{"C": "x"}')
    stage.configure(web.config(extra='secrets = ["ssm:/web/", "ssm:/web/A", "secretsmanager:web"]'))
    web.publish("one")
    allowed = policy(SECRETS) if refused is None else without(policy(SECRETS), refused)
    for statement in allowed["Statement"]:
        statement["Resource"] = "*"  # the simulated cloud looks at resources of S3 alone
    with may(stage.cloud, monkeypatch, policy(S3), allowed) as env:
        ran = agent("reconfigure", env=env)
    if refused is None:
        assert ran.code == 0, ran.stderr
        assert web.answer() == "one"
    else:
        assert ran.code == 1
        assert f"allow {refused} to the instance's role" in ran.stderr


@pytest.mark.parametrize("refused", [None, *actions(TAGS)])
def test_tags(refused: str | None, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.metadata.tags_enabled = False
    allowed = policy(TAGS) if refused is None else without(policy(TAGS), refused)
    with may(cloud, monkeypatch, allowed) as env:
        # `facts` asks as a boot would, and is done when it is refused.
        found = facts(cloud, env)
    assert found.get("Role") == (None if refused else "web")
    assert [(call.service, call.action) for call in cloud.calls] == [("ec2", "DescribeTags")]


@pytest.mark.parametrize("refused", [None, *actions(TELLING)])
def test_telling(refused: str | None, stage: Stage, web: App, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a run is as good as with it; the tags alone are missing."""
    stage.configure(web.config(), "[tell]\ntags = true\n")
    web.publish("one")
    allowed = policy(TELLING) if refused is None else without(policy(TELLING), refused)
    with may(stage.cloud, monkeypatch, policy(S3), allowed) as env:
        ran = agent("reconfigure", env=env)
    assert ran.code == 0, ran.stderr
    assert (f"allow {refused} to the instance's role" in ran.stderr) == (refused is not None)
    assert [call.action for call in stage.cloud.calls if call.service == "ec2"] == ["CreateTags"]


def facts(cloud: Cloud, env: Mapping[str, str]) -> dict[str, str]:
    """The tags that ``bootagent facts`` finds."""
    done = subprocess.run(
        [sys.executable, "-m", "bootagent", "facts", "--json"],
        env={**cloud.process_environment(), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    tags: dict[str, str] = json.loads(done.stdout)["tags"]
    return tags


@pytest.mark.parametrize("refused", [None, "s3:PutObject", "s3:GetObject"])
def test_publishing(refused: str | None, cloud: Cloud, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.create_bucket(BUCKET)
    allowed = policy(PUBLISH) if refused is None else without(policy(PUBLISH), refused)
    with may(cloud, monkeypatch, allowed) as env:
        ran = publish(cloud, repository, env)
    assert ran.returncode == (1 if refused else 0), ran.stderr
    if refused:
        assert f"allow {refused}" in ran.stderr


@pytest.mark.parametrize("refused", [None, "s3:AbortMultipartUpload"])
def test_publishing_in_parts_that_fails(
    refused: str | None, cloud: Cloud, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.create_bucket(BUCKET)
    (repository / "large").write_bytes(os.urandom(65 << 20))
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message=large")
    cloud.api.fail("s3", "UploadPart", code="InvalidRequest", status=400)
    allowed = policy(PUBLISH) if refused is None else without(policy(PUBLISH), refused)
    with may(cloud, monkeypatch, allowed) as env:
        assert publish(cloud, repository, env).returncode == 1
    left = cloud.api.s3(cloud.region).list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    assert len(left) == (1 if refused else 0)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git tree with something to publish."""
    place = tmp_path / "app"
    place.mkdir()
    (place / "VERSION").write_text("one\n")
    git(place, "init", "--quiet")
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--message=one")
    return place


def publish(cloud: Cloud, repository: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``bootagent publish`` on a repository."""
    words = ["publish", f"s3://{BUCKET}/web/staging.json", "--repo", str(repository), "--compression", "gz"]
    return subprocess.run(
        [sys.executable, "-m", "bootagent", *words],
        env={**cloud.process_environment(), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_policies_for_storage_allow_what_the_code_says_it_needs_and_no_more() -> None:
    """The simulated cloud's volumes are not behind its IAM: what each call names as its permission must do."""
    instance, deployer = set(actions("ebs.json")), set(actions("snapshot.json"))
    assert instance | deployer == named("ebs", "publish/snapshot.py", "gc.py")
    assert not [action for action in instance if "Snapshot" in action and "Describe" not in action]
    assert not [action for action in deployer if "Attach" in action or "Detach" in action or "CreateVol" in action]
    assert named("aws.py") == {*actions("git-key.json"), *(one for one in actions(SECRETS) if one.startswith("ssm:"))}


def test_policies_for_traffic_and_hooks_allow_what_the_code_says_it_needs_and_no_more() -> None:
    traffic = {*actions("traffic.json"), *actions("elastic-ip.json")}
    assert traffic == named("traffic")
    assert {*actions("lifecycle.json")} == {*named("lifecycle"), "s3:PutObject"}


def named(*places: str) -> set[str]:
    """The permissions that modules of the package name."""
    files = [file for place in places for file in _modules(CHECKOUT / "bootagent" / place)]
    return {
        found
        for file in files
        for found in re.findall(r"\b(?:autoscaling|ec2|elasticloadbalancing|ssm):[A-Z][A-Za-z]+", file.read_text())
    }


def _modules(place: Path) -> list[Path]:
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


def test_every_policy_is_tested_and_has_placeholders() -> None:
    storage = {"ebs.json", "git-key.json", "snapshot.json", SECRETS, TELLING}
    fleet = {"traffic.json", "elastic-ip.json", "lifecycle.json"}
    assert {path.name for path in POLICIES.iterdir()} == {S3, TAGS, PUBLISH, *storage, *fleet}
    for name in (S3, PUBLISH):
        for statement in json.loads((POLICIES / name).read_text())["Statement"]:
            assert statement["Resource"] == "arn:aws:s3:::BUCKET/PREFIX/*"
