"""Tags from several places become one set; user-data that is not ours is left alone."""

from __future__ import annotations

import gzip

import pytest

from bootagent import imds
from bootagent.errors import EXIT_USAGE, ConfigError, MetadataError
from bootagent.instance import Instance, Overrides, read, user_data_tags

# --- user-data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "tags"),
    [
        (b'#bootagent\n[tags]\nRole = "web"\n', {"Role": "web"}),
        (b'#bootagent  \r\n[tags]\r\nRole = "web"\r\n"aws:x" = "y"\r\n', {"Role": "web", "aws:x": "y"}),
        ('#bootagent\n[tags]\nName = "Müller"'.encode(), {"Name": "Müller"}),
        (b"#bootagent\n[tags]\n", {}),
        (b"#bootagent\n", {}),
        (b"#bootagent", {}),
    ],
)
def test_user_data_of_ours(body: bytes, tags: dict[str, str]) -> None:
    assert user_data_tags(body) == tags


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b"#!/bin/sh\nexec bootagent run --tag Role=web\n",
        b"#cloud-config\nruncmd: []\n",
        b"Content-Type: multipart/mixed; boundary=x\n\n#bootagent\n",
        b"\n#bootagent\n[tags]\n",
        b"# bootagent\n[",
        b"#bootagents\n[",
        b"#bootagent: x\n[",
        b"\xff\xfe\x00#bootagent\n",
        bytes(range(256)),
        gzip.compress(b"#bootagent\n[tags]\nRole = 'x'\n", mtime=0),
    ],
)
def test_user_data_of_others_is_left_alone(body: bytes | None) -> None:
    assert user_data_tags(body) == {}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"#bootagent\n[tags\n", [("", "cannot be read: ")]),
        (b"#bootagent\n\xff\n", [("", "cannot be read: ")]),
        (b"#bootagent\ntags = 3\n", [("tags", "is not a table")]),
        (b"#bootagent\n[tag]\nRole = 'x'\n", [("tag", "is not a known key")]),
        (
            b"#bootagent\nother = 1\n[tags]\nA = 1\nB = true\nC = 'fine'\nD = ['x']\n",
            [("other", "is not a known key"), ("tags.A", "1 is not text"), ("tags.B", "True"), ("tags.D", "['x']")],
        ),
    ],
)
def test_user_data_of_ours_that_makes_no_sense_is_told_at_once(body: bytes, told: list[tuple[str, str]]) -> None:
    with pytest.raises(ConfigError) as caught:
        user_data_tags(body)
    assert caught.value.exit_code == EXIT_USAGE
    found = [(problem.file, problem.key, problem.sentence) for problem in caught.value.problems]
    assert [(file, key) for file, key, _ in found] == [("user-data", key) for key, _ in told]
    for (_, _, sentence), (_, words) in zip(found, told, strict=True):
        assert words in sentence


# --- without metadata --------------------------------------------------------------------------------------------


@pytest.fixture
def disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("disabled")
def test_with_metadata_disabled_only_arguments_and_defaults_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    overrides = Overrides(arguments={"Role": "web"}, defaults={"Role": "none", "Team": "blue"})
    found = read(overrides, lambda tags: {"Role", "Team"}, within=5)
    assert found == Instance(
        instance_id=None,
        region="eu-north-1",
        tags={"Role": "web", "Team": "blue"},
        tag_origin={"Role": "argument", "Team": "defaults"},
        region_origin="environment",
    )
    assert found.coordinates() == {"region": "eu-north-1"}


@pytest.mark.usefixtures("disabled")
def test_with_metadata_disabled_a_missing_tag_is_told_at_once() -> None:
    with pytest.raises(MetadataError, match=r"no value for Role, Team: AWS_EC2_METADATA_DISABLED is set \(.*--tag"):
        read(Overrides(), lambda tags: {"Team", "Role"}, within=600)


@pytest.mark.parametrize(
    ("value", "disabled"), [("true", True), ("TRUE", True), ("false", False), ("", False), ("1", False)]
)
def test_what_disables_metadata(value: str, disabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the AWS SDKs have it."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", value)
    assert imds.is_disabled() == disabled


# --- where the service is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("http://169.254.169.254", "http://[fd00:ec2::254]")),
        ({"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv6"}, ("http://[fd00:ec2::254]",)),
        ({"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1338/"}, ("http://127.0.0.1:1338",)),
        (
            {
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://[::1]:1338",
                "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "ipv6",
            },
            ("http://[::1]:1338",),
        ),
    ],
)
def test_the_standard_variables_say_where_it_is(
    environment: dict[str, str], expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert imds.endpoints() == expected


def test_coordinates_are_what_is_known() -> None:
    found = Instance("i-1", "eu-west-1", "eu-west-1a", None, "t3.small", "ami-1", "10.0.0.1", {"Role": "web"})
    assert found.coordinates() == {
        "region": "eu-west-1",
        "availability_zone": "eu-west-1a",
        "instance_id": "i-1",
        "instance_type": "t3.small",
    }
