"""Which shims a service gets, and which it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootagent.errors import BootagentError
from bootagent.machine import MINIMAL_ENVIRONMENT, Identity, Machine
from bootagent.services import runtimes
from bootagent.services.runtimes import Kind, Shims

pytestmark = pytest.mark.spawns  # the user is asked what he can see


NOBODY = 65534


@pytest.fixture
def machine(machine_root: Path) -> Machine:
    return Machine(machine_root)


def somebody(machine: Machine) -> Identity | None:
    """A user whose home is on the machine; whoever is not root can be nobody else, and has the home he has."""
    if os.geteuid() == 0:
        return Identity("somebody", "somebody", NOBODY, NOBODY, (), str(machine.root / "home"))
    if any((Path.home() / own).exists() for own in (".asdf", ".local/share/mise")):
        pytest.skip("there is a version manager in this home")
    return None


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
    return runtimes.find(machine, kind, places, identity=somebody(machine), env=env)


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
    if os.geteuid() != 0:
        pytest.skip("needs root, to be another user")
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
    assert f"/.local/share/mise, {machine.root}/usr/local/share/mise, {machine.root}/opt/mise" in str(caught.value)
    assert "MISE_DATA_DIR" in str(caught.value)


def program(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "place", ["shims", "shims/ruby", "shims/linked", "bin", "bin/asdf", "installs", "plugins", "elsewhere"]
)
@pytest.mark.parametrize("how", ["mode", "owner"])
def test_root_runs_nothing_that_others_may_write(machine: Machine, place: str, how: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    data = machine.root / "asdf"
    shims_in(data)
    for name in ("shims/ruby", "bin/asdf", "elsewhere"):
        program(data / name)
    for name in ("installs", "plugins"):
        (data / name).mkdir()
    (data / "shims/linked").symlink_to("../elsewhere")  # as all of mise's are

    def of_root() -> Shims | None:
        return runtimes.find(machine, "asdf", (), identity=None, env={"ASDF_DATA_DIR": str(data)})

    assert of_root()
    if how == "mode":
        (data / place).chmod(0o777)
    else:
        os.chown(data / place, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(BootagentError, match="service of root cannot use the shims") as caught:
        of_root()
    assert f"{data}/{'elsewhere' if (place, how) == ('shims/linked', 'mode') else place}" in str(caught.value)
    assert find(machine, "asdf", ASDF_DATA_DIR=str(data)), "others run what they can change anyway"


def test_root_runs_no_shim_that_leads_nowhere(machine: Machine) -> None:
    """Somebody else might put something there."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    data = machine.root / "asdf"
    shims_in(data)
    (data / "shims/gone").symlink_to("/home/deploy/gone")
    with pytest.raises(BootagentError, match="shims/gone: No such file"):
        runtimes.find(machine, "asdf", (), identity=None, env={"ASDF_DATA_DIR": str(data)})


def test_shims_go_before_any_path_and_the_rest_is_for_the_environment_to_say() -> None:
    shims = Shims(("/a/shims", "/a/bin"), (("ASDF_DATA_DIR", "/a"), ("X", "1")))
    assert shims.over({"PATH": "/mine", "X": "2"}) == {"PATH": "/a/shims:/a/bin:/mine", "ASDF_DATA_DIR": "/a", "X": "2"}
    assert shims.over({"PATH": None})["PATH"] == f"/a/shims:/a/bin:{MINIMAL_ENVIRONMENT['PATH']}"
