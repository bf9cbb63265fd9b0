"""Which shims a service gets, and which it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootagent.errors import BootagentError
from bootagent.machine import MINIMAL_ENVIRONMENT, Machine
from bootagent.services import runtimes
from bootagent.services.runtimes import Kind, Shims

pytestmark = pytest.mark.spawns  # the user is asked what he can see


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose agent, and so whose services, have an empty home."""
    monkeypatch.setattr(runtimes, "login_environment", lambda identity: {"HOME": str(tmp_path / "home")})
    monkeypatch.setattr(runtimes, "writable_by_others", lambda path: None)  # pytest's directories may be
    return Machine(tmp_path)


def shims_in(data: Path) -> str:
    (data / "shims").mkdir(parents=True)
    return str(data)


def release(machine: Machine, *files: str) -> Path:
    place = machine.root / "srv/web/current"
    place.mkdir(parents=True)
    for name in files:
        (place / name).touch()
    return place


def find(machine: Machine, kind: Kind, *places: Path, **env: str) -> Shims | None:
    return runtimes.find(machine, kind, places, identity=None, env=env)


@pytest.mark.parametrize("manager", ["asdf", "mise"])
@pytest.mark.parametrize("kind", ["auto", "named"])
def test_the_manager_the_image_has_is_used(machine: Machine, manager: Kind, kind: str) -> None:
    data = shims_in(machine.root / "opt" / manager)
    found = find(machine, manager if kind == "named" else "auto", release(machine, ".tool-versions"))
    assert found is not None
    assert found.path == (f"{data}/shims",)
    assert dict(found.variables)[f"{manager.upper()}_DATA_DIR"] == data


def test_auto_without_versions_or_without_a_manager_is_nothing(machine: Machine) -> None:
    place = release(machine)
    shims_in(machine.root / "opt/asdf")
    assert find(machine, "auto", place) is None
    (place / "mise.toml").touch()
    assert find(machine, "auto", place) is None, "asdf does not read it"
    (place / ".tool-versions").touch()
    assert find(machine, "auto", place) is not None
    assert find(machine, "none", place) is None
    (machine.root / "opt/asdf/shims").rmdir()
    assert find(machine, "auto", place) is None


def test_a_mise_toml_is_mise_s_and_vouched_for(machine: Machine) -> None:
    shims_in(machine.root / "opt/asdf")
    shims_in(machine.root / "usr/local/share/mise")
    place = release(machine, "mise.toml")
    found = find(machine, "auto", place / "api", place)
    assert found is not None
    assert dict(found.variables)["MISE_TRUSTED_CONFIG_PATHS"] == f"{place}/api:{place}"


def test_the_directory_counts_and_what_is_above_it(machine: Machine) -> None:
    place = release(machine)
    (place / "api").mkdir()
    (place / "api/.tool-versions").touch()
    shims_in(machine.root / "opt/asdf")
    assert find(machine, "auto", place) is None
    assert find(machine, "auto", place / "api", place) is not None


def test_the_user_s_own_comes_before_the_image_s_and_what_env_says_before_both(machine: Machine) -> None:
    place = release(machine)
    shims_in(machine.root / "opt/asdf")
    home = shims_in(machine.root / "home/.asdf")
    said = shims_in(machine.root / "elsewhere")
    first, second = find(machine, "asdf", place), find(machine, "asdf", place, ASDF_DATA_DIR=said)
    assert first and first.path == (f"{home}/shims",)
    assert second and second.path == (f"{said}/shims",)


def test_the_data_may_be_behind_a_link(machine: Machine) -> None:
    shims_in(machine.root / "opt/asdf-0.15.0")
    (machine.root / "opt/asdf").symlink_to("asdf-0.15.0")
    assert find(machine, "asdf", release(machine)) is not None


def test_an_asdf_of_old_brings_its_own_program(machine: Machine) -> None:
    data = shims_in(machine.root / "opt/asdf")
    (machine.root / "opt/asdf/bin").mkdir()
    (machine.root / "opt/asdf/bin/asdf").touch()
    found = find(machine, "asdf", release(machine))
    assert found and found.path == (f"{data}/shims", f"{data}/bin")


def test_a_manager_asked_for_and_not_there_is_an_error_that_says_where_it_was_sought(machine: Machine) -> None:
    with pytest.raises(BootagentError) as caught:
        find(machine, "mise", release(machine, "mise.toml"))
    assert "runtime is 'mise'" in str(caught.value)
    assert f"{machine.root}/home/.local/share/mise, {machine.root}/usr/local/share/mise" in str(caught.value)
    assert "MISE_DATA_DIR" in str(caught.value)


def test_root_does_not_run_what_others_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setattr(runtimes, "login_environment", lambda identity: {"HOME": "/nonexistent"})
    data = tmp_path / "opt/asdf"
    shims_in(data)
    (data / "shims").chmod(0o777)
    place = release(Machine(tmp_path), ".tool-versions")
    with pytest.raises(BootagentError, match="service of root cannot use the shims"):
        find(Machine(tmp_path), "auto", place)


def test_shims_go_before_any_path_and_the_rest_is_for_the_environment_to_say() -> None:
    shims = Shims(("/a/shims", "/a/bin"), (("ASDF_DATA_DIR", "/a"), ("X", "1")))
    assert shims.over({"PATH": "/mine", "X": "2"}) == {"PATH": "/a/shims:/a/bin:/mine", "ASDF_DATA_DIR": "/a", "X": "2"}
    assert shims.over({"PATH": None})["PATH"] == f"/a/shims:/a/bin:{MINIMAL_ENVIRONMENT['PATH']}"
