"""An instance boots, and is what its tags say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bootagent import user_data
from bootagent.sandbox.metadata import USER_DATA, MetadataServer
from bootagent.telling import status_file
from tests import waiting
from tests.boot.image import Image
from tests.boot.report import FIGURE
from tests.boot.scene import Scene, ask, port_of, wait_for_version
from tests.boot.vm import PATIENCE, Vm

pytestmark = pytest.mark.timeout(1800)
Record = Callable[[str, object], None]


def status(vm: Vm, wait: float = PATIENCE) -> Any:
    """The whole status, once a run has ended."""
    return vm.json("bootagent", "status", "--json", "--wait", f"{wait:g}", within=wait + 60)


def ended(vm: Vm, *, after: str = "") -> Any:
    """How the last run of this boot ended, waited for; quicker than ``status``. ``after``: not the run of this name."""
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        found.update(json.loads(vm.run("cat", status_file.PATH).out or "{}"))
        return bool(found.get("run", after) != after)

    until(has_ended, "a run has ended")
    return found


def after_a_run(vm: Vm, *argv: str) -> Any:
    """How the run ended that a command leads to."""
    before = ended(vm)["run"]
    vm.check(*argv)
    return ended(vm, after=before)


def current(vm: Vm, app: str = "web") -> str:
    """The release that serves."""
    return vm.check("readlink", f"/srv/{app}/current").strip().rpartition("/")[2]


def stopped(vm: Vm, app: str = "web") -> list[str]:
    """The versions of the app that were stopped in order, one after the other."""
    return vm.check("cat", f"/srv/{app}/shared/log/stopped").split()


def until(holds: Callable[[], bool], what: str, within: float = PATIENCE) -> None:
    """Wait until something is so, on an emulated machine."""
    waiting.until(holds, what, within, pause=0.2)


def systemd_says(vm: Vm, *properties: str) -> dict[str, str]:
    """Properties of the agent's unit."""
    said = vm.check("systemctl", "show", "bootagent.service", *(f"--property={name}" for name in properties))
    return dict(line.split("=", 1) for line in said.splitlines())


def memory(vm: Vm) -> tuple[float, float]:
    """RSS and PSS of the resident daemon, in MiB: proc_pid_smaps_rollup(5)."""
    pid = systemd_says(vm, "MainPID")["MainPID"]
    lines = vm.check("cat", f"/proc/{pid}/smaps_rollup").splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kilobytes["Rss"] / 1024, kilobytes["Pss"] / 1024


