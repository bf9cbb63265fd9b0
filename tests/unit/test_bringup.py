"""The order in which services are brought up, and what becomes of it when one fails."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootagent.errors import BootagentError, MachineError, ServiceError
from bootagent.machine import Machine
from bootagent.services import runit
from bootagent.services.bringup import Watch, bring_up
from bootagent.services.servicedir import ServiceDirectory


@dataclass(frozen=True)
class Service:
    """One that is as it should be once it has been begun."""

    name: str
    stable_for: float = 0.1
    within: float = 1.0
    stop_within: float = 1.0

    @property
    def directory(self) -> ServiceDirectory:
        return ServiceDirectory(self.name, (), (), "/log", None, "/etc/sv", "/etc/service")

    def problem(self, machine: Machine) -> str | None:
        raise AssertionError("there is nothing to look at")


def begun(
    tmp_path: Path, after: dict[str, list[str]], failing: dict[str, BootagentError] | None = None
) -> tuple[list[str], BaseException | None]:
    """The services in the order of their beginning, and what was raised."""
    found: list[str] = []
    lock = threading.Lock()

    def begin(one: Service) -> Watch | None:
        with lock:
            found.append(one.name)
        if failing and one.name in failing:
            raise failing[one.name]
        return None

    try:
        bring_up(Machine(tmp_path), {name: Service(name) for name in after}, after, begin, lambda one: None)
    except BootagentError as error:
        return found, error
    return found, None


def test_none_begins_before_those_it_comes_after(tmp_path: Path) -> None:
    after = {"web": ["db", "cache"], "cache": ["db"], "db": [], "mail": []}
    found, error = begun(tmp_path, after)
    assert error is None
    assert sorted(found) == sorted(after)
    assert found.index("db") < found.index("cache") < found.index("web")


def test_those_that_wait_for_nothing_begin_side_by_side(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=10)

    def begin(one: Service) -> Watch | None:
        both.wait()
        return None

    bring_up(Machine(tmp_path), {name: Service(name) for name in "ab"}, {}, begin, lambda one: None)


def test_a_failure_names_what_was_not_begun(tmp_path: Path) -> None:
    after = {"web": ["db"], "edge": ["web"], "db": []}
    found, error = begun(tmp_path, after, {"db": ServiceError("service db is not healthy", tail="no disk")})
    assert found == ["db"]
    assert isinstance(error, ServiceError)
    assert str(error) == "service db is not healthy; not begun: edge (after web), web (after db)"
    assert error.tail == "no disk"


def test_the_machine_s_fault_stays_that(tmp_path: Path) -> None:
    found, error = begun(tmp_path, {"web": ["db"], "db": []}, {"db": MachineError("no disk")})
    assert found == ["db"]
    assert isinstance(error, MachineError)


@pytest.mark.parametrize("within", [0.5, 2.0, 10.0, 60.0])
def test_a_stop_script_leaves_time_for_term(within: float) -> None:
    words = runit.stop_script(Path("/srv/a b"), ("bin/hand back", "x"), within).decode().split()
    limit = words[words.index("timeout") :]
    kill_after = float(limit[1].removeprefix("--kill-after="))
    assert float(limit[2]) >= within / 2
    assert float(limit[2]) + kill_after < within
