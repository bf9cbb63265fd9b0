"""What is done with NFS mounts, and read from them.

The kernel of a host that runs the tests may have no NFS client: other filesystems stand in for what it would mount.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bootagent.config.model import App, NfsSource
from bootagent.errors import BootagentError
from bootagent.machine import Machine
from bootagent.sources import Revision, Tree
from bootagent.sources import nfs as source
from bootagent.steps.staged_copy import StagedCopy
from tests.unit.test_plan import WEB

pytest_plugins = ("tests.host.disks",)

SOURCE = NfsSource("build", "/apps", "/apps", (), copy=True, path="current", within=30.0)
COPIED = replace(WEB, user="nobody", group=None, source=SOURCE)


@pytest.fixture
def machine(private_mounts: None, machine_root: Path) -> Iterator[Machine]:
    """A machine with an empty /apps; at the end nothing is mounted in it."""
    machine = Machine(machine_root)
    machine.real("/apps").mkdir()
    yield machine
    while points := mounted_below(machine_root):
        subprocess.run(["umount", "--lazy", points[-1]], check=True)


def mounted_below(root: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [point for line in lines if (point := line.split()[4]).startswith(f"{root}/")]


def mount(name: str, point: Path) -> None:
    """Mount an empty filesystem that says it comes from ``name``."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", name, point], check=True)


# --- what is read ------------------------------------------------------------------------------------------------


@pytest.fixture
def apps(machine: Machine) -> Path:
    """The mount with two releases, a and b; current is a."""
    apps = machine.real("/apps")
    mount("build:/apps", apps)
    for name in ("a", "b"):
        (apps / "releases" / name).mkdir(parents=True)
        (apps / "releases" / name / "REVISION").write_text(f"of {name}\n")
    point_at(apps / "current", "releases/a")
    return apps


def point_at(link: Path, target: str) -> None:
    fresh = link.with_name("new")
    fresh.symlink_to(target)
    fresh.replace(link)


def resolved(machine: Machine, app: App = COPIED) -> Revision:
    assert isinstance(app.source, NfsSource)
    return source.resolve(machine, app, app.source)


def test_a_copy_holds_what_current_was_when_it_was_asked_for(machine: Machine, apps: Path) -> None:
    revision = resolved(machine)
    point_at(apps / "current", "releases/b")
    assert isinstance(revision.content, Tree)
    machine.real("/srv/web/releases").mkdir(parents=True)
    StagedCopy("/srv/web/releases/1", revision.content.path, 60, "nobody", None).apply(machine)
    assert machine.real("/srv/web/releases/1/REVISION").read_text() == "of a\n"
    assert (revision.id, revision.label) == ("nfs:build:/apps:a:of a", "a")


@pytest.mark.parametrize(
    ("path", "links", "content"),
    [
        ("current", {}, "/apps/releases/a"),
        ("current", {"current": "./releases/../releases/b/"}, "/apps/releases/b"),
        ("current", {"current": "newest", "newest": "releases/b"}, "/apps/releases/b"),
        ("current", {"current": "/apps/releases/b"}, "/apps/releases/b"),
        ("current", {"current": "/export/of/the/server/releases/b"}, "/apps/releases/b"),
        ("releases/a", {}, "/apps/releases/a"),
        ("newest/a", {"newest": "releases"}, "/apps/releases/a"),
    ],
)
def test_what_is_copied_is_named_without_links(
    machine: Machine, apps: Path, path: str, links: dict[str, str], content: str
) -> None:
    for link, target in links.items():
        point_at(apps / link, target)
    revision = resolved(machine, replace(COPIED, source=replace(SOURCE, path=path)))
    assert revision.content == Tree(content)
    assert revision.id.endswith(f":of {content[-1]}")


@pytest.mark.parametrize("target", ["releases/c", "/export/releases/c", "../../etc"])
def test_a_link_that_leads_nowhere_is_told(machine: Machine, apps: Path, target: str) -> None:
    point_at(apps / "current", target)
    with pytest.raises(BootagentError, match=f"/apps/current leads to {target}, which is not to be seen"):
        resolved(machine)
