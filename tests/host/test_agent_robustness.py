"""What happens around a run: closed pipes, odd users, broken neighbours, other people's data."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.supervisor import Supervisor
from tests.conftest import Agent, agent_argv
from tests.host.stage import App, Stage
from tests.host.test_agent_crash import run_killed_at

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_reader_that_has_gone_does_not_stop_the_work(stage: Stage, web: App, cloud: Cloud, form: str) -> None:
    """As in ``reconfigure 2>&1 | head -1``, or with a journal that restarts."""
    web.publish("one")
    reading, writing = os.pipe()
    process = subprocess.Popen(
        agent_argv(stage.root, "reconfigure", "--log", form),
        env=cloud.process_environment(),
        stdout=writing,
        stderr=writing,
    )
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    assert process.wait(60) == 0
    assert web.answer() == "one"
    assert stage.release_state("web", web.current) == "good"


def test_data_in_a_release_that_serves_is_not_replaced_by_a_link(stage: Stage, web: App, agent: Agent) -> None:
    web.publish("one", web.tree("one", uploads__customer="precious"))
    assert agent("reconfigure").code == 0
    stage.configure(web.config(extra='linked_dirs = ["uploads"]'))
    ran = agent("reconfigure")
    assert ran.code == 3
    assert "uploads is no link and not empty" in ran.stderr
    assert (web.deploy_to / "current/uploads/customer").read_text() == "precious"
    assert web.answer() == "one"
    web.publish("two", web.tree("two", uploads__customer="in the bundle"))
    assert agent("reconfigure").code == 0
    assert (web.deploy_to / "current/uploads").is_symlink()


@needs_root
def test_nobody_else_can_take_the_lock(stage: Stage, web: App, agent: Agent) -> None:
    web.publish("one")
    assert agent("reconfigure").code == 0
    lock = stage.root / "run/bootagent/lock"
    tried = subprocess.run(["flock", "--nonblock", str(lock), "true"], user="nobody", capture_output=True, check=False)
    assert tried.returncode != 0


def test_an_app_whose_directories_were_swapped_fails_alone(stage: Stage, web: App, agent: Agent) -> None:
    """Its user owns them; what root does must neither follow the link nor let the neighbour wait."""
    other = stage.app("other")
    stage.configure(web.config(), other.config())
    for app in (web, other):
        app.publish("one")
    assert agent("reconfigure").code == 0
    releases = web.deploy_to / "releases"
    releases.rename(web.deploy_to / "mine")
    releases.symlink_to(other.deploy_to / "releases")
    before = other.releases
    for version in ("two", "three", "four", "five", "six", "seven"):
        other.publish(version)
        web.publish(version)
        ran = agent("reconfigure")
        assert ran.code in (1, 3)
        assert "'releases' is a link or no directory" in ran.stderr
        assert other.answer() == version
    assert set(before) & set(other.releases) or len(other.releases) == 5
    assert not (other.deploy_to / "releases" / ".partial").exists()


@needs_root
def test_a_service_follows_its_user(stage: Stage, web: App, agent: Agent) -> None:
    web.publish("one")
    for user in ("nobody", "daemon", "root", "nobody"):
        stage.configure(web.config(user=user))
        ran = agent("reconfigure")
        assert ran.code == 0, ran.stderr
        assert Path(f"/proc/{web.pid()}").stat().st_uid == pwd.getpwnam(user).pw_uid
        assert web.answer() == "one"


def test_a_strict_umask_is_no_hindrance(stage: Stage, web: App, cloud: Cloud) -> None:
    web.publish("one")
    ran = subprocess.run(
        agent_argv(stage.root, "reconfigure"),
        env=cloud.process_environment(),
        umask=0o077,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_a_missing_supervisor_is_not_the_release_s_fault(cloud: Cloud, machine_root: Path, agent: Agent) -> None:
    stage = Stage(cloud, machine_root)
    web = stage.app()
    stage.configure(web.config())
    web.publish("one")
    assert agent("reconfigure").code == 1
    with Supervisor(machine_root / "etc/service", log=machine_root / "var/log/runsvdir.log"):
        ran = agent("reconfigure")
        assert ran.code == 0, ran.stderr
        assert web.answer() == "one" and len(web.releases) == 1


def test_status_does_not_tell_of_another_run(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    web.publish("one")
    assert agent("reconfigure").code == 0
    assert agent("status").code == 0
    web.publish("two")
    assert run_killed_at(stage.root, cloud, 6) < 0
    status = agent("status")
    assert status.code == 75 and "interrupted" in status.stdout
    assert agent("reconfigure").code == 0
    assert agent("status").code == 0
    # The same state in another boot, or on another machine made from an image of this one.
    path = stage.root / "var/lib/bootagent/state.json"
    path.write_text(path.read_text().replace(stage.state()["last_run"]["boot_id"], "another-boot"))
    status = agent("status")
    assert status.code == 75 and "not yet in this boot" in status.stdout


def test_an_odd_service_name_in_a_bundle_is_refused(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(service=""))
    web.publish("one")
    assert agent("reconfigure").code == 0
    good = web.current
    for name in ("n" * 250, "a b;c"):
        web.publish(name, {**web.tree("two"), f"config/service/{name}/run": "#!/bin/sh\nsleep 1\n"})
        ran = agent("reconfigure")
        assert ran.code == 3, ran.stderr
        assert "is no name for a service" in ran.stderr
        assert web.current == good
    web.publish("three")
    assert agent("reconfigure").code == 0


def test_a_pointer_moved_back_to_what_serves_makes_no_new_release(stage: Stage, web: App, agent: Agent) -> None:
    web.publish("one")
    assert agent("reconfigure").code == 0
    pid, release = web.pid(), web.current
    bad = {**web.tree("bad"), "server.py": "raise SystemExit(1)\n"}
    web.publish("bad", bad)
    assert agent("reconfigure").code == 3
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.current == release and web.pid() != pid  # it was stopped for the bad one, and not since
    pid = web.pid()
    web.publish("bad", bad)
    assert agent("reconfigure").code == 3
    assert web.pid() == pid, "known to be bad, it is not tried again"


def test_what_a_program_prints_cannot_write_on_the_terminal(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(extra=r"""hooks = { prepare = ["printf", '\033]0;owned\007'] }"""))
    web.publish("one")
    assert agent("reconfigure", "--log", "text").code == 0
    stage.configure(web.config(extra=r"""hooks = { prepare = ["sh", "-c", "printf '\\033]0;owned'; exit 1"] }"""))
    web.publish("two")
    ran = agent("reconfigure", "--log", "text")
    assert ran.code == 3
    assert "\x1b" not in ran.stderr and "\\x1b]0;owned" in ran.stderr


def test_a_hook_does_not_outlive_a_killed_run(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    """Or the next run would start a second one beside it."""
    stage.configure(web.config(extra="""hooks = { prepare = ["sh", "-c", "echo begin >> ../log; exec sleep 4"] }"""))
    web.publish("one")
    process = subprocess.Popen(
        agent_argv(stage.root, "reconfigure"), env=cloud.process_environment(), stderr=subprocess.DEVNULL
    )
    log = web.deploy_to / "releases/log"
    while not log.exists():
        assert process.poll() is None
    process.kill()
    process.wait()
    left = subprocess.run(["pgrep", "-f", "^sleep 4$"], capture_output=True, text=True, check=False).stdout.split()
    assert not [pid for pid in left if str(stage.root) in str(Path(f"/proc/{pid}/cwd").readlink())]
    assert agent("reconfigure").code == 0