def test_first_boot_new_releases_and_a_reboot_without_s3(
    scene: Scene, systemd_image: Image, record_property: Record
) -> None:
    scene.publish("one")
    record_property(FIGURE, f"the image: made in {systemd_image.seconds:.0f} s, or kept from before")
    vm = scene.machine(systemd_image)
    vm.kernel_words = ("systemd.journald.forward_to_console=0",)
    with vm:
        # The first boot, by tags alone. The console gets its end, in one line.
        first = wait_for_version(vm, "one")
        assert first.environment == "staging"
        assert status(vm)["exit_code"] == 0
        (told,) = [line for line in vm.console_text().splitlines() if "bootagent" in line]
        assert told.startswith(f"bootagent: done, web: now runs release {current(vm)}")
        assert vm.check("systemctl", "is-system-running", "--wait").strip() == "running"
        story = f"done: web: now runs release {current(vm)}"
        until(lambda: systemd_says(vm, "StatusText")["StatusText"].startswith(story), "one line that tells the story")
        boot = vm.json("bootagent", "timeline", "--json")["boot"]
        stages = ", ".join(f"{stage['name']} {stage['end'] - stage['begin']:.1f}" for stage in boot["stages"])
        agent = boot["healthy"] - boot["stages"][-1]["end"]
        figure = f"boot to healthy: {boot['healthy']:.1f} s ({stages}, its run {agent:.1f})"
        record_property(FIGURE, figure)

        # It stays, and is small.
        rss, pss = memory(vm)
        record_property(FIGURE, f"the daemon at rest: RSS {rss:.1f} MiB, PSS {pss:.1f} MiB")
        assert rss <= 12
        assert pss <= 8

        # A restart of the daemon is none of the services; neither is a hangup with nothing new.
        assert after_a_run(vm, "systemctl", "restart", "bootagent")["exit_code"] == 0
        assert ask(vm) == first
        scene.publish("two")
        assert after_a_run(vm, "systemctl", "reload", "bootagent")["exit_code"] == 0
        second = ask(vm)
        assert second.version == "two"
        assert after_a_run(vm, "systemctl", "reload", "bootagent")["exit_code"] == 0
        assert ask(vm) == second
        assert stopped(vm) == ["one"]

        # The package is upgraded in the running machine.
        release, daemon = current(vm), systemd_says(vm, "MainPID")
        assert after_a_run(vm, "dpkg", "--install", "/opt/testbed/bootagent.deb")["exit_code"] == 0
        assert systemd_says(vm, "MainPID") != daemon
        assert ask(vm) == second

        # A reboot while S3 is away: the services are stopped in order, and the old release serves meanwhile.
        scene.wire.down()
        scene.publish("three")
        vm.reboot()
        again = wait_for_version(vm, "two")
        assert current(vm) == release
        assert again.pid != second.pid
        assert stopped(vm) == ["one", "two"]
        until(lambda: ended(vm)["exit_code"] == 3, "degraded: it says that it could not look")
        assert ask(vm) == again

        # S3 is back: nobody has to do anything.
        scene.wire.up()
        wait_for_version(vm, "three")
        until(lambda: ended(vm)["exit_code"] == 0, "all is well again")


def test_first_boot_waits_for_metadata_for_tags_and_for_s3(scene: Scene, systemd_image: Image) -> None:
    """Metadata slow and failing, the role's tag late, S3 away: it keeps trying, and converges by itself."""
    scene.publish("one")
    scene.cloud.remove_tag("Role")
    scene.cloud.metadata.faults.delay = 0.5
    scene.cloud.metadata.faults.failures = 5
    scene.wire.down()
    with scene.machine(systemd_image) as vm:
        until(lambda: '"event": "waiting"' in vm.run("journalctl", "-u", "bootagent", "-o", "cat").out, "it says so")
        # On a busy host a try may have given up before this can look at it; then at another one.
        until(lambda: vm.run("bootagent", "status", "--wait", "1").code == 75, "a run that waits for the tag")
        assert vm.check("systemctl", "is-active", "multi-user.target").strip() == "active"  # it blocks nobody
        scene.cloud.set_tag("Role", "web")
        said = "cannot read s3://deploys/web/staging.json"  # on a busy host, metadata may be too slow for a run or two
        until(lambda: said in vm.run("bootagent", "status").out, "a run that got as far as S3 and failed")
        assert ended(vm)["exit_code"] == 1
        scene.wire.up()
        wait_for_version(vm, "one")
        until(lambda: ended(vm)["exit_code"] == 0, "all is well")


