"""The directories of a layout where root once mounted something."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootagent.machine import Machine
from bootagent.steps.directories import Directories

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gets into what is closed")

DIRECTORIES = Directories("/srv/apps/web", ("uploads",), (), "nobody", None)


def is_open(place: Path) -> bool:
    return place.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("closed", ["srv/apps", "srv/apps/web", "srv/apps/web/shared/uploads"])
@pytest.mark.parametrize("roots", [False, True])
def test_what_was_a_mountpoint_is_opened_again(closed: str, roots: bool, machine_root: Path) -> None:
    machine, place = Machine(machine_root), machine_root / closed
    step = Directories("/srv/apps/web", ("uploads",), (), "nobody", None, roots=roots)
    place.mkdir(parents=True)
    place.chmod(0o000)
    step.apply(machine)
    assert step.is_satisfied(machine)
    assert is_open(place)
    place.chmod(0o000)  # as one that an earlier run has only given away
    assert not step.is_satisfied(machine)
    step.apply(machine)
    assert is_open(place)


def test_who_owns_it_and_other_modes_are_left_alone(machine_root: Path) -> None:
    machine, place = Machine(machine_root), machine_root / "srv/apps/web/shared/uploads"
    DIRECTORIES.apply(machine)
    place.chmod(0o700)
    assert DIRECTORIES.is_satisfied(machine)
    os.chown(place, 12345, 12345)
    place.chmod(0o000)
    assert DIRECTORIES.is_satisfied(machine)
    (place.parent.parent / "releases").rmdir()
    DIRECTORIES.apply(machine)
    assert place.stat().st_mode & 0o777 == 0
