"""``bootagent stop``: the machine is as before the boot, or as before the first one; and it starts again from there."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bootagent.sandbox.disks import Disks
from tests.conftest import Agent, processes_of
from tests.host.git_server import Repository
from tests.host.killing import killed_at
from tests.host.stage import App, Stage

pytest_plugins = ("tests.host.disks",)
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")

RELEASE = "20260101000000"
HELD = '{ type = "image" }'
EBS = '{ type = "ebs", snapshot = { Name = "web" }, mountpoint = "/cp", volume = { size = "1GiB" } }'
VOLUME = """
[roles.web.volumes.data]
mountpoint = "/mnt/data"
user = "nobody"
volume = { size = "1GiB" }
within = "30s"
"""
ROLE = '[roles.web]\napps = ["web"]\n'
SERVICE = """
[apps.web.services.{name}]
command = {command}
stable_for = "300ms"
stop_within = "2s"
"""
SLEEP = SERVICE.format(name="job", command='["sleep", "1000"]')
#: What is the agent's own, or a log, or stands for hardware and for what runs the machine.
ASIDE = (
    "dev",
    "run/bootagent-status.json",
    "run/bootagent/hooks",
    "run/bootagent/lock",
    "run/bootagent/summary",
    "sys",
    "var/lib/bootagent",
    "var/log",
)


class Seen(NamedTuple):
    """All that a stop is to bring back: files (with type, mode, owner, content), mounts, processes."""

    files: dict[str, tuple[object, ...]]
    mounts: list[str]
    processes: list[str]


def look(root: Path) -> Seen:
    """The machine as it is."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    left = [f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes()!r}" for pid in processes_of(root)]
    left = [one for one in left if "runsvdir" not in one and "bootagent.sandbox.init" not in one]
    return Seen(dict(_files(root)), [point for point in mounts if point.startswith(f"{root}/")], left)


def _files(root: Path) -> Iterator[tuple[str, tuple[object, ...]]]:
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        # They come with the first lock that is held there, before anything else is done.
        if name in ("run", "run/bootagent", "var", "var/lib") or any(f"{name}/".startswith(f"{one}/") for one in ASIDE):
            continue
        found = path.lstat()
        content: object = None
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        yield name, (stat.filemode(found.st_mode), found.st_uid, found.st_gid, content)


