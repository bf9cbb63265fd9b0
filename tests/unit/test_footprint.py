"""What was there before is noted once, and comes back without anything of anybody else's being touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootagent import footprint
from bootagent.machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def nothing(path: str) -> bool:
    return False


def test_directories_made_go_deepest_first_with_their_parents(machine: Machine) -> None:
    machine.real("/srv").mkdir()
    footprint.note(machine, "/srv/a/b", until="stop")
    machine.real("/srv/a/b").mkdir(parents=True)
    assert footprint.left(machine, "stop", nothing) == ["/srv/a/b", "/srv/a"]
    assert footprint.undo(machine, "stop", nothing) == ["/srv/a/b", "/srv/a"]
    assert machine.real("/srv").is_dir() and not machine.real("/srv/a").exists()
    assert footprint.undo(machine, "stop", nothing) == []


def test_what_is_not_empty_stays_until_it_is(machine: Machine) -> None:
    footprint.note(machine, "/a/b", until="stop")
    machine.real("/a/b").mkdir(parents=True)
    machine.real("/a/file").touch()
    assert footprint.undo(machine, "stop", nothing) == ["/a/b"]
    machine.real("/a/file").unlink()
    assert footprint.undo(machine, "stop", nothing) == ["/a"]


def test_the_first_note_holds_and_the_mode_comes_back(machine: Machine) -> None:
    machine.real("/data").mkdir(mode=0o750)
    footprint.note(machine, "/data", until="stop", mountpoint=True)
    machine.real("/data").chmod(0)
    footprint.note(machine, "/data", until="stop", mountpoint=True)
    assert footprint.mountpoints(machine) == ("/data",)
    assert footprint.undo(machine, "stop", nothing) == ["/data"]
    assert machine.real("/data").stat().st_mode & 0o777 == 0o750
    assert footprint.mountpoints(machine) == ()


def test_a_stop_leaves_what_only_a_reset_takes_and_what_is_kept(machine: Machine) -> None:
    footprint.note(machine, "/srv/web", until="reset")
    footprint.note(machine, "/data", until="stop")
    for path in ("/srv/web", "/data"):
        machine.real(path).mkdir(parents=True)
    assert footprint.left(machine, "stop", lambda path: path == "/data") == []
    assert footprint.undo(machine, "stop", nothing) == ["/data"]
    assert footprint.undo(machine, "reset", nothing) == ["/srv/web", "/srv"]


@pytest.mark.parametrize(("now", "goes"), [(b"ours", True), (b"edited", False)])
def test_a_file_goes_only_as_it_was_written(machine: Machine, now: bytes, goes: bool) -> None:
    footprint.note_file(machine, "/file", b"older", until="reset")
    footprint.note_file(machine, "/file", b"ours", until="reset")
    machine.real("/file").write_bytes(now)
    assert (footprint.undo(machine, "reset", nothing) == ["/file"]) is goes
    assert machine.real("/file").exists() is not goes


def test_a_file_that_was_there_is_not_ours(machine: Machine) -> None:
    machine.real("/file").write_bytes(b"theirs")
    footprint.note_file(machine, "/file", b"ours", until="reset")
    machine.real("/file").write_bytes(b"ours")
    assert footprint.undo(machine, "reset", nothing) == []


def test_no_link_is_followed(machine: Machine, tmp_path: Path) -> None:
    footprint.note(machine, "/srv/web/shared", until="reset")
    machine.real("/srv/web/shared").mkdir(parents=True)
    machine.real("/elsewhere/shared").mkdir(parents=True)
    machine.real("/srv/web/shared").rmdir()
    machine.real("/srv/web").rmdir()
    machine.real("/srv/web").symlink_to(tmp_path / "elsewhere")
    assert footprint.undo(machine, "reset", nothing) == []
    assert machine.real("/elsewhere/shared").is_dir()


def test_where_a_link_pointed_is_known(machine: Machine) -> None:
    machine.real("/current").symlink_to("releases/1")
    footprint.note(machine, "/current", "/other", until="reset")
    machine.real("/current").unlink()
    found = footprint.before(machine, "/current")
    assert found is not None and (found.target, found.uid) == ("releases/1", os.geteuid())
    absent = footprint.before(machine, "/other")
    assert absent is not None and absent.mode is None
    footprint.forget(machine, "/current")
    assert footprint.before(machine, "/current") is None


def test_a_damaged_note_costs_only_tidiness(machine: Machine) -> None:
    footprint.note(machine, "/a", until="stop")
    machine.real(footprint.PATH).write_text("{")
    machine.real("/a").mkdir()
    assert footprint.undo(machine, "stop", nothing) == []
