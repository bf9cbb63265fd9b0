"""Capistrano's layout: names and what ``current`` points at."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from bootagent import release
from bootagent.errors import BootagentError
from bootagent.machine import Machine
from bootagent.release import Layout, is_name, new_name, observe, short

NOW = datetime(2026, 11, 20, 9, 30, 0, tzinfo=timezone.utc)
R1, R2 = "20261111120000", "20261112120000"

# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taken", "name"),
    [
        ((), "20261120093000"),
        (("20261120092959",), "20261120093000"),
        (("20261120093000",), "20261120093001"),
        (("20261120093059",), "20261120093100"),
        (("20261231235959",), "20270101000000"),
        (("20280228235959",), "20280229000000"),
        (("20261120093000", "20261120093005", "20200101000000"), "20261120093006"),
    ],
)
def test_a_new_name_comes_after_all_others(taken: tuple[str, ...], name: str) -> None:
    assert new_name(NOW, taken) == name


TIMES = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2090, 1, 1))


@given(TIMES, st.lists(TIMES.map(lambda time: time.strftime("%Y%m%d%H%M%S")), max_size=8))
def test_a_new_name_is_unique_and_last_and_a_name(now: datetime, taken: list[str]) -> None:
    name = new_name(now, taken)
    assert is_name(name)
    assert all(name > other for other in taken)
    assert datetime.strptime(name, "%Y%m%d%H%M%S")


@given(TIMES, st.integers(0, 1000))
def test_names_made_one_after_another_rise_even_as_the_clock_falls(now: datetime, seconds: int) -> None:
    names: list[str] = []
    for step in range(4):
        names.append(new_name(now - timedelta(seconds=seconds * step), names))
    assert names == sorted(set(names))


@pytest.mark.parametrize(
    "name",
    ["", "2026112009300", "202611200930000", "20261120093000 ", "20261120093000\n", "2026112009300x", ".2026112009300"],
)
def test_what_is_no_name(name: str) -> None:
    assert not is_name(name)


@pytest.mark.parametrize(
    "name", ["99999999999999", "00000000000000", "20261320093000", "20260230000000", "\uff11" * 14]
)
def test_fourteen_digits_that_are_no_time_are_no_name(name: str) -> None:
    """Whoever may write releases/ may leave such a directory there; it must not stop every later run."""
    assert not is_name(name)


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("0123456789abcdef0123456789abcdef01234567", "0123456789ab"),
        ("0123456789abcdef" * 4, "0123456789ab"),
        ("v1.2.3", "v1.2.3"),
        ("0123456789ABCDEF0123456789ABCDEF01234567", "0123456789ABCDEF0123456789ABCDEF01234567"),
        ("-", "-"),
    ],
)
def test_digests_are_shortened_for_people(label: str, shown: str) -> None:
    assert short(label) == shown


# --- what is there -----------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    for name in (R1, R2):
        (tmp_path / "srv/web/releases" / name).mkdir(parents=True)
    return Machine(tmp_path)


def point(machine: Machine, target: str | Path) -> Layout:
    (machine.real("/srv/web") / "current").symlink_to(target)
    return observe(machine, "/srv/web")


def test_an_absent_deploy_to_is_empty(tmp_path: Path) -> None:
    assert observe(Machine(tmp_path), "/srv/web") == Layout()


def test_a_deploy_to_without_releases_is_empty(tmp_path: Path) -> None:
    (tmp_path / "srv/web").mkdir(parents=True)
    assert observe(Machine(tmp_path), "/srv/web") == Layout()


def test_releases_are_directories_with_a_releases_name_in_order(machine: Machine) -> None:
    folder = machine.real("/srv/web/releases")
    (folder / "20261110120000").mkdir()
    (folder / f".{R1}.partial").mkdir()
    (folder / "notes").mkdir()
    (folder / "20261113120000").write_text("a file")
    (folder / "20261114120000").symlink_to(R1)
    assert observe(machine, "/srv/web") == Layout(None, None, ("20261110120000", R1, R2))


@pytest.mark.parametrize("form", ["releases/{}", "./releases/{}", "releases/{}/", "../web/releases/{}"])
def test_a_relative_current(machine: Machine, form: str) -> None:
    assert point(machine, form.format(R1)) == Layout(R1, None, (R1, R2))


def test_an_absolute_current(machine: Machine) -> None:
    assert point(machine, machine.real(f"/srv/web/releases/{R2}")) == Layout(R2, None, (R1, R2))


def test_a_current_that_names_the_place_by_another_path(machine: Machine) -> None:
    (machine.root / "alias").symlink_to("srv")
    assert point(machine, machine.root / "alias/web/releases" / R1).current == R1


@pytest.mark.parametrize(
    "target",
    [
        "releases/20260101000000",
        "releases/gone",
        f"elsewhere/{R1}",
        "/opt/app",
        "releases",
        "shared",
        ".",
        f"releases/{R1}/public",
        "/nowhere/at/all",
    ],
)
def test_a_current_that_is_no_release_is_told_as_it_is(machine: Machine, target: str) -> None:
    root = machine.real("/srv/web")
    for name in (f"elsewhere/{R1}", "shared", f"releases/{R1}/public"):
        (root / name).mkdir(parents=True, exist_ok=True)
    assert point(machine, target) == Layout(None, target, (R1, R2))


def test_a_current_of_another_app_with_the_same_release_name_is_not_ours(machine: Machine) -> None:
    other = machine.real(f"/srv/api/releases/{R1}")
    other.mkdir(parents=True)
    assert point(machine, other) == Layout(None, str(other), (R1, R2))


@pytest.mark.parametrize("target", ["current", f"current/{R1}", f"loop/{R1}"])
def test_a_current_that_goes_in_circles_is_no_release(machine: Machine, target: str) -> None:
    (machine.real("/srv/web") / "loop").symlink_to("loop")
    assert point(machine, target) == Layout(None, target, (R1, R2))


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, os.mkfifo])
def test_a_current_that_is_no_link_is_not_followed(machine: Machine, make: object) -> None:
    assert callable(make)
    make(machine.real("/srv/web/current"))
    assert observe(machine, "/srv/web") == Layout(None, None, (R1, R2))


def test_a_releases_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "srv/web").mkdir(parents=True)
    (tmp_path / "srv/web/releases").symlink_to("/etc")
    with pytest.raises(BootagentError, match="'releases' is a link"):
        release.observe(Machine(tmp_path), "/srv/web")
