"""What is done with NFS mounts, and read from them.

The kernel of a host that runs the tests may have no NFS client: other filesystems stand in for what it would mount.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from io import FileIO
from pathlib import Path

import pytest

from bootagent import mounts, plan, survey
from bootagent.config.model import App, Config, ImageSource, NfsSource
from bootagent.errors import BootagentError, MachineError
from bootagent.instance import Instance
from bootagent.machine import Machine
from bootagent.plan import Moment
from bootagent.release import Layout
from bootagent.sources import Revision, Tree
from bootagent.sources import nfs as source
from bootagent.state import State
from bootagent.steps.mounted_nfs import MountedNfs
from bootagent.steps.staged_copy import StagedCopy
from tests.unit.test_plan import BOOT, NOW, RUNIT, WEB

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


# --- what is mounted ---------------------------------------------------------------------------------------------

OLD = MountedNfs("127.0.0.2", "/apps", "/apps", (), 60.0)
NEW = replace(OLD, server="127.0.0.3")
#: What mount(8) calls for NFS: the server 127.0.0.4 is down.
CLIENT = """#!/bin/sh
case $1 in 127.0.0.4:*) echo "mount.nfs: Connection refused" >&2; exit 32;; esac
mount -i -t tmpfs -o mode=755 "$1" "$2" && echo "$1" >"$2/from" && mount -o remount,bind,ro "$2"
"""


class KernelTable:
    """The kernel's table, in which what came from a server is NFS."""

    def __init__(self) -> None:
        self._table = mounts.TABLE

    def read_text(self, errors: str) -> str:
        return re.sub(r" - (tmpfs|fuse) (127[.])", r" - nfs4 \2", self._table.read_text(errors=errors))