def test_reviewed_instance_is_imaged_and_boots_as_production(scene: Scene, systemd_image: Image) -> None:
    """The tags alone say what an image runs: everything, the database first; then, on another instance, one service."""
    revision = scene.publish("one", environments=("review", "production"))
    scene.publish("one", "jobs", environments=("review", "production"))
    scene.cloud.remove_tag("Role")
    scene.cloud.set_tag("Environment", "review")
    vm = scene.machine(systemd_image, "review")
    vm.kernel_words = ("testbed.modes",)
    with vm:
        assert wait_for_version(vm, "one").environment == "review"
        wait_for_version(vm, "one", "jobs")
        assert ended(vm)["exit_code"] == 0
        assert vm.check("redis-cli", "ping").strip() == "PONG"
        spans = vm.json("bootagent", "timeline", "--json")["spans"]
        serve = {span["app"]: span for span in spans if span["phase"] == "serve"}
        assert serve["databases"]["end"] <= serve["web"]["begin"]
        reviewed = current(vm)
        vm.power_off()  # as EC2 does before it makes an image
        disk = vm.disk.copied(scene.place / "production.qcow2")
    other = replace(scene.cloud.instance, instance_id="i-0fedcba9876543210")
    tags = {"Service": "web.server", "Environment": "production"}
    with MetadataServer(other, tags=tags) as metadata:
        vm = scene.machine(systemd_image, "production", disk=disk, metadata=port_of(metadata.endpoint))
        vm.kernel_words = ("testbed.modes",)
        with vm:
            until(lambda: _environment(vm) == "production", "the app runs in its new environment")
            found = status(vm)
            assert found["exit_code"] == 0
            assert found["instance_id"] == other.instance_id
            assert found["last_run"]["environment"] == "production"
            assert list(found["apps"]) == ["web"]
            releases = found["apps"]["web"]["releases"]
            assert releases[current(vm)]["revision"] == revision
            assert current(vm) == reviewed, "the same revision, so the release that the image brought"
            # What production does not run is not there any more.
            assert vm.check("ls", "/etc/sv").split().count("web.server") == 1
            assert not {"jobs.worker", "databases.redis"} & set(vm.check("ls", "/etc/sv", "/etc/service").split())
            assert vm.run("redis-cli", "ping").code != 0
            with pytest.raises(OSError, match=r".*"):
                ask(vm, "jobs")


def _environment(vm: Vm) -> str:
    try:
        return ask(vm).environment
    except (OSError, ValueError):
        return ""


def test_role_by_user_data_under_cloud_init_lasts_over_a_reboot(scene: Scene, systemd_image: Image) -> None:
    scene.publish("one", "jobs")
    scene.cloud.remove_tag("Role")
    scene.cloud.metadata.put(USER_DATA, user_data.script({"Role": "worker"}))
    vm = scene.machine(systemd_image)
    # What cloud-init starts is told where S3 is by the environment that all units get.
    vm.kernel_words = ("ci.ds=Ec2", f"systemd.setenv=AWS_ENDPOINT_URL=http://10.0.2.2:{scene.wire.port}")
    with vm:
        # The boot's run waits for the tag, and lets user-data's pass.
        wait_for_version(vm, "one", "jobs", within=2 * PATIENCE)
        # Its verdict is on a whole Debian, with locales and SSH, which this machine has not.
        vm.run("cloud-init", "status", "--wait", within=2 * PATIENCE)
        until(lambda: ended(vm)["exit_code"] == 0, "all is well")
        runs = vm.json("bootagent", "history", "--json")
        assert {run["command"] for run in runs} >= {"run", "reconfigure"}, runs
        assert 0 in [run["exit_code"] for run in runs if run["command"] == "reconfigure"], runs
        release = current(vm, "jobs")
        # cloud-init runs user-data once in an instance's life.
        vm.reboot()
        wait_for_version(vm, "one", "jobs", within=2 * PATIENCE)
        assert ended(vm)["exit_code"] == 0
        assert ended(vm)["command"] == "run"
        assert current(vm, "jobs") == release


def is_down(vm: Vm, app: str) -> bool:
    """Whether nobody answers for the app."""
    try:
        ask(vm, app)
    except (OSError, ValueError):
        return True
    return False


def test_machine_whose_init_is_runit(scene: Scene, runit_image: Image) -> None:
    scene.publish("one")
    with scene.machine(runit_image) as vm:
        assert wait_for_version(vm, "one").environment == "staging"
        assert ended(vm)["exit_code"] == 0
        assert vm.check("readlink", "/proc/1/exe").strip() == "/usr/sbin/runit"
        assert vm.check("sv", "check", "bootagent").startswith("ok:")
        vm.check("sv", "hup", "bootagent")
        scene.publish("two")
        vm.reboot()
        wait_for_version(vm, "two")
        assert stopped(vm)[0] == "one"
        assert ended(vm)["exit_code"] == 0
