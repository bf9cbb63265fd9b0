"""The agent with releases and data on EBS volumes: real disks, filesystems and mounts; the cloud is simulated."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from bootagent.sandbox.disks import Disks
from tests.conftest import Agent
from tests.host.stage import SERVER, App, Stage

pytest_plugins = ("tests.host.disks",)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")

SOURCE = 'source = { type = "ebs", snapshot = { Name = "web" }, mountpoint = "/cp", volume = { size = "1GiB" } }'


def configured(web: App, source: str) -> str:
    """The app's configuration with another source."""
    lines = web.config().splitlines()
    return "\n".join(source if line.startswith("source = ") else line for line in lines)


def tree(place: Path, files: Mapping[str, str]) -> Path:
    """A directory with these files."""
    for name, text in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place


def snapshot(disks: Disks, place: Path, version: str) -> str:
    """A snapshot of a whole deploy_to, as a deploy box has it: its Capistrano's current names a release."""
    deploy_to = tree(place / version, {"releases/20260101000000/VERSION": version, "shared/log/.keep": ""})
    (deploy_to / "releases/20260101000000/server.py").write_text(SERVER)
    (deploy_to / "current").symlink_to("releases/20260101000000")
    return disks.snapshot_of(deploy_to, tags={"Name": "web"})


def mounted(root: Path) -> dict[str, str]:
    """What is mounted below the machine's root: place → device."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    found = {line.split()[4]: line.split()[2] for line in lines}
    return {point.removeprefix(str(root)): device for point, device in found.items() if point.startswith(f"{root}/")}


@pytest.fixture
def web(disks: Disks, stage: Stage) -> App:
    return stage.app()


def test_a_whole_deploy_to_on_a_volume(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    stage.configure(configured(web, SOURCE))
    first = snapshot(disks, tmp_path, "one")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "one"
    (volume,) = disks.volumes.values()
    assert volume.snapshot_id == first
    fstab = (machine_root / "etc/fstab").read_bytes()
    assert b"/cp" in fstab and b"nofail" in fstab
    points = mounted(machine_root)
    assert set(points) == {"/cp", "/srv/web"} and len(set(points.values())) == 1
    (machine_root / "cp/shared/note").write_text("seen on both sides")
    assert (machine_root / "srv/web/shared/note").read_text() == "seen on both sides"

    pid = web.pid()
    stage.cloud.api.forget_calls()
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.pid() == pid
    assert (machine_root / "etc/fstab").read_bytes() == fstab
    assert [call.action for call in stage.cloud.api.calls] == ["DescribeSnapshots"]

    second = snapshot(disks, tmp_path, "two")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "two"
    (volume,) = disks.volumes.values()
    assert volume.snapshot_id == second
    assert set(mounted(machine_root)) == {"/cp", "/srv/web"}
