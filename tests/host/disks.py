"""Disks for tests that run on the host as root; a test module asks for them with

    pytest_plugins = ("tests.host.disks",)

``disks``           :class:`Disks` of the test's ``cloud``, which come to ``machine_root`` as loop devices
``private_mounts``  a mount namespace for this process and all that it starts; ``disks`` brings it along

Both skip the test when it does not run as root. At the end nothing stays mounted and no loop device stays, even when
services of the test still run: they lose their mounts lazily.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootagent.disks import filesystems
from bootagent.sandbox import loop_host
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from bootagent.sandbox.loop_host import LoopHost

#: The one disk of a test that needs no other.
VOLUME = "vol-0123456789abcdef0"


@pytest.fixture(scope="session")
def private_mounts() -> None:
    """Keep the mounts of this test process, and of every process it starts from here on, to itself."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    loop_host.private_mounts()


@pytest.fixture
def volumes_directory() -> Iterator[Path]:
    """Where the contents of volumes are; not below the machine's root, which looks at its own alone."""
    directory = Path(tempfile.mkdtemp(prefix="bootagent-disks-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def loops(private_mounts: None, machine_root: Path) -> LoopHost:
    """The machine of ``disks``."""
    return LoopHost(machine_root)


@pytest.fixture
def disks(private_mounts: None, cloud: Cloud, loops: LoopHost, volumes_directory: Path) -> Iterator[Disks]:
    """EBS for ``cloud``: see :class:`Disks` for ``snapshot_of``, ``volumes``, ``faults``, ``timing``."""
    with Disks(cloud, loops, volumes_directory) as running:
        yield running


def disk(directory: Path, size_mib: int, name: str = "disk") -> Path:
    """A file of zeros to be a disk."""
    path = directory / name
    path.touch()
    os.truncate(path, size_mib * filesystems.MIB)
    return path


def plug(host: LoopHost, file: Path, volume_id: str = VOLUME) -> Path:
    """Let a disk arrive; the real path of its node."""
    host.plug(volume_id, file, "/dev/sdf")
    node = host.node(volume_id)
    assert node is not None
    return node
