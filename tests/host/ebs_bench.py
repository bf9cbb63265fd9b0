"""A simulated EBS for tests of what is asked of it, in this process; a test module asks for it with

    pytest_plugins = ("tests.host.ebs_bench",)

``volumes``  :class:`Disks` whose volumes come to no machine: the API is all there is. Runs as any user
``machine``  a :class:`Machine` on ``machine_root`` that keeps what it is told in ``machine.heard``
``inside``   lets this process call AWS as a program on the ``cloud``'s instance does
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootagent import aws
from bootagent.ebs import patience
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from tests.host.ebs_world import HearingMachine, NoMachine


@pytest.fixture
def inside(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(patience, "MOST_PAUSE", 0.2)
    aws.forget_clients()
    yield
    aws.forget_clients()


@pytest.fixture
def machine(machine_root: Path, inside: None) -> HearingMachine:
    return HearingMachine(machine_root)


@pytest.fixture
def volumes(cloud: Cloud, inside: None) -> Iterator[Disks]:
    directory = Path(tempfile.mkdtemp(prefix="bootagent-volumes-"))
    with Disks(cloud, NoMachine(), directory) as running:
        running.timing.create = running.timing.attach = running.timing.detach = running.timing.delete = 0.05
        running.timing.snapshot = 0.05
        yield running
    shutil.rmtree(directory)