def bake(web: App, *, mountpoint: bool = True) -> None:
    """What is there before the agent is: a release of Capistrano's, an fstab, a directory to mount at."""
    release = web.deploy_to / "releases" / RELEASE
    release.mkdir(parents=True)
    (release / "VERSION").write_text("baked")
    (web.deploy_to / "shared/log").mkdir(parents=True)
    (web.deploy_to / "current").symlink_to(f"releases/{RELEASE}")
    (web.deploy_to / "revisions.log").write_text("Branch main (at 1234) deployed as release 1 by deploy\n")
    (web.root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
    if mountpoint:
        (web.root / "mnt/data").mkdir(parents=True, mode=0o750)


@root_only
def test_it_ends_as_before_the_boot_and_starts_again_as_if_new(
    disks: Disks, stage: Stage, agent: Agent, machine_root: Path
) -> None:
    web = stage.app()
    hook = """hooks = { stop = ["sh", "-c", "id -un; pwd; env; pgrep -f 'sleep 1234[5]'; cat VERSION"] }"""
    service = SERVICE.format(name="job", command='["sleep", "12345"]')
    stage.configure(web.config(source=HELD, extra=hook, service=service), roles=ROLE + VOLUME)
    bake(web)
    before = look(machine_root)
    for _ in range(2):
        ran = agent("reconfigure")
        assert ran.code == 0, ran.stderr
        seen = look(machine_root)
        assert (seen.mounts, len(seen.processes)) == ([f"{machine_root}/mnt/data"], len(before.processes) + 4)
        assert "bootagent" in (machine_root / "etc/fstab").read_text()
        (machine_root / "mnt/data/precious").touch()

        ran = agent("stop")
        assert (ran.code, ran.stderr.count('"level": "error"')) == (0, 0), ran.stderr
        assert look(machine_root) == before
        said = (machine_root / "run/bootagent/hooks/web").read_text().splitlines()
        assert said[:2] == ["nobody", str(web.deploy_to / "releases" / RELEASE)]
        assert {"BOOTAGENT_APP=web", "BOOTAGENT_ROLE=web", "BOOTAGENT_ENVIRONMENT=staging"} <= set(said)
        assert f"BOOTAGENT_RELEASE={web.deploy_to}/releases/{RELEASE}" in said
        assert said[-1] == "baked" and not said[-2].isdigit(), "no service runs any more"
        assert agent("stop").code == 0, "again"
        assert look(machine_root) == before
    assert len(disks.volumes) == 1, "the volume stays attached"
    assert agent("reconfigure").code == 0
    assert (machine_root / "mnt/data/precious").exists()


@root_only
def test_a_shutdown_leaves_what_the_next_boot_needs(
    disks: Disks, stage: Stage, agent: Agent, machine_root: Path
) -> None:
    web = stage.app()
    stage.configure(web.config(source=HELD, extra='hooks = { stop = ["false"] }', service=SLEEP), roles=ROLE + VOLUME)
    bake(web)
    assert agent("reconfigure").code == 0
    before = look(machine_root)
    ran = agent("stop", "--shutdown")
    assert ran.code == 1 and "run the stop hook false" in ran.stderr, "a failed hook is told"
    after = look(machine_root)
    assert not after.mounts
    installed = {path: found for path, found in before.files.items() if path.startswith("etc/")}
    assert {path: found for path, found in after.files.items() if path.startswith("etc/")}.items() >= {
        path: found for path, found in installed.items() if "supervise" not in path
    }.items()
    assert not (web.service("job") / "down").exists(), "runsvdir is to start it at the next boot"


@root_only
def test_what_holds_a_mount_is_named_and_the_next_stop_finishes(
    disks: Disks, stage: Stage, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    web = stage.app()
    place = tmp_path / "deploy_to"
    (place / "releases" / RELEASE).mkdir(parents=True)
    (place / "current").symlink_to(f"releases/{RELEASE}")
    disks.snapshot_of(place, tags={"Name": "web"})
    stage.configure(web.config(source=EBS, service=SLEEP))
    before = look(machine_root)
    assert agent("reconfigure").code == 0
    assert sorted(look(machine_root).mounts) == [f"{machine_root}/cp", f"{machine_root}/srv/web"]
    with subprocess.Popen(["sleep", "1000"], cwd=machine_root / "cp") as holder:
        begun = time.monotonic()
        ran = agent("stop")
        assert time.monotonic() - begun < 60
        holder.kill()
    assert ran.code == 1
    assert f"cannot unmount /cp: it is in use by sleep ({holder.pid})" in ran.stderr
    assert look(machine_root).mounts == [f"{machine_root}/cp"], "the rest is done"
    assert "/cp" in (machine_root / "etc/fstab").read_text()
    assert agent("stop").code == 0
    assert look(machine_root) == before
    # It starts again without EC2.
    stage.cloud.api.fail("ec2", "DescribeSnapshots", code="UnauthorizedOperation", status=403, times=9)
    assert agent("reconfigure").code == 3
    assert len(look(machine_root).mounts) == 2


def test_a_reset_is_as_before_the_first_boot(stage: Stage, agent: Agent, machine_root: Path) -> None:
    web = stage.app()
    (machine_root / "etc/secret.yml").parent.mkdir(parents=True, exist_ok=True)
    (machine_root / "etc/secret.yml").write_text("secret: 1\n")
    shared = 'linked_dirs = ["log", "tmp/pids"]\nlinked_files = [{ path = "config/s.yml", from = "/etc/secret.yml" }]'
    stage.configure(web.config(extra=f'{shared}\nhooks = {{ prepare = ["true"] }}', service=SLEEP))
    before = look(machine_root)
    for version in ("one", "two"):
        web.publish(version)
        assert agent("reconfigure", "--tag", "Colour=blue").code == 0
    first = web.current
    ran = agent("stop", "--reset")
    assert ran.code == 0, ran.stderr
    assert f"/srv/web/releases/{first}" in ran.stdout
    assert look(machine_root) == before
    state = stage.state()
    assert (state["apps"], state["tags"]) == ({}, {"Colour": "blue"})
    assert not list((machine_root / "var/lib/bootagent/prepared").iterdir())
    assert "the services were stopped" in agent("run", "--once").stderr

    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert len(web.releases) == 1
    (web.deploy_to / "shared/log/upload").write_text("somebody's")
    (web.deploy_to / "shared/config/s.yml").write_text("edited\n")
    assert agent("stop", "--reset").code == 0
    left = {path for path in look(machine_root).files if path.startswith("srv/")}
    shared_left = {"shared", "shared/log", "shared/log/upload", "shared/config", "shared/config/s.yml"}
    assert left == {"srv/web", *(f"srv/web/{path}" for path in shared_left)}, "what others wrote stays"


def test_what_a_stop_keeps_for_the_next_run_a_reset_does_not(
    stage: Stage, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    web = stage.app()
    Repository(machine_root / "srv/git/env.git", tmp_path / "work", None).commit({"common/A": "1"})
    environment = '[apps.web.environment]\nurl = "file:///srv/git/env.git"\nref = "main"\nlayers = ["common"]\n'
    metrics = "var/lib/node-exporter/bootagent.prom"
    hook = """hooks = { stop = ["sh", "-c", "echo $A"] }"""
    stage.configure(web.config(extra=hook, service=SLEEP), environment, f'[tell]\nmetrics = "/{metrics}"')
    web.publish("one")
    (machine_root / metrics).parent.mkdir(parents=True)
    own = {path: machine_root / path for path in ("run/bootagent/hooks", "var/lib/bootagent/environment", metrics)}
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert agent("stop").code == 0
    assert (own["run/bootagent/hooks"] / "web").read_text() == "1\n", "it has been run, and is not run again"
    assert (own["var/lib/bootagent/environment"] / "web/current/common/A").read_text() == "1", (
        "needed without a network"
    )
    assert 'outcome="stopped"} 1' in own[metrics].read_text()

    for _ in range(2):
        ran = agent("stop", "--reset")
        assert ran.code == 0, ran.stderr
        assert not [path for path, real in own.items() if real.exists()]
        assert "run the stop hook" not in ran.stderr
    assert agent("reconfigure").code == 0
    assert all(path.exists() for name, path in own.items() if "hooks" not in name)


def test_a_hook_that_failed_is_run_by_the_next_stop_and_one_of_an_app_without_services(
    stage: Stage, agent: Agent, machine_root: Path
) -> None:
    good = machine_root / "good"
    web = stage.app()
    stage.configure(web.config(extra=f"""hooks = {{ stop = ["test", "-e", "{good}"] }}""", service=SLEEP))
    web.publish("one")
    assert agent("reconfigure").code == 0
    for _ in range(2):  # the second time, there are no services any more
        ran = agent("stop")
        assert ran.code == 1 and "run the stop hook" in ran.stderr, ran.stderr
    good.touch()
    ran = agent("stop")
    assert ran.code == 0 and "run the stop hook" in ran.stderr, ran.stderr
    ran = agent("stop")
    assert ran.code == 0 and "run the stop hook" not in ran.stderr, ran.stderr

    good.unlink()
    stage.configure(web.config(extra=f"""hooks = {{ stop = ["test", "-e", "{good}"] }}""", service=""))
    web.publish("two", {"VERSION": "two"})
    assert (ran := agent("reconfigure")).code == 0, ran.stderr
    ran = agent("stop")
    assert ran.code == 1 and "run the stop hook" in ran.stderr, ran.stderr


def test_a_reset_leaves_the_releases_of_others_and_current_where_it_was(
    stage: Stage, agent: Agent, machine_root: Path
) -> None:
    web = stage.app()
    stage.configure(web.config(service=SLEEP))
    bake(web)
    before = look(machine_root)
    web.publish("one")
    assert agent("reconfigure").code == 0
    assert web.current != RELEASE
    assert agent("stop", "--reset").code == 0
    assert look(machine_root) == before


def test_after_a_stop_nothing_serves_and_nothing_goes_back(stage: Stage, agent: Agent) -> None:
    web = stage.app()
    stage.configure(web.config(service=SLEEP), '[tags]\nwithin = "3s"')
    for version in ("one", "two"):
        web.publish(version)
        assert agent("reconfigure").code == 0
    assert agent("stop").code == 0
    ran = agent("rollback")
    assert ran.code == 2
    assert "bootagent reconfigure starts them" in ran.stderr
    ran = agent("reconfigure", env={"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1"})
    assert ran.code == 1, "nothing serves, so it is not degraded"
    assert agent("status", "--wait", "0").code == 1
    assert agent("reconfigure").code == 0
    assert agent("rollback").code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's directory")
def test_a_reset_does_not_follow_a_directory_that_was_exchanged(stage: Stage, agent: Agent, machine_root: Path) -> None:
    web = stage.app()
    stage.configure(web.config(service=SLEEP))
    web.publish("one")
    assert agent("reconfigure").code == 0
    other = machine_root / "other"
    (machine_root / "srv").rename(other)
    (machine_root / "srv").symlink_to(other)
    ran = agent("stop", "--reset")
    assert ran.code == 1
    assert "srv" in ran.stderr
    assert (other / "web/releases").is_dir()
    assert (other / "web/current").is_symlink()


def test_what_services_leave_behind_is_ended(stage: Stage, agent: Agent, machine_root: Path) -> None:
    web = stage.app()
    script = (
        "#!/bin/sh\n"
        "setsid sh -c 'trap \"\" TERM; echo $$ >deaf; while :; do sleep 0.1; done' &\n"
        "setsid sh -c 'echo $$ >meek; exec sleep 1000' &\n"
        "exec sleep 1000\n"
    )
    stage.configure(web.config(service=SERVICE.format(name="job", command='["./job"]')))
    web.publish("one", {"job": script})
    before = look(machine_root).processes
    assert agent("reconfigure").code == 0
    left = [int((web.deploy_to / "current" / name).read_text()) for name in ("deaf", "meek")]
    ran = agent("stop")
    assert ran.code == 0, ran.stderr
    [term] = re.findall('TERM to what web.job left behind: ([^"]*)', ran.stderr)
    [kill] = re.findall('KILL to what web.job left behind: ([^"]*)', ran.stderr)
    assert all(f"({pid})" in term for pid in left), term
    assert f"({left[0]})" in kill and f"({left[1]})" not in kill, kill
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    assert look(machine_root).processes == before


@root_only
@pytest.mark.timeout(600)
def test_killed_anywhere_the_next_stop_finishes(disks: Disks, stage: Stage, agent: Agent, machine_root: Path) -> None:
    web = stage.app()
    hook = 'hooks = { stop = ["true"] }'
    stage.configure(web.config(source=HELD, extra=hook, service=SLEEP), roles=ROLE + VOLUME)
    bake(web, mountpoint=False)
    before = look(machine_root)
    kills, step = 1, 4
    while True:
        assert agent("reconfigure").code == 0
        killed = killed_at(stage.cloud, machine_root, kills, "stop")
        ran = agent("stop")
        assert ran.code == 0, f"after a kill at {kills}: {ran.stderr}"
        assert look(machine_root) == before, f"after a kill at {kills}"
        if not killed:
            break
        kills += step
        assert kills < 120
    assert kills > 3 * step, "the stop is as long as expected"
