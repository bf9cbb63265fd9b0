"""Control groups: what is written where, on a plain directory tree that holds what a kernel would offer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bootagent.errors import MachineError, UnfitError
from bootagent.machine import Machine
from bootagent.services import cgroups
from bootagent.services.cgroups import Limits


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    return Machine(tmp_path)


ALL = Limits(memory=256 * 2**20 + 1, cpus=1.5, processes=50)


def written(machine: Machine) -> dict[str, str]:
    root = machine.real("/sys/fs/cgroup")
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_controllers_are_handed_down_and_limits_written(machine: Machine) -> None:
    assert not cgroups.is_made(machine, "web.puma", ALL)
    cgroups.make(machine, "web.puma", ALL)
    assert written(machine) == {
        "cgroup.controllers": "cpuset cpu io memory pids\n",
        "cgroup.subtree_control": "+memory +cpu +pids",
        "bootagent/cgroup.subtree_control": "+memory +cpu +pids",
        "bootagent/web.puma/memory.max": str(256 * 2**20),  # whole pages
        "bootagent/web.puma/cpu.max": "150000 100000",
        "bootagent/web.puma/pids.max": "50",
    }
    assert cgroups.is_made(machine, "web.puma", ALL)
    assert not cgroups.is_made(machine, "web.other", ALL)


def test_a_limit_that_is_no_more_is_lifted(machine: Machine) -> None:
    cgroups.make(machine, "web.puma", ALL)
    fewer = Limits(processes=50)
    assert not cgroups.is_made(machine, "web.puma", fewer)
    cgroups.make(machine, "web.puma", fewer)
    assert written(machine)["bootagent/web.puma/memory.max"] == "max"
    assert cgroups.is_made(machine, "web.puma", fewer)
    # As the kernel shows it.
    machine.real("/sys/fs/cgroup/bootagent/web.puma/cpu.max").write_text("max 100000\n")
    assert cgroups.is_made(machine, "web.puma", fewer)
    machine.real("/sys/fs/cgroup/bootagent/web.puma/pids.max").write_text("51\n")
    assert not cgroups.is_made(machine, "web.puma", fewer)


def test_a_kernel_without_the_controller_or_without_version_2_is_told(machine: Machine) -> None:
    controllers = machine.real("/sys/fs/cgroup/cgroup.controllers")
    controllers.write_text("cpu memory\n")
    cgroups.check(machine, "web.puma", Limits(memory=2**20))
    with pytest.raises(UnfitError, match=r"web\.puma wants a cgroup, and the kernel offers no controller pids"):
        cgroups.make(machine, "web.puma", ALL)
    controllers.unlink()
    with pytest.raises(UnfitError, match="no cgroup version 2"):
        cgroups.make(machine, "web.puma", Limits())
    assert not machine.real("/sys/fs/cgroup/bootagent").exists()


def test_what_cannot_be_written_is_told_with_its_file(machine: Machine) -> None:
    machine.real("/sys/fs/cgroup/bootagent/web.puma/memory.max").mkdir(parents=True)
    with pytest.raises(MachineError, match=r"cannot make the cgroup of web\.puma: .*memory\.max: Is a directory"):
        cgroups.make(machine, "web.puma", ALL)


@pytest.mark.spawns
def test_the_script_writes_the_same_and_joins(machine: Machine, tmp_path: Path) -> None:
    cgroups.make(machine, "web.puma", ALL)
    by_hand = written(machine)
    again = Machine(tmp_path / "after the reboot")
    for directory in ("sys/fs/cgroup/bootagent/web.puma",):
        (again.root / directory).mkdir(parents=True)
    again.real("/sys/fs/cgroup/cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    script = "\n".join([*cgroups.lines(again, "web.puma", ALL), "echo $$"])
    done = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True)
    by_script = written(again)
    assert by_script.pop("bootagent/web.puma/cgroup.procs") == done.stdout
    assert {path: text.strip() for path, text in by_script.items()} == {
        path: text.strip() for path, text in by_hand.items()
    }


@pytest.mark.spawns
def test_without_its_group_the_service_does_not_start(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        (tmp_path / "sys").touch()  # root may write anywhere but below a file
    else:
        tmp_path.chmod(0o555)
    script = "\n".join([*cgroups.lines(Machine(tmp_path), "web.puma", ALL), "echo started"])
    done = subprocess.run(["sh", "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (111, "")


def test_what_is_not_there_need_not_be_removed(machine: Machine) -> None:
    cgroups.remove(machine, "web.puma")
