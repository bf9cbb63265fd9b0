"""The daemon's parts, each by itself; the whole is tried in tests/host/test_daemon.py."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from bootagent.agent import Ending, Outcome
from bootagent.daemon import notices
from bootagent.daemon.child import Child
from bootagent.daemon.log import quoted
from bootagent.daemon.lookout import Lookout, jittered, told_to_die
from bootagent.daemon.manager import ServiceManager
from bootagent.machine import Transfer
from bootagent.relay import Relay
from bootagent.sandbox.metadata import MAINTENANCE, SPOT, MetadataServer


@pytest.fixture(autouse=True)
def no_metadata_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)


# --- notices -----------------------------------------------------------------------------------------------------


@pytest.fixture
def metadata() -> Iterator[MetadataServer]:
    with MetadataServer() as server:
        yield server


def test_nothing_is_announced_until_something_is(metadata: MetadataServer) -> None:
    found, token = notices.read(metadata.endpoint, "", {})
    assert (found, bool(token)) == ({}, True)
    metadata.put(SPOT, '{"action": "stop"}\n')
    metadata.put(MAINTENANCE, "[]")
    found, again = notices.read(metadata.endpoint, token, {})
    assert found == {"spot": '{"action": "stop"}'}
    assert again == token, "a token is used for as long as it lasts"


def test_a_token_that_is_refused_is_replaced(metadata: MetadataServer) -> None:
    _, token = notices.read(metadata.endpoint, "", {})
    metadata.drop_tokens()
    found, other = notices.read(metadata.endpoint, token, {})
    assert found == {}
    assert other not in ("", token)


def test_ipv6_is_spoken() -> None:
    try:
        with MetadataServer(host="::1") as server:
            assert notices.read(server.endpoint, "", {})[0] == {}
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")


def test_metadata_that_is_switched_off_or_failing_is_said(metadata: MetadataServer) -> None:
    metadata.faults.disabled = True
    with pytest.raises(notices.NoMetadataError, match="403"):
        notices.read(metadata.endpoint, "", {})
    metadata.faults.disabled = False
    metadata.faults.failures = 1
    with pytest.raises(notices.NoMetadataError, match="503"):
        notices.read(metadata.endpoint, "", {})


def test_what_one_category_cannot_tell_hides_nothing_of_the_others() -> None:
    """Says 503 to one request in the middle, and hangs up after another."""
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntoken"]
    bodies = {"lifecycle": b"200 OK", "spot": b"503 Slow Down", "rebalance": b"", "maintenance": b"404 Not Found"}
    for said in bodies.values():
        answers.append(b"HTTP/1.1 " + said + b"\r\nContent-Length: 10\r\n\r\nTerminated" if said else b"")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            for answer in answers:
                if connection.recv(4096) == b"":
                    connection, _ = server.accept()
                    connection.recv(4096)
                if answer:
                    connection.sendall(answer)
                else:
                    connection.close()
                    connection, _ = server.accept()
            connection.close()

        threading.Thread(target=serve, daemon=True).start()
        found, _ = notices.read(
            f"http://127.0.0.1:{server.getsockname()[1]}", "", {"spot": "known", "rebalance": "too"}
        )
    assert found == {"lifecycle": "Terminated", "spot": "known", "rebalance": "too"}


def test_an_ipv6_address_needs_no_port() -> None:
    assert notices._Connection("http://[fd00:ec2::254]")._address == ("fd00:ec2::254", 80)
    assert notices._Connection("http://[::1]:8080/")._address == ("::1", 8080)
    assert notices._Connection("http://169.254.169.254")._address == ("169.254.169.254", 80)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000,
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\né".encode(),
    ],
)
def test_what_does_not_answer_like_metadata_is_one_error(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(answer)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(notices.NoMetadataError):
            notices.read(f"http://127.0.0.1:{server.getsockname()[1]}", "", {})
        thread.join()


def test_silence_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        with pytest.raises(notices.NoMetadataError, match="timed out"):
            notices.read(f"http://127.0.0.1:{server.getsockname()[1]}", "", {})
        assert time.monotonic() - began < 4 * notices.ANSWER_SECONDS


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1", "ftp://127.0.0.1", "127.0.0.1", "http://", "http://127.0.0.1:x", "http://127.0.0.1:99999"],
)
def test_an_endpoint_that_is_none_is_one_error(url: str) -> None:
    with pytest.raises(notices.NoMetadataError):
        notices.read(url, "", {})


def test_the_standard_variables_say_where_metadata_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert notices.endpoint() == "http://169.254.169.254"
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6")
    assert notices.endpoint() == "http://[fd00:ec2::254]"
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1338/")
    assert notices.endpoint() == "http://127.0.0.1:1338/"
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert notices.endpoint() is None


@pytest.mark.parametrize(
    ("found", "dies"),
    [
        ({}, False),
        ({"lifecycle": "InService"}, False),
        ({"lifecycle": "Warmed:Stopped"}, False),
        ({"rebalance": "{}", "maintenance": "[{}]"}, False),
        ({"lifecycle": "Terminated"}, True),
        ({"lifecycle": "Warmed:Terminated"}, True),
        ({"spot": '{"action": "hibernate"}'}, True),
    ],
)
def test_only_some_notices_mean_death(found: dict[str, str], dies: bool) -> None:
    assert bool(told_to_die(found)) == dies


def test_the_lookout_keeps_what_it_knows_and_tells_each_thing_once(
    metadata: MetadataServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bootagent.daemon.lookout.jittered", lambda seconds: 0.0)
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.endpoint)
    logged: list[tuple[object, ...]] = []
    one = Lookout(lambda event, **fields: logged.append((event, fields.get("kind"), fields.get("says"))))
    assert one.look() and one.dying == ""
    metadata.put(SPOT, "soon")
    assert one.look() and one.look() and one.dying == "spot interruption soon"
    metadata.faults.disabled = True
    assert not one.look() and not one.look()
    assert one.dying == "spot interruption soon", "what is not known to be withdrawn holds"
    metadata.faults.disabled = False
    metadata.remove(SPOT)
    assert one.look() and one.dying == ""
    events = [("notice", "spot", "soon"), ("no metadata", None, None), ("metadata is back", None, None)]
    assert logged == [*events, ("notice", "spot", "withdrawn")]


# --- children ----------------------------------------------------------------------------------------------------


def child(script: str) -> Child:
    """A child that runs a shell script, in which descriptor ``$2`` is the pipe."""
    return Child("run", ["/bin/sh", "-c", script, "sh"])


def end(running: Child) -> int:
    deadline = time.monotonic() + 60
    while (code := running.ended()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return code


@pytest.mark.spawns
def test_a_child_tells_how_far_it_is_and_how_it_ended() -> None:
    first = r'printf "status pull\nstat" >/proc/$$/fd/$2; sleep 0.2; '
    running = child(first + r'printf "us 50 %%\noutcome 3 0 60\n" >/proc/$$/fd/$2; exit 3')
    select.select([running.pipe], [], [], 10)
    assert running.read()
    assert running.status == "pull"
    assert end(running) == 3
    assert (running.status, running.transient, running.watch_seconds) == ("50 %", False, 60.0)


@pytest.mark.spawns
def test_a_child_that_says_nothing_is_worth_another_try() -> None:
    running = child("kill -9 $$")
    assert end(running) == -9
    assert (running.transient, running.watch_seconds) == (True, None)


@pytest.mark.spawns
def test_a_child_does_not_inherit_our_descriptors(tmp_path: Path) -> None:
    ours = os.open(tmp_path, os.O_RDONLY)
    shown = tmp_path / "shown"
    running = child(f"ls -l /proc/$$/fd >{shown}")
    assert end(running) == 0
    os.close(ours)
    assert str(tmp_path) + "\n" not in shown.read_text()


@pytest.mark.spawns
def test_a_program_that_is_not_there_leaks_nothing() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="No such file"):
        Child("run", ["/nowhere/bootagent"])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_relay_and_the_child_speak_the_same_language() -> None:
    reader, writer = os.pipe()
    relay = Relay(writer)
    relay.hear_record({"event": "begin", "step": "unpack\nit", "app": "web"})
    relay.hear(Transfer("pull web.tar.zst", 50_000_000, 100_000_000))
    relay.end(Outcome(3, {"web": Ending(3, "…", transient=True)}, transient=True, watch_seconds=300.0))
    lines = os.read(reader, 65536).decode().splitlines()
    assert lines == ["status web: unpack it", "status pull web.tar.zst 50 %, 50.0 of 100.0 MB", "outcome 3 1 300"]
    os.close(reader)
    relay.end(Outcome(0, {}))  # to nobody
    os.close(writer)


def test_a_daemon_that_does_not_listen_holds_nobody_up() -> None:
    reader, writer = os.pipe()
    relay = Relay(writer)
    for _ in range(2000):
        relay.hear_record({"event": "begin", "step": "x" * 400})
    os.close(reader)
    os.close(writer)


# --- telling -----------------------------------------------------------------------------------------------------


@given(st.text() | st.integers())
def test_log_values_are_json(value: str | int) -> None:
    assert json.loads(quoted(value)) == value


@given(st.floats(min_value=0.1, max_value=1e6))
def test_jitter_only_lengthens_and_not_by_much(seconds: float) -> None:
    assert seconds <= jittered(seconds) <= seconds * 1.2 + 1e-6


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_hears_each_thing_once(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + address[1:] if abstract else address)
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "20000000")
        manager = ServiceManager()
        assert "NOTIFY_SOCKET" not in os.environ, "what the daemon starts does not speak for it"
        manager.ready()
        manager.status("one\nline")
        manager.status("one line")
        manager.status("x" * 1000)
        assert manager.alive() == pytest.approx(10, abs=1)
        assert manager.alive() == pytest.approx(10, abs=1)
        manager.stopping()
        heard = [listener.recv(4096).decode() for _ in range(5)]
    assert heard == ["READY=1", "STATUS=one line", f"STATUS={'x' * 400}", "WATCHDOG=1", "STOPPING=1"]


def test_without_a_service_manager_nothing_is_said() -> None:
    manager = ServiceManager()
    manager.ready()
    assert manager.alive() is None


def test_a_watchdog_for_somebody_else_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert ServiceManager().watchdog_seconds is None
