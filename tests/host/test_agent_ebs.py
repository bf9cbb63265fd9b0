"""The agent with releases and data on EBS volumes: real disks, filesystems and mounts; the cloud is simulated."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from bootagent.sandbox.loop_host import LoopHost
from bootagent.services import runit
from tests.conftest import TAGS, Agent
from tests.host.killing import killed_at
from tests.host.stage import SERVER, USER, App, Stage, Tree
from tests.waiting import until

pytest_plugins = ("tests.host.disks",)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")

SOURCE = '{ type = "ebs", snapshot = { Name = "web" }, mountpoint = "/cp", volume = { size = "1GiB" } }'
#: A volume for each release.
EACH = '{ type = "ebs", snapshot = { Name = "web" }, holds = "release" }'


def tree(place: Path, files: Tree) -> Path:
    """A directory with these files."""
    for name, text in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
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
    stage.configure(web.config(source=SOURCE))
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


def test_what_does_not_work_is_taken_back_and_then_given_back(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    stage.configure(web.config(source=SOURCE))
    first = snapshot(disks, tmp_path, "one")
    assert agent("reconfigure").code == 0
    broken = tree(tmp_path / "broken", {"releases/2/VERSION": "two", "releases/2/server.py": "raise SystemExit(1)"})
    (broken / "current").symlink_to("releases/2")
    disks.snapshot_of(broken, tags={"Name": "web"})
    ran = agent("reconfigure")
    assert ran.code == 3, ran.stderr
    assert f"release {first} was put back and serves" in ran.stderr
    assert web.answer() == "one"
    ran = agent("reconfigure")
    assert ran.code == 3, ran.stderr
    assert "failed before" in ran.stderr
    assert web.answer() == "one"
    assert [volume.snapshot_id for volume in disks.volumes.values()] == [first]
    third = snapshot(disks, tmp_path, "three")
    assert agent("reconfigure").code == 0
    assert web.answer() == "three"
    assert [volume.snapshot_id for volume in disks.volumes.values()] == [third]


def test_a_snapshot_that_cannot_be_mounted_leaves_the_old_one_in_its_place(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    stage.configure(web.config(source=SOURCE))
    snapshot(disks, tmp_path, "one")
    assert agent("reconfigure").code == 0
    pid, before = web.pid(), mounted(machine_root)
    damaged = disks.snapshot_of(tree(tmp_path / "two", {"x": "y"}), tags={"Name": "web"})
    with disks.snapshots[damaged].file.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(1 << 20))
    ran = agent("reconfigure")
    assert ran.code == 3, ran.stderr
    assert "xfs_repair -n" in ran.stderr
    assert (web.pid(), mounted(machine_root)) == (pid, before)


def test_a_release_of_its_own_on_each_volume(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    source = f'{EACH}\nlinked_dirs = ["log"]'
    stage.configure(web.config(source=source))
    first = disks.snapshot_of(tree(tmp_path / "one", web.tree("one")), tags={"Name": "web"}, filesystem="ext4")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "one"
    one = web.current
    assert set(mounted(machine_root)) == {f"/srv/web/releases/{one}"}
    assert (web.deploy_to / "current/log").resolve() == web.deploy_to / "shared/log"

    second = disks.snapshot_of(tree(tmp_path / "two", web.tree("two")), tags={"Name": "web"}, filesystem="ext4")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "two"
    assert web.releases == [web.current] != [one]
    assert set(mounted(machine_root)) == {f"/srv/web/releases/{web.current}"}
    assert [volume.snapshot_id for volume in disks.volumes.values()] == [second]
    pid = web.pid()
    ran = agent("reconfigure")
    assert (ran.code, web.pid()) == (0, pid)

    two = web.current
    ran = agent("rollback")
    assert ran.code == 0, ran.stderr
    assert (web.answer(), web.releases) == ("one", [one])
    assert (web.deploy_to / "current/log").resolve() == web.deploy_to / "shared/log"
    assert set(mounted(machine_root)) == {f"/srv/web/releases/{one}"}
    assert [volume.snapshot_id for volume in disks.volumes.values()] == [first]
    assert f"rolled back to release {one}" in (web.deploy_to / "revisions.log").read_text()
    pid = web.pid()
    ran = agent("reconfigure")
    assert (ran.code, web.pid()) == (0, pid)
    assert f"{second} was rolled back; --retry deploys it again" in ran.stdout
    ran = agent("reconfigure", "--retry")
    assert ran.code == 0, ran.stderr
    assert (web.answer(), web.releases) == ("two", [web.current])
    assert web.current > two
    assert [volume.snapshot_id for volume in disks.volumes.values()] == [second]


def test_rollback_brings_back_the_snapshot_before(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    def snapshots() -> list[str]:
        return [volume.snapshot_id for volume in disks.volumes.values()]

    stage.configure(web.config(source=SOURCE))
    ran = agent("rollback")
    assert ran.code == 2 and "web has no earlier release to roll back to" in ran.stderr
    first = snapshot(disks, tmp_path, "one")
    assert agent("reconfigure").code == 0
    second = snapshot(disks, tmp_path, "two")
    assert agent("reconfigure").code == 0
    (machine_root / "cp/shared/upload").write_text("on the volume of the second")

    ran = agent("rollback")
    assert ran.code == 0, ran.stderr
    assert f"is back on release {first}" in ran.stdout
    assert web.answer() == "one"
    assert snapshots() == [first]
    points = mounted(machine_root)
    assert set(points) == {"/cp", "/srv/web"} and len(set(points.values())) == 1
    assert not (machine_root / "cp/shared/upload").exists()
    assert (machine_root / "etc/fstab").read_text().count("bind") == 1

    pid = web.pid()
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert f"{second} was rolled back; --retry deploys it again" in ran.stdout
    assert (web.pid(), snapshots()) == (pid, [first])
    assert agent("reconfigure", "--retry").code == 0
    assert (web.answer(), snapshots()) == ("two", [second])

    # Again, and EC2 is not asked for the volume that the first one made, which is no more.
    stage.cloud.api.forget_calls()
    assert agent("rollback", first).code == 0
    assert stage.cloud.count("ec2", "CreateVolume") == 1
    assert (web.answer(), snapshots()) == ("one", [first])
    third = snapshot(disks, tmp_path, "three")
    assert agent("reconfigure").code == 0
    assert (web.answer(), snapshots()) == ("three", [third])

    stage.cloud.api.ec2(stage.cloud.region).delete_snapshot(SnapshotId=first)
    pid = web.pid()
    ran = agent("rollback", first)
    assert ran.code == 2, ran.stderr
    assert f"release {first} of web cannot come back: its snapshot {first} is gone" in ran.stderr
    ran = agent("rollback", "snap-0123456789abcdef0")
    assert ran.code == 2 and f"it has {first}, {second}, {third}" in ran.stderr
    assert (web.pid(), snapshots()) == (pid, [third])


def test_a_rollback_that_fails_puts_back_what_served(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    stage.configure(web.config(source=SOURCE))
    broken = machine_root / "broken"
    code = f"import os\nassert not os.path.exists({str(broken)!r})\n{SERVER}"
    old = tree(tmp_path / "old", {"releases/1/VERSION": "one", "releases/1/server.py": code})
    (old / "current").symlink_to("releases/1")
    first = disks.snapshot_of(old, tags={"Name": "web"})
    assert agent("reconfigure").code == 0
    second = snapshot(disks, tmp_path, "two")
    assert agent("reconfigure").code == 0
    (machine_root / "cp/shared/upload").write_text("kept")
    broken.touch()  # what it needs is not as it was
    ran = agent("rollback")
    assert ran.code == 3, ran.stderr
    assert f"release {second} was put back and serves" in ran.stderr
    assert web.answer() == "two"
    assert (machine_root / "srv/web/shared/upload").read_text() == "kept"
    assert agent("reconfigure").code == 0
    assert [volume.snapshot_id for volume in disks.volumes.values()] == [second]
    assert stage.release_state("web", first) == "good"


def test_what_is_lost_in_a_reboot_comes_again(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    stage.configure(web.config(source=SOURCE))
    first = snapshot(disks, tmp_path, "one")
    assert agent("reconfigure").code == 0
    (machine_root / "cp/shared/upload").write_text("kept")
    assert agent("stop", "--shutdown").code == 0
    stage.cloud.api.fail("ec2", "DescribeSnapshots", code="UnauthorizedOperation", status=403)
    ran = agent("reconfigure")
    assert ran.code == 3, ran.stderr
    assert "allow ec2:DescribeSnapshots" in ran.stderr
    assert web.answer() == "one"
    assert (machine_root / "srv/web/shared/upload").read_text() == "kept"
    assert [volume.snapshot_id for volume in disks.volumes.values()] == [first]


def test_an_image_of_the_instance_takes_none_of_its_volumes(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path, loops: LoopHost
) -> None:
    stage.configure(web.config(source=SOURCE))
    snapshot(disks, tmp_path, "one")
    assert agent("reconfigure").code == 0
    (old,) = disks.volumes
    assert agent("stop").code == 0
    loops.unplug(old)  # the image is started elsewhere; the old instance keeps its volume
    with Cloud(tags=TAGS, beside=stage.cloud) as cloud:
        disks.add_machine(cloud, LoopHost(machine_root))
        ran = agent("reconfigure", env=cloud.environment())
        assert ran.code == 0, ran.stderr
        assert web.answer() == "one"
        attached = {volume_id: volume.instance_id for volume_id, volume in disks.volumes.items()}
        assert attached.pop(old) == stage.cloud.instance.instance_id
        assert list(attached.values()) == [cloud.instance.instance_id]
        assert agent("stop", env=cloud.environment()).code == 0


@pytest.mark.parametrize("killed", [False, True])
def test_a_release_on_another_volume_of_its_snapshot_is_made_ready_again(
    disks: Disks,
    stage: Stage,
    web: App,
    agent: Agent,
    tmp_path: Path,
    machine_root: Path,
    loops: LoopHost,
    killed: bool,
) -> None:
    """In an image of the instance, and where EC2 has lost the volume."""
    hook = 'hooks = { prepare = ["bin/prepare"] }'
    linked = 'linked_files = ["config/database.yml"]\nlinked_dirs = ["log"]'
    source = f"{EACH}\n{hook}\n{linked}"
    stage.configure(web.config(source=source))
    tree(web.deploy_to / "shared/config", {"database.yml": "of this environment"})
    more = {
        "config/database.yml": "of the snapshot",
        "log/old": "",
        "bin/prepare": "#!/bin/sh\necho made >> prepared\n",
    }
    place = tree(tmp_path / "one", {**web.tree("one"), **more})
    (place / "bin/prepare").chmod(0o755)
    shutil.chown(place, USER)
    taken = disks.snapshot_of(place, tags={"Name": "web"}, filesystem="ext4")
    release = web.deploy_to / "current"

    def is_ready() -> bool:
        link = (release / "config/database.yml").resolve() == web.deploy_to / "shared/config/database.yml"
        texts = [(release / name).read_text() for name in ("REVISION", "prepared")]
        return link and (release / "log").is_symlink() and texts == [f"{taken}\n", "made\n"]

    assert agent("reconfigure").code == 0
    assert is_ready()
    (old,) = disks.volumes
    pid = web.pid()
    ran = agent("reconfigure")
    assert (ran.code, web.pid(), is_ready()) == (0, pid, True)

    assert agent("stop").code == 0
    loops.unplug(old)
    with Cloud(tags=TAGS, beside=stage.cloud) as cloud:
        disks.add_machine(cloud, LoopHost(machine_root))
        env = cloud.environment()
        if killed:  # when the new volume is there, and nothing has been made of it
            (web.deploy_to / "shared/config/database.yml").rename(tmp_path / "aside")
            ran = agent("reconfigure", env=env)
            assert ran.code == 1, ran.stderr
            assert "could not be put back" in ran.stderr and "as its snapshot has it" in ran.stderr
            (tmp_path / "aside").rename(web.deploy_to / "shared/config/database.yml")
        ran = agent("reconfigure", env=env)
        assert ran.code == 0, ran.stderr
        assert (web.answer(), is_ready()) == ("one", True)
        (new,) = set(disks.volumes) - {old}

        assert agent("stop", env=env).code == 0
        ec2 = cloud.api.ec2(cloud.region)
        ec2.detach_volume(VolumeId=new)
        until(lambda: disks.volumes[new].state == "available")
        disks.timing.delete = 60.0  # EC2 shows that it is going
        ec2.delete_volume(VolumeId=new)
        ran = agent("reconfigure", env=env)
        assert ran.code == 0, ran.stderr
        assert (web.answer(), is_ready()) == ("one", True)
        pid = web.pid()
        assert (agent("reconfigure", env=env).code, web.pid()) == (0, pid)
        assert agent("stop", env=env).code == 0


@pytest.mark.timeout(900)
def test_killed_anywhere_it_leaves_no_stray_volume(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    """The machine is carried from one kill to the next, each a little further than the last."""
    stage.configure(web.config(source=SOURCE))
    for version in ("one", "two"):
        wanted = snapshot(disks, tmp_path, version)
        kills = 0
        while killed_at(stage.cloud, machine_root, kills):
            assert len(disks.volumes) <= 2, "the old one and the new one"
            kills += 3
            assert kills < 200
        assert kills > 20, "the run is as long as expected"
        assert web.answer() == version
        assert agent("reconfigure").code == 0
        assert [volume.snapshot_id for volume in disks.volumes.values()] == [wanted]
        assert set(mounted(machine_root)) == {"/cp", "/srv/web"}
        assert (machine_root / "etc/fstab").read_text().count("bind") == 1


@pytest.mark.timeout(900)
def test_a_rollback_killed_anywhere_ends_on_one_of_the_two(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    stage.configure(web.config(source=SOURCE))
    made_of = {}
    for version in ("one", "two"):
        made_of[version] = snapshot(disks, tmp_path, version)
        assert agent("reconfigure").code == 0
    kills, ended = 8, []
    while killed_at(stage.cloud, machine_root, kills, "rollback"):
        assert agent("reconfigure").code == 0
        ended.append(web.answer())
        assert [volume.snapshot_id for volume in disks.volumes.values()] == [made_of[ended[-1]]]
        assert set(mounted(machine_root)) == {"/cp", "/srv/web"}
        if ended[-1] == "one":  # the next is killed later
            assert agent("reconfigure", "--retry").code == 0
        kills += 11
        assert kills < 200
    assert web.answer() == "one"
    assert ended[0] == "two" and len(ended) > 2


def test_snapshot_and_gc_on_the_command_line(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    stage.configure(web.config(source=SOURCE))
    snapshot(disks, tmp_path, "one")
    assert agent("reconfigure").code == 0
    (machine_root / "cp/releases/20260101000000/VERSION").write_text("two")  # as a deploy on the deploy box does
    taken = agent("snapshot", "/cp", "--tag", "Name=web", "--keep", "1", "--json")
    assert taken.code == 0, taken.stderr
    found = json.loads(taken.stdout)
    assert (found["state"], found["mountpoint"]) == ("completed", "/cp")
    assert agent("reconfigure").code == 0
    web_volume = stage.state()["apps"]["web"]
    assert web_volume["revision"] == found["snapshot_id"]
    assert web.answer() == "two"

    assert agent("gc").stdout == "nothing is left over\n"
    assert agent("stop").code == 0
    ((volume_id, volume),) = disks.volumes.items()
    assert volume.attachment
    ec2 = stage.cloud.api.ec2(stage.cloud.region)
    ec2.modify_instance_attribute(
        InstanceId=stage.cloud.instance.instance_id,
        BlockDeviceMappings=[{"DeviceName": volume.attachment.device, "Ebs": {"DeleteOnTermination": False}}],
    )
    disks.terminate_instance()
    with Cloud(tags=TAGS, beside=stage.cloud) as cloud:
        disks.add_machine(cloud, LoopHost(machine_root))
        listed = agent("gc", env=cloud.environment())
        assert volume_id in listed.stdout and "is gone" in listed.stdout
        assert volume_id in disks.volumes
        removed = agent("gc", "--delete", "--json", env=cloud.environment())
        assert [(one["id"], one["fate"]) for one in json.loads(removed.stdout)] == [(volume_id, "deleted")]
        assert disks.volumes == {}


def test_no_snapshot_of_what_is_no_volume(disks: Disks, agent: Agent, machine_root: Path) -> None:
    ran = agent("snapshot", "/", "--tag", "Name=web")
    assert ran.code == 2 and "the root filesystem is not frozen" in ran.stderr
    ran = agent("snapshot", "vol-00000000", "--tag", "Name=web")
    assert ran.code == 2 and "EC2 knows no volume vol-00000000" in ran.stderr


def test_services_wait_for_what_they_run_from(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    stage.configure(web.config(source=SOURCE))
    snapshot(disks, tmp_path, "one")
    assert agent("reconfigure").code == 0
    # As at a boot where runsvdir is there before the mounts.
    outer = machine_root / "etc/sv/web.server"
    before = runit.status(outer)
    assert before
    subprocess.run(["sv", "-w", "10", "down", outer / "service"], check=True)
    subprocess.run(["umount", machine_root / "srv/web"], check=True)
    os.kill(before.pid, signal.SIGKILL)  # runsv, and so everything it says
    deadline = time.monotonic() + 60
    while (now := runit.status(outer)) is None or now.pid in (0, before.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(2)
    with pytest.raises(OSError):
        web.answer(within=0)
    assert runit.status(outer) == now, "it waits, and does not crash"
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "one"


def test_a_tree_of_the_image_stands_in_for_a_snapshot(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    baked = tree(machine_root / "opt/web", web.tree("baked", REVISION="cafe"))
    fallback = ' }, fallback = { type = "image", path = "/opt/web" }'
    stage.configure(web.config(source=SOURCE.replace(" }", fallback, 1)))
    ran = agent("reconfigure")
    assert ran.code == 3, ran.stderr
    assert "no completed snapshot" in ran.stderr
    assert web.answer() == "baked"
    pid = web.pid()
    assert (agent("reconfigure").code, web.pid()) == (3, pid)
    assert baked.is_dir() and mounted(machine_root) == {}
    snapshot(disks, tmp_path, "one")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "one"


def test_from_a_whole_deploy_to_on_a_volume_to_s3(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    stage.configure(web.config(source=SOURCE))
    snapshot(disks, tmp_path, "one")
    assert agent("reconfigure").code == 0
    stage.configure(web.config(extra='linked_dirs = ["log"]'))
    web.publish("two")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "two"
    assert mounted(machine_root) == {} and disks.volumes == {}
    assert web.deploy_to.owner() == "nobody"


def test_what_would_be_hidden_keeps_the_release_that_serves(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    stage.configure(web.config(source=EACH))
    disks.snapshot_of(tree(tmp_path / "one", web.tree("one")), tags={"Name": "web"})
    assert agent("reconfigure").code == 0
    pid, before, volumes = web.pid(), mounted(machine_root), set(disks.volumes)

    stage.configure(web.config(source=SOURCE))
    snapshot(disks, tmp_path, "two")
    ran = agent("reconfigure")
    assert ran.code == 3, ran.stderr
    assert "there are files in it" in ran.stderr and "leave out mountpoint" in ran.stderr
    assert (web.answer(), web.pid(), mounted(machine_root), set(disks.volumes)) == ("one", pid, before, volumes)

    stage.configure(web.config(source=SOURCE.replace(' mountpoint = "/cp",', "")))
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "two"
    assert set(mounted(machine_root)) == {"/srv/web"} and len(disks.volumes) == 1


def test_from_volumes_of_one_kind_to_another_and_to_s3(
    disks: Disks, stage: Stage, web: App, agent: Agent, tmp_path: Path, machine_root: Path
) -> None:
    def points() -> set[str]:
        return set(mounted(machine_root))

    stage.configure(web.config(source=SOURCE))
    snapshot(disks, tmp_path, "one")
    assert agent("reconfigure").code == 0
    stage.configure(web.config(source=EACH))
    second = disks.snapshot_of(tree(tmp_path / "two", web.tree("two")), tags={"Name": "web"})
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "two"
    assert points() == {f"/srv/web/releases/{web.current}"}
    assert [volume.snapshot_id for volume in disks.volumes.values()] == [second]
    # Nobody but root may move the directory that the volume is mounted in.
    assert {path.owner() for path in (web.deploy_to, web.deploy_to / "releases")} == {"root"}

    stage.configure(web.config())
    web.publish("three")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "three"
    assert points() == set() and disks.volumes == {}
    assert web.releases == [web.current]
    assert web.deploy_to.owner() == "nobody"

    stage.configure(web.config(source=SOURCE.replace("/cp", "/cp2")))
    ran = agent("reconfigure")
    assert ran.code == 3, ran.stderr
    assert "there are files in it" in ran.stderr, "what S3 brought is in the way, and is not hidden"
    assert web.answer() == "three"
