"""An instance read from a real metadata server, with everything such a server does wrong."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from bootagent import aws, cli, instance
from bootagent.errors import AwsError, ConfigError, MetadataError
from bootagent.imds import Metadata
from bootagent.instance import Instance, Overrides
from bootagent.sandbox.api import AwsApi
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.metadata import USER_DATA

ROLE = {"Role"}
TOKEN = "PUT /latest/api/token"
TAGS = "/latest/meta-data/tags/instance"


def enter(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this very process be one inside the cloud."""
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def inside(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    enter(cloud, monkeypatch)
    aws._client.cache_clear()
    yield cloud
    aws._client.cache_clear()


def read(
    *, within: float = 5, required: set[str] = ROLE, arguments: Mapping[str, str] = {}, defaults: Mapping[str, str] = {}
) -> Instance:
    return instance.read(Overrides(arguments, defaults), lambda tags: required, within=within)


def refusal(within: float = 5, required: set[str] = ROLE) -> tuple[str, float]:
    """What a read that must fail says, and how long it took."""
    began = time.monotonic()
    with pytest.raises(MetadataError) as caught:
        read(within=within, required=required)
    return str(caught.value), time.monotonic() - began


# --- as it should be ---------------------------------------------------------------------------------------------


def test_an_instance_as_it_is(inside: Cloud) -> None:
    told = inside.metadata.instance
    assert read() == Instance(
        instance_id=told.instance_id,
        region="eu-west-1",
        availability_zone="eu-west-1a",
        account_id=told.account_id,
        instance_type=told.instance_type,
        image_id=told.ami_id,
        private_ip=told.local_ipv4,
        tags={"Role": "web", "Environment": "staging"},
        tag_origin={"Role": "metadata", "Environment": "metadata"},
        region_origin="environment",
    )


def test_it_costs_one_token_and_no_call_to_ec2(inside: Cloud) -> None:
    read()
    assert inside.metadata.requests.count(TOKEN) == 1
    assert len(inside.metadata.requests) == 6  # token, identity, user-data, list of tags, two tags
    assert inside.calls == []


def test_the_region_of_the_environment_wins_over_the_instances(inside: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    assert read().region == "ap-south-1"
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert read().region == "eu-west-1"


def test_without_an_identity_document_the_single_keys_do(inside: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    inside.metadata.remove("dynamic/instance-identity/document")
    found = read()
    assert (found.instance_id, found.region, found.availability_zone, found.account_id) == (
        inside.metadata.instance.instance_id,
        "eu-west-1",
        "eu-west-1a",
        None,
    )


def test_an_identity_document_that_is_none_is_a_sentence(inside: Cloud) -> None:
    inside.metadata.put("dynamic/instance-identity/document", "<html>")
    said, _ = refusal()
    assert said == "the instance identity document is no JSON: '<html>'"


@pytest.mark.parametrize("value", ["a b", "ä ö", "", "a/b?c#d&e", "x" * 256, "  x  "])
def test_a_tags_value_comes_as_it_is(inside: Cloud, value: str) -> None:
    inside.metadata.put("meta-data/tags/instance/Note", value)
    assert read().tags["Note"] == value


@pytest.mark.parametrize("key", ["aws:autoscaling:groupName", "a+b=c,d.e@f", "-", "..."])
def test_a_tags_key_may_look_odd(inside: Cloud, key: str) -> None:
    inside.metadata.set_tag(key, "value")
    assert read().tags[key] == "value"


def test_it_speaks_ipv6(aws_api: AwsApi, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cloud(tags={"Role": "web"}, api=aws_api, host="::1") as cloud:
        enter(cloud, monkeypatch)
        assert cloud.metadata.endpoint.startswith("http://[::1]:")
        assert read().tags == {"Role": "web"}


def test_no_proxy_is_asked(inside: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name)
    assert read(within=2).tags["Role"] == "web"


# --- tokens ------------------------------------------------------------------------------------------------------


def test_a_dropped_token_is_renewed(inside: Cloud) -> None:
    metadata = Metadata(5)
    assert metadata.get("meta-data/instance-id") == inside.metadata.instance.instance_id
    inside.metadata.drop_tokens()
    assert metadata.get("meta-data/placement/region") == "eu-west-1"
    assert inside.metadata.requests.count(TOKEN) == 2


def test_a_token_is_used_for_as_long_as_it_is_good(inside: Cloud) -> None:
    metadata = Metadata(5)
    for _ in range(5):
        assert metadata.get("meta-data/instance-id")
        assert metadata.get("meta-data/none") is None
    assert inside.metadata.requests.count(TOKEN) == 1


def test_tokens_dropped_all_the_time_are_no_reason_to_wait_forever(
    inside: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = inside.metadata.answer

    def forgetful(method: str, *rest: object) -> object:
        if method == "GET":
            inside.metadata.drop_tokens()
        return answer(method, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(inside.metadata, "answer", forgetful)
    said, took = refusal(within=0.5)
    assert "the token was refused (401)" in said
    assert took < 3


# --- a service that is away, off, slow or ill --------------------------------------------------------------------


def test_a_disabled_service_is_told_at_once_with_the_remedy(inside: Cloud) -> None:
    inside.metadata.faults.disabled = True
    said, took = refusal(within=60)
    assert said.startswith(f"instance metadata is disabled ({inside.metadata.endpoint} answered 403)")
    assert "modify-instance-metadata-options --http-endpoint enabled" in said
    assert took < 2
    assert inside.metadata.requests == [TOKEN]


def test_no_listener_is_told_in_time_with_the_hop_limit(inside: Cloud) -> None:
    inside.metadata.stop()
    said, took = refusal(within=0.7)
    assert said.startswith(f"no instance metadata at {inside.metadata.endpoint} within 0.7 s: no route or no listener")
    assert "HttpPutResponseHopLimit to 2" in said
    assert 0.6 < took < 3


def test_no_answer_to_the_token_is_told_in_time_with_the_hop_limit(inside: Cloud) -> None:
    """So it looks from a container: the PUT arrives, and its answer has no hop left to come back."""
    inside.metadata.faults.delay = 60
    said, took = refusal(within=0.7)
    assert said.startswith(f"no token from {inside.metadata.endpoint} within 0.7 s")
    assert "HttpPutResponseHopLimit to 2" in said
    assert took < 3


def test_a_listener_that_comes_late_is_waited_for(inside: Cloud) -> None:
    inside.metadata.stop()
    timer = threading.Timer(0.6, inside.metadata.start)
    timer.start()
    assert read(within=15).tags["Role"] == "web"
    timer.join()


@pytest.mark.parametrize("failures", [1, 3])
def test_some_503_and_then_all_is_well(inside: Cloud, failures: int) -> None:
    inside.metadata.faults.failures = failures
    assert read(within=15).tags["Role"] == "web"


def test_503_in_the_middle_is_no_absent_tag(inside: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = inside.metadata.answer
    failed: list[str] = []

    def ill(method: str, target: str, *rest: object) -> object:
        if target.endswith("/Environment") and len(failed) < 2:
            failed.append(target)
            inside.metadata.faults.failures = 1
        return answer(method, target, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(inside.metadata, "answer", ill)
    assert read(within=15).tags == {"Role": "web", "Environment": "staging"}
    assert len(failed) == 2


def test_503_for_ever_is_told_in_time(inside: Cloud) -> None:
    inside.metadata.faults.failures = 10**6
    said, took = refusal(within=0.5)
    assert "answered 503" in said
    assert took < 3


def test_something_else_on_that_address_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(BaseHTTPRequestHandler):
        """A web server that knows nothing of tokens."""

        def do_PUT(self) -> None:
            self.send_error(405)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Plain) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        said, took = refusal(within=60)
        server.shutdown()
        thread.join()
    assert "gives no IMDSv2 token (405)" in said
    assert took < 2


def test_a_listener_that_never_answers_a_read_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        _, took = refusal(within=0.5)
    assert took < 3


def test_a_service_that_is_redirected_does_not_lead_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token must not follow somebody's redirect."""
    seen: list[str] = []

    class Redirecting(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            seen.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        do_GET = do_PUT = _serve

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Redirecting) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        refusal(within=0.3)
        server.shutdown()
        thread.join()
    assert set(seen) == {"/latest/api/token"}


def test_a_disabled_service_is_not_asked_when_the_environment_says_so(
    inside: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    found = read(arguments={"Role": "db"})
    assert (found.instance_id, found.tags) == (None, {"Role": "db"})
    assert inside.metadata.requests == []
    assert inside.calls == []


# --- which tags --------------------------------------------------------------------------------------------------


def test_late_tags_are_waited_for_and_may_ask_for_more(inside: Cloud) -> None:
    """The role comes late, and only then is known what it needs; that is there by the same look."""
    inside.metadata.remove_tag("Role")
    inside.metadata.set_tag("Role", "worker", after=0.5)
    inside.metadata.set_tag("Team", "blue", after=0.5)

    def required(tags: Mapping[str, str]) -> set[str]:
        return {"Role", "Team"} if tags.get("Role") == "worker" else {"Role"}

    began = time.monotonic()
    found = instance.read(Overrides(), required, within=30)
    took = time.monotonic() - began
    assert (found.tags["Role"], found.tags["Team"]) == ("worker", "blue")
    assert 4.5 < took < 12  # metadata is asked no more often than every five seconds
    assert inside.metadata.requests.count(f"GET {TAGS}") == 2
    assert inside.calls == []  # a fleet that boots does not crowd the API


def test_a_tag_that_never_comes_is_named_with_what_there_is(inside: Cloud) -> None:
    said, took = refusal(within=0.5, required={"Role", "Team", "Colour"})
    assert said.startswith("the instance has no tag Colour, Team (it has Environment, Role; asked instance metadata)")
    assert "PropagateAtLaunch" in said
    assert "--tag KEY=VALUE" in said
    assert took < 3
    assert inside.calls == []


def test_an_empty_value_is_no_value(inside: Cloud) -> None:
    inside.metadata.put("meta-data/tags/instance/Team", "")
    said, _ = refusal(within=0.3, required={"Team"})
    assert "the instance has no tag Team" in said


def test_a_tag_removed_between_the_list_and_its_reading_is_simply_gone(inside: Cloud) -> None:
    answer = inside.metadata._look_up

    def listing(path: str) -> bytes | None:
        found = answer(path)
        return found + b"\nGone" if found and path.endswith("tags/instance") else found

    inside.metadata._look_up = listing  # type: ignore[method-assign]
    assert read().tags == {"Role": "web", "Environment": "staging"}


def test_where_tags_come_from_is_known_and_who_wins(inside: Cloud) -> None:
    for key in ("A", "B", "C"):
        inside.metadata.set_tag(key, "metadata")
    inside.metadata.put(USER_DATA, '#bootagent\n[tags]\nA = "user-data"\nB = "user-data"\nU = "user-data"\n')
    words = dict.fromkeys(("A", "X"), "argument")
    found = read(arguments=words, defaults=dict.fromkeys(("A", "B", "C", "D"), "defaults"))
    expected = {
        "A": "argument",
        "X": "argument",
        "B": "user-data",
        "U": "user-data",
        "C": "metadata",
        "D": "defaults",
    }
    assert {key: value for key, value in found.tags.items() if len(key) == 1} == expected
    assert {key: value for key, value in found.tag_origin.items() if len(key) == 1} == expected


@pytest.mark.parametrize(
    "body",
    [
        b"#!/bin/sh\nbootagent run\n",
        b"#cloud-config\n{}\n",
        gzip.compress(b"#bootagent\n[tags]\nRole = 'db'\n"),
        bytes(range(256)) * 60,
    ],
    ids=["script", "cloud-config", "gzip", "binary"],
)
def test_user_data_of_others_is_left_alone(inside: Cloud, body: bytes) -> None:
    inside.metadata.put(USER_DATA, body)
    assert read().tags == {"Role": "web", "Environment": "staging"}


def test_user_data_of_ours_that_is_broken_stops_the_run(inside: Cloud) -> None:
    inside.metadata.put(USER_DATA, "#bootagent\n[tags]\nRole = 3\n")
    with pytest.raises(ConfigError, match=r"user-data: tags.Role: 3 is not text in quotes"):
        read()


# --- tags that metadata does not show ----------------------------------------------------------------------------


def test_where_metadata_shows_no_tags_ec2_does(inside: Cloud) -> None:
    inside.metadata.tags_enabled = False
    inside.set_tag("with blank", "and/slash")
    found = read()
    assert found.tags == {"Role": "web", "Environment": "staging", "with blank": "and/slash"}
    assert set(found.tag_origin.values()) == {"ec2"}
    assert inside.count("ec2", "DescribeTags") == 1
    assert inside.count("ec2") == 1


def test_other_instances_tags_are_not_ours(inside: Cloud) -> None:
    ec2 = inside.api.ec2(inside.region)
    other = ec2.run_instances(ImageId="ami-0123456789abcdef0", MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    ec2.create_tags(Resources=[other], Tags=[{"Key": "Role", "Value": "db"}, {"Key": "Other", "Value": "x"}])
    inside.metadata.tags_enabled = False
    assert read().tags == {"Role": "web", "Environment": "staging"}


def test_ec2_is_not_asked_for_what_is_known_otherwise(inside: Cloud) -> None:
    inside.metadata.tags_enabled = False
    inside.metadata.put(USER_DATA, '#bootagent\n[tags]\nTeam = "blue"\n')
    found = read(required={"Role", "Team", "Size"}, arguments={"Role": "db"}, defaults={"Size": "small"})
    assert found.tags == {"Role": "db", "Team": "blue", "Size": "small"}
    assert inside.calls == []


@pytest.mark.parametrize("code", ["UnauthorizedOperation", "AccessDenied"])
def test_a_denial_names_the_action_and_the_other_way(inside: Cloud, code: str) -> None:
    inside.metadata.tags_enabled = False
    inside.api.fail("ec2", "DescribeTags", code=code, status=403, times=100)
    began = time.monotonic()
    with pytest.raises(AwsError) as caught:
        read(within=2)
    said = str(caught.value)
    assert said.startswith(f"cannot read the tags of {inside.metadata.instance.instance_id}: {code}")
    assert "allow ec2:DescribeTags" in said
    assert "InstanceMetadataTags=enabled" in said
    assert (caught.value.iam_action, caught.value.code) == ("ec2:DescribeTags", code)
    assert time.monotonic() - began < 5
    assert inside.count("ec2", "DescribeTags") == 1


def test_no_tags_yet_and_a_denied_ec2_are_waited_out(inside: Cloud) -> None:
    """Metadata answers 404 both where tags are switched off and where there is none yet."""
    inside.remove_tag("Role")
    inside.remove_tag("Environment")
    inside.api.fail("ec2", "DescribeTags", code="UnauthorizedOperation", status=403, times=100)
    inside.metadata.set_tag("Role", "web", after=2)
    inside.metadata.set_tag("Environment", "staging", after=2)
    assert read(within=30).tags == {"Role": "web", "Environment": "staging"}


def test_a_throttled_ec2_is_asked_again(inside: Cloud) -> None:
    inside.metadata.tags_enabled = False
    inside.api.fail("ec2", "DescribeTags", code="RequestLimitExceeded", status=503, times=2)
    assert read(within=60).tags["Role"] == "web"
    assert inside.count("ec2", "DescribeTags") == 3


def test_a_tag_nobody_has_is_told_with_everyone_asked(inside: Cloud) -> None:
    inside.metadata.tags_enabled = False
    said, _ = refusal(within=0.5, required={"Team"})
    assert "the instance has no tag Team (it has Environment, Role; asked EC2 DescribeTags)" in said


def test_an_instance_without_any_tag_says_so(aws_api: AwsApi, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cloud(api=aws_api) as cloud:
        enter(cloud, monkeypatch)
        aws._client.cache_clear()
        said, _ = refusal(within=0.3)
    assert "the instance has no tag Role (it has no tags; asked EC2 DescribeTags)" in said


def test_metadata_that_lags_is_not_the_last_word(inside: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags it shows, but not all: for a while it is asked alone, and then EC2 as well."""
    monkeypatch.setattr(instance, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(instance, "EC2_AFTER_SECONDS", 0.5)
    inside.api.ec2(inside.region).create_tags(
        Resources=[inside.metadata.instance.instance_id], Tags=[{"Key": "Team", "Value": "blue"}]
    )
    began = time.monotonic()
    found = read(within=30, required={"Role", "Team"})
    assert time.monotonic() - began > 0.5
    assert found.tags["Team"] == "blue"
    assert found.tag_origin["Team"] == "ec2"
    assert inside.count("ec2", "DescribeTags") == 1


def test_metadata_that_lags_is_waited_for_where_ec2_may_not_be_asked(
    inside: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(instance, "EC2_AFTER_SECONDS", 0.0)
    inside.api.fail("ec2", "DescribeTags", code="UnauthorizedOperation", status=403, times=1000)
    inside.set_tag("Team", "blue", after=0.8)
    found = read(within=30, required={"Role", "Team"})
    assert (found.tags["Team"], found.tag_origin["Team"]) == ("blue", "metadata")
    said, _ = refusal(within=0.5, required={"Colour"})
    assert "the instance has no tag Colour" in said


# --- facts -------------------------------------------------------------------------------------------------------


def test_facts_as_json_and_as_text(inside: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    inside.metadata.put(USER_DATA, '#bootagent\n[tags]\nTeam = "blue"\n')
    assert cli.main(["facts", "--json", "--tag", "Role=db"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["instance_id"], told["region"]) == (inside.metadata.instance.instance_id, "eu-west-1")
    assert told["tags"] == {"Role": "db", "Environment": "staging", "Team": "blue"}
    assert told["tag_origin"] == {"Role": "argument", "Environment": "metadata", "Team": "user-data"}
    assert cli.main(["facts"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["FACT", "VALUE", "FROM"]
    assert ["tag:Role", "web", "metadata"] in lines
    assert ["tag:Team", "blue", "user-data"] in lines
    assert ["instance_id", inside.metadata.instance.instance_id, "metadata"] in lines


def test_facts_say_where_a_region_really_came_from(
    inside: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    assert cli.main(["facts"]) == 0
    (region,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("region")]
    assert region[1] == "ap-south-1"
    assert region[2] != "metadata"


def test_facts_show_tags_that_only_ec2_has(inside: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the command for finding out why a tag is not seen."""
    inside.metadata.tags_enabled = False
    assert cli.main(["facts", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tags"] == {"Role": "web", "Environment": "staging"}


def test_facts_without_metadata_end_in_1_in_time(inside: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    inside.metadata.stop()
    assert cli.main(["facts", "--within", "0.3"]) == 1
    assert capsys.readouterr().err.startswith("bootagent: no instance metadata at ")
