"""A role's data volumes: made, found, waited for, formatted once and never again, and grown."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from bootagent.sandbox.loop_host import LoopHost
from tests.conftest import TAGS, Agent
from tests.host.stage import App, Stage

pytest_plugins = ("tests.host.disks",)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")

OWN = """
[roles.web.volumes.data]
mountpoint = "/data"
user = "nobody"
volume = { size = "1GiB" }
within = "20s"
"""
LASTING = OWN + 'tags = { Name = "db {environment}" }\n'


@pytest.fixture
def web(disks: Disks, stage: Stage) -> App:
    app = stage.app()
    app.publish("one")
    return app


def configure(stage: Stage, web: App, volumes: str) -> None:
    stage.configure(web.config(), roles='[roles.web]\napps = ["web"]\n' + volumes)


def test_a_blank_one_is_made_formatted_and_mounted_once(
    disks: Disks, stage: Stage, web: App, agent: Agent, machine_root: Path
) -> None:
    configure(stage, web, OWN)
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    ((volume_id, volume),) = disks.volumes.items()
    assert volume.attachment and volume.attachment.delete_on_termination
    assert (machine_root / "data").is_mount()
    assert (machine_root / "data").owner() == "nobody"
    (machine_root / "data/precious").write_text("kept")

    stage.cloud.api.forget_calls()
    assert agent("reconfigure").code == 0
    assert [call.service for call in stage.cloud.api.calls] == ["s3"], "with nothing to do EC2 is not asked"

    assert agent("stop").code == 0
    assert not (machine_root / "data").exists()
    (machine_root / "var/lib/bootagent/volumes/role.web.data.json").unlink()  # what an instance may forget
    assert agent("reconfigure").code == 0
    assert (machine_root / "data/precious").read_text() == "kept"
    assert list(disks.volumes) == [volume_id]


def test_nothing_starts_without_its_volume(
    disks: Disks, stage: Stage, web: App, agent: Agent, machine_root: Path
) -> None:
    configure(stage, web, OWN)
    stage.cloud.api.fail("ec2", "CreateVolume", code="UnauthorizedOperation", status=403, times=99)
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "volume data: attach the volume" in ran.stderr
    assert "allow ec2:CreateVolume and ec2:CreateTags to the instance's role" in ran.stderr
    assert not (web.deploy_to / "current").exists()
    assert (machine_root / "etc/service").is_dir() and not list((machine_root / "etc/service").iterdir())


@pytest.fixture
def second(stage: Stage, disks: Disks) -> Iterator[Cloud]:
    """The instance that replaces the first one."""
    with Cloud(tags=TAGS, beside=stage.cloud) as cloud:
        yield cloud


def test_it_survives_the_replacement_of_its_instance(
    disks: Disks, stage: Stage, web: App, agent: Agent, machine_root: Path, second: Cloud, tmp_path: Path
) -> None:
    configure(stage, web, LASTING)
    assert agent("reconfigure").code == 0
    (volume_id,) = disks.volumes
    (machine_root / "data/precious").write_text("kept")
    assert agent("stop").code == 0

    # The same machine plays the new instance, on whose disk there is nothing of the old one.
    other = LoopHost(machine_root)
    disks.add_machine(second, other)
    unmounted = threading.Event()

    def go() -> None:
        time.sleep(3)
        subprocess.run(["rm", "-rf", machine_root / "var/lib/bootagent", machine_root / "etc/fstab"], check=False)
        disks.terminate_instance(stage.cloud)
        unmounted.set()

    # Until its last holder has gone it is waited for.
    for record in (machine_root / "var/lib/bootagent/volumes").iterdir():
        record.unlink()
    threading.Thread(target=go).start()
    ran = agent("reconfigure", env=second.environment())
    assert unmounted.is_set()
    assert ran.code == 0, ran.stderr
    assert (machine_root / "data/precious").read_text() == "kept"
    assert disks.volumes[volume_id].instance_id == second.instance.instance_id
    attachment = disks.volumes[volume_id].attachment
    assert attachment and not attachment.delete_on_termination


def test_two_that_match_are_one_too_many(
    disks: Disks, stage: Stage, web: App, agent: Agent, machine_root: Path
) -> None:
    configure(stage, web, LASTING)
    ec2 = stage.cloud.api.ec2(stage.cloud.region)
    for _ in range(2):
        ec2.create_volume(
            AvailabilityZone=stage.cloud.instance.zone,
            Size=1,
            TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": "Name", "Value": "db staging"}]}],
        )
    ran = agent("reconfigure")
    assert ran.code == 1
    assert all(volume_id in ran.stderr for volume_id in disks.volumes)
    assert all(volume.attachment is None for volume in disks.volumes.values())


def test_one_that_is_not_ours_is_not_formatted(
    disks: Disks, stage: Stage, web: App, agent: Agent, machine_root: Path
) -> None:
    configure(stage, web, LASTING)
    ec2 = stage.cloud.api.ec2(stage.cloud.region)
    made = ec2.create_volume(
        AvailabilityZone=stage.cloud.instance.zone,
        Size=1,
        TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": "Name", "Value": "db staging"}]}],
    )
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "was not made to be formatted by bootagent" in ran.stderr
    with disks.volumes[made["VolumeId"]].file.open("rb") as file:
        assert not any(file.read(1 << 20))


def test_the_filesystem_grows_with_its_volume(
    disks: Disks, stage: Stage, web: App, agent: Agent, machine_root: Path
) -> None:
    configure(stage, web, OWN)
    assert agent("reconfigure").code == 0
    (volume_id,) = disks.volumes
    before = os.statvfs(machine_root / "data").f_blocks
    stage.cloud.api.ec2(stage.cloud.region).modify_volume(VolumeId=volume_id, Size=2)
    deadline = time.monotonic() + 60
    while int((machine_root / "sys/block/nvme1n1/size").read_text() or "0") * 512 < 2 << 30:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert agent("reconfigure").code == 0
    assert os.statvfs(machine_root / "data").f_blocks > 1.9 * before


def test_one_from_a_snapshot_and_one_in_error(
    disks: Disks, stage: Stage, web: App, agent: Agent, machine_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "seed").mkdir()
    (tmp_path / "seed/dump").write_text("seed")
    seed = disks.snapshot_of(tmp_path / "seed", tags={"Name": "seed"}, filesystem="ext4")
    configure(stage, web, '[roles.web.volumes.data]\nmountpoint = "/data"\nsnapshot = { Name = "seed" }\n')
    disks.faults.failing_volumes = 1
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert (machine_root / "data/dump").read_text() == "seed"
    assert [volume.snapshot_id for volume in disks.volumes.values()] == [seed]


def test_another_environment_has_a_volume_of_its_own(
    disks: Disks, stage: Stage, web: App, agent: Agent, machine_root: Path
) -> None:
    roles = '[roles.web]\napps = ["web"]\n' + LASTING
    stage.configure(web.config(url=f"s3://deploys/{web.key}"), roles=roles)
    assert agent("reconfigure").code == 0
    (staging,) = disks.volumes
    (machine_root / "data/staging").write_text("x")
    pid = web.pid()
    stage.cloud.set_tag("Environment", "production")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.pid() != pid, "nobody writes to the other one any more"
    assert not (machine_root / "data/staging").exists()
    attached = {volume_id: volume.instance_id for volume_id, volume in disks.volumes.items()}
    assert attached.pop(staging) is None, "it is kept, and free for whoever wants it"
    assert list(attached.values()) == [stage.cloud.instance.instance_id]
    stage.cloud.set_tag("Environment", "staging")
    assert agent("reconfigure").code == 0
    assert (machine_root / "data/staging").read_text() == "x"


def test_a_role_without_volumes_lets_them_go(
    disks: Disks, stage: Stage, web: App, agent: Agent, machine_root: Path
) -> None:
    configure(stage, web, LASTING)
    assert agent("reconfigure").code == 0
    (volume_id,) = disks.volumes
    stage.configure(web.config())
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "one"
    assert disks.volumes[volume_id].attachment is None
    assert "/data" not in (machine_root / "etc/fstab").read_text()
