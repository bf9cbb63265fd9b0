"""The local records of volumes: durable, private, and of one instance."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from bootagent import records
from bootagent.errors import BootagentError, MachineError
from bootagent.machine import Machine
from bootagent.records import Record

RECORD = Record(
    name="app.web.20261121101500",
    instance_id="i-0aaa",
    region="eu-west-1",
    volume_id="vol-0123456789abcdef0",
    snapshot="snap-0123456789abcdef0",
    attempt=2,
    attached=True,
    size_bytes=1024,
    mountpoints=("/cp", "/srv/web"),
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_what_is_saved_is_loaded(machine: Machine) -> None:
    records.save(machine, RECORD)
    assert records.load(machine, RECORD.name) == RECORD
    assert records.load(machine, RECORD.name, "i-0aaa") == RECORD


def test_only_root_may_read_it(machine: Machine) -> None:
    records.save(machine, RECORD)
    file = machine.real(f"{records.DIRECTORY}/{RECORD.name}.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.parent.parent.stat().st_mode) == 0o700


def test_one_of_another_instance_does_not_count(machine: Machine) -> None:
    records.save(machine, RECORD)
    assert records.load(machine, RECORD.name, "i-0bbb") is None
    assert records.all(machine, "i-0bbb") == ()


def test_one_under_another_name_does_not_count(machine: Machine) -> None:
    records.save(machine, RECORD)
    directory = machine.real(records.DIRECTORY)
    (directory / f"{RECORD.name}.json").rename(directory / "role.db.data.json")
    assert records.load(machine, "role.db.data") is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"version": 9}', '{"version": 1, "name": "x"}'])
def test_a_damaged_one_is_set_aside(machine: Machine, content: str) -> None:
    records.save(machine, RECORD)
    file = machine.real(f"{records.DIRECTORY}/{RECORD.name}.json")
    file.write_text(content)
    assert records.load(machine, RECORD.name) is None
    assert file.with_name(f"{file.name}.damaged").read_text() == content
    assert records.all(machine) == ()


def test_all_are_told_by_name(machine: Machine) -> None:
    assert records.all(machine) == ()
    second = replace(RECORD, name="role.db.data", instance_id="i-0bbb")
    records.save(machine, second)
    records.save(machine, RECORD)
    machine.real(f"{records.DIRECTORY}/.role.db.data.json.new").write_text("half")
    assert records.all(machine) == (RECORD, second)
    assert records.all(machine, "i-0bbb") == (second,)


def test_forgotten_is_forgotten(machine: Machine) -> None:
    records.forget(machine, RECORD.name)
    records.save(machine, RECORD)
    records.forget(machine, RECORD.name)
    records.forget(machine, RECORD.name)
    assert records.load(machine, RECORD.name) is None


@pytest.mark.parametrize("name", ["", "../state", "a/b", ".hidden", "x" * 300, "a\nb"])
def test_a_name_is_one_plain_word(machine: Machine, name: str) -> None:
    with pytest.raises(BootagentError, match="cannot be the name"):
        records.load(machine, name)


def test_a_disk_that_does_not_take_it_is_told(machine: Machine) -> None:
    machine.real("/var/lib").mkdir(parents=True)
    machine.real("/var/lib/bootagent").write_text("in the way")
    with pytest.raises(MachineError, match=r"cannot write /var/lib/bootagent/volumes/app\.web"):
        records.save(machine, RECORD)


def test_of_volumes_that_are_no_more_only_the_attempts_are_remembered(machine: Machine) -> None:
    records.save(machine, RECORD)
    records.bury(machine, RECORD)
    assert records.all(machine) == ()
    assert records.load(machine, RECORD.name) == Record(
        RECORD.name, RECORD.instance_id, RECORD.region, attempt=RECORD.attempt + 1, buried=True
    )
    for number in range(30):
        records.bury(machine, replace(RECORD, name=f"app.web.{number:02}"))
    left = sorted(path.stem for path in machine.real(records.DIRECTORY).iterdir())
    assert left == [f"app.web.{number}" for number in range(10, 30)]
