"""Mounting and unmounting for real, and directories that never answer."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootagent import disks, mounts
from bootagent.disks import filesystems
from bootagent.errors import CommandError, MachineError
from bootagent.machine import Machine
from bootagent.sandbox.loop_host import LoopHost
from tests.host.disks import VOLUME, disk, plug

pytest_plugins = ("tests.host.disks",)

ONE = VOLUME


@pytest.fixture
def host(private_mounts: None, machine_root: Path) -> Iterator[LoopHost]:
    """The machine that disks are plugged into."""
    host = LoopHost(machine_root)
    yield host
    host.close()


@pytest.fixture
def machine(host: LoopHost) -> Machine:
    return Machine(host.root)


@pytest.fixture
def device(host: LoopHost, machine: Machine, tmp_path: Path) -> Path:
    """A disk with an empty ext4, mounted at /data of the machine."""
    device = plug(host, disk(tmp_path, 20, "a"))
    filesystems.make_filesystem(machine, device, ONE, "ext4")
    mounts.make_mountpoint(machine, "/data")
    mounts.mount(machine, device, "/data", "ext4", ("noatime", "nosuid"), 30)
    return device


def test_what_is_mounted_in_a_tree_that_is_removed_keeps_what_it_holds(device: Path, machine: Machine) -> None:
    (machine.root / "data/precious").write_text("kept")
    release = machine.root / "srv/web/releases/20260101000000"
    (release / "uploads").mkdir(parents=True)
    machine.run(["mount", "--bind", machine.root / "data", release / "uploads"], timeout=10)
    with pytest.raises(CommandError, match="one-file-system"):
        machine.remove_tree(release)
    assert (machine.root / "data/precious").read_text() == "kept"


def test_a_mount_is_seen_with_all_there_is_to_know(device: Path, machine: Machine) -> None:
    found = mounts.at(machine, "/data")
    assert found is not None
    assert (found.device, found.root, found.filesystem) == (disks.number(device), "/", "ext4")
    assert {"rw", "noatime", "nosuid"} <= set(found.options)
    assert found.source == str(device)
    assert mounts.of_device(machine, disks.number(device)) == (found,)


def test_a_bind_shows_the_same_in_a_place_with_an_odd_name(device: Path, machine: Machine) -> None:
    mounts.make_mountpoint(machine, "/srv/two words\tand a tab")
    mounts.bind(machine, "/data", "/srv/two words\tand a tab", 30)
    (machine.root / "data/file").write_text("seen")
    assert (machine.root / "srv/two words\tand a tab/file").read_text() == "seen"
    found = mounts.at(machine, "/srv/two words\tand a tab")
    assert found is not None
    assert found.device == disks.number(device)
    assert len(mounts.of_device(machine, found.device)) == 2


def test_only_the_topmost_of_two_is_taken_away(device: Path, machine: Machine) -> None:
    mounts.mount(machine, "tmpfs", "/data", "tmpfs", ("size=1m",), 30)
    found = mounts.at(machine, "/data")
    assert found is not None
    assert found.filesystem == "tmpfs"
    mounts.unmount(machine, "/data")
    found = mounts.at(machine, "/data")
    assert found is not None
    assert found.device == disks.number(device)
    mounts.unmount(machine, "/data")
    assert mounts.at(machine, "/data") is None
    mounts.unmount(machine, "/data")  # nothing there is fine


def test_a_busy_mount_is_waited_for_and_told(device: Path, machine: Machine) -> None:
    with (machine.root / "data/held").open("w"):
        start = time.monotonic()
        with pytest.raises(MachineError, match=r"cannot unmount /data: target is busy .*fuser"):
            mounts.unmount(machine, "/data", within=1)
        assert time.monotonic() - start >= 1
        mounts.unmount(machine, "/data", lazy=True)
    assert mounts.at(machine, "/data") is None


def test_mount_says_what_is_wrong_in_one_line(device: Path, machine: Machine) -> None:
    mounts.unmount(machine, "/data")
    with pytest.raises(MachineError) as caught:
        mounts.mount(machine, device, "/data", "xfs", ("nouuid",), 30)
    assert str(caught.value).startswith(f"cannot mount {device} at /data: wrong fs type")
    assert "\n" not in str(caught.value)
    assert "dmesg" not in str(caught.value)


def test_a_mountpoint_in_use_is_not_touched(device: Path, machine: Machine) -> None:
    (machine.root / "data").chmod(0o755)
    mounts.make_mountpoint(machine, "/data", empty=True)
    assert (machine.root / "data").stat().st_mode & 0o777 == 0o755
    mounts.unmount(machine, "/data")
    assert (machine.root / "data").stat().st_mode & 0o777 == 0


def test_a_machine_below_a_link_finds_its_mounts(device: Path, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "root").symlink_to(machine.root)
    assert mounts.at(Machine(tmp_path / "root"), "/data") == mounts.at(machine, "/data")


# --- does it answer? -----------------------------------------------------------------------------------------


@pytest.fixture
def dead(private_mounts: None, machine_root: Path) -> Iterator[str]:
    """The mountpoint of a filesystem whose server never answers, like that of a dead NFS server."""
    if not Path("/dev/fuse").exists():
        pytest.skip("the kernel has no FUSE")
    mountpoint = machine_root / "dead"
    mountpoint.mkdir()
    server = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
    argv = ["mount", "-i", "-t", "fuse", "-o", options, "nobody", str(mountpoint)]
    subprocess.run(argv, check=True, pass_fds=(server,))
    try:
        yield "/dead"
    finally:
        os.close(server)
        subprocess.run(["umount", "--lazy", mountpoint], check=False, capture_output=True)


def test_a_dead_mount_hangs_a_child_and_not_us(dead: str, machine_root: Path) -> None:
    machine = Machine(machine_root)
    start = time.monotonic()
    with pytest.raises(MachineError, match="/dead does not answer: no answer within 1 s"):
        mounts.probe(machine, dead, 1)
    assert not mounts.answers(machine, dead, 1)
    found = mounts.at(machine, dead)
    assert found is not None
    assert found.filesystem == "fuse"
    mounts.make_mountpoint(machine, dead, empty=True)
    mounts.unmount(machine, dead, lazy=True)
    assert mounts.at(machine, dead) is None
    assert time.monotonic() - start < 30


def test_a_living_directory_answers(device: Path, machine: Machine) -> None:
    mounts.probe(machine, "/data", 30)
    assert mounts.answers(machine, "/data", 30)


def test_an_absent_directory_is_told(machine: Machine) -> None:
    with pytest.raises(MachineError, match=r"/nowhere does not answer: .*No such file or directory"):
        mounts.probe(machine, "/nowhere", 30)
