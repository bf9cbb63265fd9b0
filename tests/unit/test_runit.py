"""What runsv writes down, read back."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootagent.machine import Machine
from bootagent.services import runit
from bootagent.services.runit import Status, parse_status

#: Recorded with runit 2.1.2 around Unix time 0x6b00a4a7, which is TAI64 0x400000006b00a4b1.
SINCE = 0x6B00A4A7
RECORDED = {
    "up": ("400000006b00a4b1010252dc8174000000750001", Status(29825, "run", SINCE, True)),
    "paused": ("400000006b00a4b1010252dc8174000001750001", Status(29825, "run", SINCE, True)),
    "once": ("400000006b00a4b1010252dc8174000000640001", Status(29825, "run", SINCE, False)),
    "down": ("400000006b00a4b12d9f83140000000000640000", Status(0, "down", SINCE, False)),
    "finishing": ("400000006b00a4b23038c3c4f874000000640002", Status(29944, "finish", SINCE + 1, False)),
    "about to start": ("400000006b00a4b12d9f83140000000000750000", Status(0, "down", SINCE, True)),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_states(name: str) -> None:
    record, expected = RECORDED[name]
    found = parse_status(bytes.fromhex(record))
    assert found is not None
    assert (found.pid, found.state, found.wants_up) == (expected.pid, expected.state, expected.wants_up)
    assert int(found.since) == expected.since


def test_the_fraction_of_a_second_counts() -> None:
    found = parse_status(bytes.fromhex(RECORDED["up"][0]))
    assert found is not None
    assert found.since == pytest.approx(SINCE + 0x010252DC / 1e9, abs=1e-6)


def test_a_large_pid_is_little_endian() -> None:
    record = bytearray(bytes.fromhex(RECORDED["up"][0]))
    record[12:16] = (4194303).to_bytes(4, "little")
    found = parse_status(bytes(record))
    assert found is not None
    assert found.pid == 4194303


@pytest.mark.parametrize("record", [b"", b"x", bytes(19), bytes(21), bytes(19) + b"\x03", b"\xff" * 20])
def test_what_is_no_record(record: bytes) -> None:
    assert parse_status(record) is None


def test_uptime_is_never_negative() -> None:
    assert Status(1, "run", time.time() + 100, True).uptime() == 0
    assert 9 < Status(1, "run", time.time() - 10, True).uptime() < 12


# --- a directory no runsv has -------------------------------------------------------------------------------------


def test_a_directory_without_runsv_has_no_status(tmp_path: Path) -> None:
    """``supervise/`` stays behind when runsv has gone; the record in it is of the past."""
    assert runit.status(tmp_path) is None
    (tmp_path / "supervise").mkdir()
    (tmp_path / "supervise/status").write_bytes(bytes.fromhex(RECORDED["up"][0]))
    os.mkfifo(tmp_path / "supervise/ok")
    assert not runit.is_supervised(tmp_path)
    assert runit.status(tmp_path) is None


def listening(folder: Path) -> int:
    """Pose as a runsv."""
    (folder / "supervise").mkdir()
    os.mkfifo(folder / "supervise/ok")
    return os.open(folder / "supervise/ok", os.O_RDONLY | os.O_NONBLOCK)


def test_a_runsv_is_known_by_its_fifo(tmp_path: Path) -> None:
    reader = listening(tmp_path)
    assert runit.is_supervised(tmp_path)
    os.close(reader)
    assert not runit.is_supervised(tmp_path)


def test_a_plain_file_or_a_link_does_not_pass_for_a_runsv(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    reader = listening(tmp_path / "real")
    for name in ("file", "link"):
        (tmp_path / name / "supervise").mkdir(parents=True)
    (tmp_path / "file/supervise/ok").touch()
    (tmp_path / "link/supervise/ok").symlink_to(tmp_path / "real/supervise/ok")
    assert [runit.is_supervised(tmp_path / name) for name in ("real", "file", "link", "absent")] == [True, *[False] * 3]
    os.close(reader)


@pytest.mark.timeout(20)
def test_a_status_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """The inner directory is the user's, who may put anything there."""
    reader = listening(tmp_path)
    status = tmp_path / "supervise/status"
    os.mkfifo(status)
    assert runit.status(tmp_path) is None
    status.unlink()
    (tmp_path / "elsewhere").write_bytes(bytes.fromhex(RECORDED["up"][0]))
    status.symlink_to(tmp_path / "elsewhere")
    assert runit.status(tmp_path) is None
    status.unlink()
    status.mkdir()
    assert runit.status(tmp_path) is None
    os.close(reader)


# --- a real one --------------------------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Path]:
    if not shutil.which("runsv"):
        pytest.skip("runit is not installed")
    folder = tmp_path / "sleeper"
    folder.mkdir()
    (folder / "run").write_text("#!/bin/sh\nexec sleep 300\n")
    (folder / "run").chmod(0o755)
    runsv = subprocess.Popen(["runsv", folder], stdin=subprocess.DEVNULL)
    yield folder
    runsv.terminate()
    runsv.wait(10)


def wait_for(folder: Path, state: str, *, not_pid: int = 0) -> Status:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = runit.status(folder)
        if found and found.state == state and (state != "run" or found.pid not in (0, not_pid)):
            return found
        time.sleep(0.02)
    raise AssertionError(f"not {state}: {runit.status(folder)}")


@pytest.mark.spawns
def test_a_real_runsv_is_read_and_led(service: Path) -> None:
    machine = Machine()
    up = wait_for(service, "run")
    while not (words := Path(f"/proc/{up.pid}/cmdline").read_bytes()):  # it has none while it becomes another program
        time.sleep(0.01)
    assert b"sleep" in words or b"run" in words
    assert up.wants_up
    assert up.uptime() < 10

    runit.restart(machine, service, within=5)
    again = wait_for(service, "run", not_pid=up.pid)
    assert again.since >= up.since

    runit.stop(machine, service, within=5, identity=None)
    down = wait_for(service, "down")
    assert (down.pid, down.wants_up) == (0, False)
    assert not Path(f"/proc/{again.pid}").exists()

    runit.start(machine, service, identity=None)
    assert wait_for(service, "run").wants_up

    runit.leave(machine, service, within=5)
    assert not runit.is_supervised(service)
    assert runit.status(service) is None


# --- chpst -e ----------------------------------------------------------------------------------------------------


def test_an_environment_directory() -> None:
    assert runit.environment_directory({"A": "x", "EMPTY": "", "LINES": "a\nb\n", "Ä": "ö"}) == {
        "A": b"x\n",
        "EMPTY": b"\n",
        "LINES": b"a\0b\0\n",
        "Ä": "ö\n".encode(),
    }
