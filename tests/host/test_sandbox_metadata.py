"""The metadata server, spoken to over real HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest
import requests

from bootagent.errors import UsageError
from bootagent.sandbox.metadata import LIFECYCLE, SPOT, USER_DATA, MetadataServer


class Client:
    """curl, more or less."""

    def __init__(self, server: MetadataServer) -> None:
        self.server = server
        self.session = requests.Session()
        self.session.trust_env = False

    def call(self, method: str, path: str, headers: dict[str, str] | None = None, body: str = "") -> requests.Response:
        url = self.server.endpoint + path
        return self.session.request(method, url, headers=headers, data=body.encode(), timeout=5)

    def token(self, ttl: str = "60") -> str:
        response = self.call("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": ttl})
        assert response.status_code == 200
        return response.text

    def get(self, path: str) -> requests.Response:
        return self.call("GET", f"/latest/{path}", {"X-aws-ec2-metadata-token": self.token()})


@pytest.fixture
def server() -> Iterator[MetadataServer]:
    with MetadataServer(tags={"Role": "web", "Team": "a/b c"}) as running:
        yield running


@pytest.fixture
def client(server: MetadataServer) -> Client:
    return Client(server)


@pytest.mark.parametrize("ttl", ["", "0", "21601", "-1", "1.5", "many", "²"])
def test_a_token_needs_a_lifetime_in_range(client: Client, ttl: str) -> None:
    headers = {"X-aws-ec2-metadata-token-ttl-seconds": ttl.encode()} if ttl else {}
    assert client.call("PUT", "/latest/api/token", headers).status_code == 400  # type: ignore[arg-type]


@pytest.mark.parametrize("ttl", ["1", "21600"])
def test_a_token_is_issued_with_its_lifetime(client: Client, ttl: str) -> None:
    response = client.call("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": ttl})
    assert response.status_code == 200
    assert response.headers["X-aws-ec2-metadata-token-ttl-seconds"] == ttl


def test_a_forwarded_token_request_is_refused(client: Client) -> None:
    headers = {"X-aws-ec2-metadata-token-ttl-seconds": "60", "X-Forwarded-For": "10.0.0.1"}
    assert client.call("PUT", "/latest/api/token", headers).status_code == 403


def test_version_1_is_refused(client: Client) -> None:
    assert client.call("GET", "/latest/meta-data/instance-id").status_code == 401
    bad = {"X-aws-ec2-metadata-token": "forged"}
    assert client.call("GET", "/latest/meta-data/instance-id", bad).status_code == 401


def test_a_token_expires(client: Client) -> None:
    header = {"X-aws-ec2-metadata-token": client.token("1")}
    assert client.call("GET", "/latest/meta-data/instance-id", header).status_code == 200
    time.sleep(1.05)
    assert client.call("GET", "/latest/meta-data/instance-id", header).status_code == 401


def test_dropped_tokens_are_worth_nothing(client: Client, server: MetadataServer) -> None:
    header = {"X-aws-ec2-metadata-token": client.token()}
    server.drop_tokens()
    assert client.call("GET", "/latest/meta-data/instance-id", header).status_code == 401


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("meta-data/instance-id", "i-0123456789abcdef0"),
        ("meta-data/ami-id", "ami-0123456789abcdef0"),
        ("meta-data/instance-type", "t3.small"),
        ("meta-data/local-ipv4", "10.0.0.15"),
        ("meta-data/local-hostname", "ip-10-0-0-15.eu-west-1.compute.internal"),
        ("meta-data/placement/availability-zone", "eu-west-1a"),
        ("meta-data/placement/region", "eu-west-1"),
        ("meta-data/mac", "0a:00:00:00:00:0f"),
        ("meta-data/placement/", "availability-zone\nregion"),
        ("meta-data/placement", "availability-zone\nregion"),
        ("meta-data/tags/", "instance/"),
        ("meta-data/tags/instance", "Role\nTeam"),
        ("meta-data/tags/instance/Team", "a/b c"),
        ("meta-data/iam/security-credentials/", "sandbox-instance"),
        ("", "dynamic/\nmeta-data/"),
    ],
)
def test_what_it_says(client: Client, path: str, text: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.text) == (200, text)


@pytest.mark.parametrize("path", ["user-data", f"{SPOT}", f"{LIFECYCLE}", "meta-data/tags/instance/Absent", "x"])
def test_what_is_not_there_is_404(client: Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_listing_marks_directories(client: Client) -> None:
    names = client.get("meta-data/").text.split("\n")
    assert {"instance-id", "placement/", "tags/", "iam/"} <= set(names)


def test_the_identity_document(client: Client) -> None:
    document = json.loads(client.get("dynamic/instance-identity/document").text)
    assert document["instanceId"] == "i-0123456789abcdef0"
    assert document["region"] == "eu-west-1"
    assert document["accountId"] == "123456789012"


def test_credentials_are_good_for_a_while(client: Client) -> None:
    found = json.loads(client.get("meta-data/iam/security-credentials/sandbox-instance").text)
    assert found["Code"] == "Success"
    assert datetime.strptime(found["Expiration"], "%Y-%m-%dT%H:%M:%S%z") > datetime.now(timezone.utc)


def test_tags_can_be_switched_off(client: Client, server: MetadataServer) -> None:
    server.tags_enabled = False
    assert client.get("meta-data/tags/instance").status_code == 404
    assert client.get("meta-data/tags/instance/Role").status_code == 404


def test_tags_change_live(client: Client, server: MetadataServer) -> None:
    server.set_tag("Role", "worker")
    server.remove_tag("Team")
    assert client.get("meta-data/tags/instance/Role").text == "worker"
    assert client.get("meta-data/tags/instance").text == "Role"


def test_an_instance_without_tags_lists_none(client: Client, server: MetadataServer) -> None:
    server.remove_tag("Team")
    server.remove_tag("Role")
    assert client.get("meta-data/tags/instance").status_code == 404


def test_a_late_tag_comes_late(client: Client, server: MetadataServer) -> None:
    server.set_tag("Late", "yes", after=0.3)
    assert client.get("meta-data/tags/instance/Late").status_code == 404
    time.sleep(0.5)
    assert client.get("meta-data/tags/instance/Late").text == "yes"


@pytest.mark.parametrize("key", ["a/b", "with blank", ".", "..", "_index", "", "x" * 256])
def test_a_key_ec2_would_refuse_is_refused(server: MetadataServer, key: str) -> None:
    with pytest.raises(UsageError):
        server.set_tag(key, "value")


def test_user_data_is_bytes(client: Client, server: MetadataServer) -> None:
    server.put(USER_DATA, b"\x1f\x8b\xff")
    assert client.get("user-data").content == b"\x1f\x8b\xff"


def test_faults(client: Client, server: MetadataServer) -> None:
    server.faults.failures = 2
    header = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    assert [client.call("PUT", "/latest/api/token", header).status_code for _ in range(3)] == [503, 503, 200]
    server.faults.delay = 0.3
    started = time.monotonic()
    client.token()
    assert time.monotonic() - started > 0.3
    server.faults.delay = 0.0
    server.faults.disabled = True
    assert client.call("PUT", "/latest/api/token", header).status_code == 403


def test_it_can_be_gone_and_come_back(client: Client, server: MetadataServer) -> None:
    endpoint = server.endpoint
    server.stop()
    with pytest.raises(requests.ConnectionError):
        client.token()
    server.start()
    assert server.endpoint == endpoint
    assert client.get("meta-data/instance-id").status_code == 200


def test_a_slow_server_stops_at_once(server: MetadataServer) -> None:
    server.faults.delay = 60.0
    with pytest.raises(requests.Timeout):
        requests.put(server.endpoint + "/latest/api/token", timeout=0.2)
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 5


def test_another_process_can_change_it(client: Client, server: MetadataServer) -> None:
    assert client.call("PUT", "/_sandbox/tags/Role", body="db").status_code == 204
    assert client.get("meta-data/tags/instance/Role").text == "db"
    assert client.call("DELETE", "/_sandbox/tags/Role").status_code == 204
    assert client.get("meta-data/tags/instance/Role").status_code == 404
    assert client.call("PUT", "/_sandbox/lifecycle", body="Terminated").status_code == 204
    assert client.get(LIFECYCLE).text == "Terminated"
    assert client.call("DELETE", "/_sandbox/lifecycle").status_code == 204
    assert client.get(LIFECYCLE).status_code == 404
    assert client.call("PUT", "/_sandbox/faults/failures", body="1").status_code == 204
    assert client.call("PUT", "/latest/api/token").status_code == 503
    header = {"X-aws-ec2-metadata-token": client.token()}
    assert client.call("DELETE", "/_sandbox/tokens").status_code == 204
    assert client.call("GET", "/latest/meta-data/", header).status_code == 401
    everything = client.call("GET", "/_sandbox").json()
    assert everything["entries"]["meta-data/tags/instance/Team"] == "a/b c"
    assert everything["faults"] == {"delay": 0.0, "failures": 0, "disabled": False}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/_sandbox/nonsense", "", 404),
        ("POST", "/_sandbox/tags/Role", "", 404),
        ("PUT", "/_sandbox/tags/a%2Fb", "", 400),
        ("PUT", "/_sandbox/faults/delay", "soon", 400),
        ("POST", "/latest/meta-data/", "", 405),
    ],
)
def test_senseless_requests_say_so(client: Client, method: str, path: str, body: str, status: int) -> None:
    assert client.call(method, path, body=body).status_code == status


def test_it_speaks_ipv6() -> None:
    with MetadataServer(host="::1") as server:
        assert server.endpoint.startswith("http://[::1]:")
        assert Client(server).get("meta-data/instance-id").status_code == 200
