"""Fixtures of the tests on machines that really boot."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootagent.sandbox.cloud import Cloud
from tests.boot import image, report
from tests.boot.image import Image
from tests.boot.nfs_server import Export, NfsServer
from tests.boot.scene import Scene
from tests.boot.wire import Wire

pytest_addoption = report.pytest_addoption
pytest_terminal_summary = report.pytest_terminal_summary


@pytest.fixture(scope="session")
def deb(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Path:
    """The project's package, built once for all test processes."""
    if os.geteuid() != 0:
        pytest.skip("machines are built as root; run the tests as root, or with sudo")
    if lacking := image.missing():
        pytest.fail(lacking)
    place = tmp_path_factory.getbasetemp()
    shared = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / f"package-{testrun_uid}"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = list(shared.glob("*.deb"))
        return found[0] if found else image.package(shared)


@pytest.fixture(scope="session")
def systemd_image(deb: Path) -> Image:
    return image.built("systemd", deb)


@pytest.fixture(scope="session")
def runit_image(deb: Path) -> Image:
    return image.built("runit", deb)


@pytest.fixture
def wire(cloud: Cloud) -> Iterator[Wire]:
    with Wire(int(cloud.api.endpoint.rpartition(":")[2])) as running:
        yield running


@pytest.fixture
def nfs(tmp_path: Path) -> Iterator[NfsServer]:
    """A server of ``tmp_path/apps`` as /apps, read-only."""
    directory = tmp_path / "apps"
    directory.mkdir()
    with NfsServer(tmp_path / "nfs", [Export("/apps", directory)]) as running:
        yield running


@pytest.fixture
def scene(cloud: Cloud, wire: Wire, tmp_path: Path) -> Scene:
    """A cloud with one instance, Role=web and Environment=staging, and nothing published yet."""
    return Scene(cloud, wire, tmp_path)