@pytest.fixture
def client(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An NFS client whose every export holds one file, ``from``: the name it has."""
    program = Path("/sbin/mount.nfs")
    if not program.exists():
        pytest.skip("there is no mount.nfs")
    ours = tmp_path / "mount.nfs"
    ours.write_text(CLIENT)
    ours.chmod(0o755)
    monkeypatch.setattr(mounts, "TABLE", KernelTable())
    subprocess.run(["mount", "--bind", ours, program], check=True)
    yield
    subprocess.run(["umount", "--lazy", program], check=True)


@pytest.fixture
def server(machine: Machine, client: None) -> Iterator[FileIO]:
    """The old server has its export mounted, and never answers; when this file is closed, there are errors."""
    if not Path("/dev/fuse").exists():
        pytest.skip("the kernel has no FUSE")
    with Path("/dev/fuse").open("r+b", buffering=0) as server:
        options = f"ro,fd={server.fileno()},rootmode=40000,user_id=0,group_id=0"
        argv = ["mount", "-i", "-t", "fuse", "-o", options, "127.0.0.2:/apps", str(machine.real("/apps"))]
        subprocess.run(argv, check=True, pass_fds=(server.fileno(),))
        yield server


def shown(machine: Machine) -> str:
    return machine.real("/apps/from").read_text().strip()


def test_an_export_is_mounted_where_nothing_was(machine: Machine, client: None) -> None:
    assert not OLD.is_satisfied(machine)
    OLD.apply(machine)
    assert OLD.is_satisfied(machine)
    assert shown(machine) == "127.0.0.2:/apps"


def test_another_export_takes_the_place_of_the_old_one(machine: Machine, client: None) -> None:
    OLD.apply(machine)
    with machine.real("/apps/from").open() as held:
        assert not NEW.is_satisfied(machine)
        NEW.apply(machine)
        assert held.read().strip() == "127.0.0.2:/apps"  # what runs from it goes on
    assert NEW.is_satisfied(machine)
    assert shown(machine) == "127.0.0.3:/apps"
    assert mounted_below(machine.root) == [str(machine.real("/apps"))]
    assert machine.real("/run/bootagent/nfs").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("server", ["127.0.0.4", "new.invalid"])
def test_the_old_export_stays_when_the_new_one_cannot_be_mounted(machine: Machine, client: None, server: str) -> None:
    OLD.apply(machine)
    with pytest.raises(MachineError, match=r"127\.0\.0\.2:/apps stays mounted at /apps: .*could not be mounted"):
        replace(NEW, server=server, within=1.0).apply(machine)
    assert OLD.is_satisfied(machine)
    assert shown(machine) == "127.0.0.2:/apps"
    assert mounted_below(machine.root) == [str(machine.real("/apps"))]


def test_what_a_killed_run_left_aside_is_no_obstacle(machine: Machine, client: None) -> None:
    OLD.apply(machine)
    aside = machine.real("/run/bootagent/nfs/%2Fapps")
    aside.mkdir(parents=True)
    mount("127.0.0.9:/apps", aside)
    NEW.apply(machine)
    assert mounted_below(machine.root) == [str(machine.real("/apps"))]


def test_what_is_not_nfs_is_left_alone(machine: Machine, client: None) -> None:
    mount("other", machine.real("/apps"))
    with pytest.raises(BootagentError, match=r"other \(tmpfs\) is mounted at /apps"):
        OLD.apply(machine)
    assert mounted_below(machine.root) == [str(machine.real("/apps"))]


def test_nothing_is_mounted_where_an_apps_user_could_put_a_link(machine: Machine, client: None) -> None:
    home = machine.real("/home/deploy")
    (home / "apps").mkdir(parents=True)
    os.chown(home, 65534, 65534)
    with pytest.raises(
        BootagentError, match=r"cannot mount 127\.0\.0\.2:/apps at /home/deploy/apps: .* belongs to uid"
    ):
        replace(OLD, mountpoint="/home/deploy/apps").apply(machine)
    assert mounted_below(machine.root) == []
    mount("127.0.0.9:/apps", home / "apps")
    with pytest.raises(BootagentError, match="belongs to uid"):
        replace(OLD, mountpoint="/home/deploy/apps").apply(machine)
    assert mounted_below(machine.root) == [str(home / "apps")], "nor is what is there taken away"


def test_a_silent_server_in_shared_ends_the_look_and_the_look_back(
    machine: Machine, server: FileIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = machine.real("/srv/web/shared/uploads")
    uploads.mkdir(parents=True)
    subprocess.run(["mount", "--bind", machine.real("/apps"), uploads], check=True)
    machine.real("/opt/web").mkdir(parents=True)
    monkeypatch.setattr(survey, "PROBE_SECONDS", 1.0)
    said = "/srv/web/shared/uploads does not answer: no answer within 1 s"
    app = replace(WEB, user="nobody", group=None, fallback=ImageSource("/opt/web"))
    config = Config(role="web", environment=None, apps=(app,), volumes=(), runit=RUNIT)
    found = survey.look(config, Instance(None, "eu-west-1"), machine, State())["web"]
    assert isinstance(found.revision, MachineError) and said in str(found.revision)
    (lane,) = plan.make(config, {"web": found}, (), Moment(NOW, BOOT, None)).lanes
    assert (lane.intent, lane.steps) == ("nothing", {}), "nothing stands in where nobody may look"
    with pytest.raises(MachineError, match=said):
        survey.look_back(machine, app, State(), None)
    # What is out of sight is in nobody's way.
    mount("other", machine.real("/srv/web/shared"))
    assert survey.look_back(machine, app, State(), None).layout == Layout()


def test_a_silent_server_is_told_and_its_mount_left_alone(machine: Machine, server: FileIO) -> None:
    start = time.monotonic()
    with pytest.raises(MachineError, match="is mounted at /apps, and the server is silent"):
        replace(OLD, within=1.0).is_satisfied(machine)
    assert time.monotonic() - start < 30
    assert mounted_below(machine.root) == [str(machine.real("/apps"))]


def test_a_mount_that_answers_with_errors_is_mounted_anew(machine: Machine, server: FileIO) -> None:
    server.close()
    assert not OLD.is_satisfied(machine)
    OLD.apply(machine)
    assert OLD.is_satisfied(machine)
    assert shown(machine) == "127.0.0.2:/apps"
