"""From tags and an S3 bundle to running services: what a boot and its reruns leave on a machine."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bootagent.sandbox.cloud import Cloud
from tests.conftest import Agent
from tests.host.stage import BUCKET, USER, App, Stage, compressed, tar

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def test_boot_makes_a_capistrano_layout_with_a_healthy_service(stage: Stage, web: App, agent: Agent) -> None:
    extra = 'linked_files = [{ path = "config/db.yml", from = "/etc/web/db.yml" }]\nlinked_dirs = ["log", "tmp/pids"]'
    stage.configure(web.config(extra=extra))
    (stage.root / "etc/web").mkdir()
    (stage.root / "etc/web/db.yml").write_text("adapter: pg\n")
    revision = web.publish("one", web.tree("one", log__old="gone when linked"))

    ran = agent("reconfigure")

    assert ran.code == 0, ran.stderr
    assert web.answer() == "one"
    [release] = web.releases
    assert re.fullmatch(r"\d{14}", release)
    assert web.current == release
    here = web.deploy_to / "releases" / release
    assert (here / "REVISION").read_text().strip() == revision
    assert (web.deploy_to / "revisions.log").read_text().count(f"(at {revision}) deployed as release {release}") == 1
    assert (here / "config/db.yml").readlink() == web.deploy_to / "shared/config/db.yml"
    assert (here / "config/db.yml").read_text() == "adapter: pg\n"
    assert (here / "log").readlink() == web.deploy_to / "shared/log"
    assert (here / "tmp/pids").is_dir()
    assert stage.release_state("web", release) == "good"
    assert json.loads(agent("status", "--json").stdout)["apps"]["web"]["services"]["web.server"]["state"] == "run"


@needs_root
def test_nothing_of_the_app_belongs_to_or_runs_as_root(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(
        web.config(extra='hooks = { prepare = ["sh", "-c", "id -un > prepared-by"] }\nlinked_dirs = ["log"]')
    )
    web.publish("one")
    assert agent("reconfigure").code == 0
    nobody = pwd.getpwnam(USER).pw_uid
    assert {path.lstat().st_uid for path in (web.deploy_to / "releases").rglob("*") if not path.is_symlink()} == {
        nobody
    }
    assert (web.deploy_to / "current/prepared-by").read_text().strip() == USER
    assert Path(f"/proc/{web.pid()}").stat().st_uid == nobody
    # His are the files; the directories are root's, so that he cannot slip a link under what root writes.
    assert web.service().stat().st_uid == 0
    assert (web.service() / "run").stat().st_uid == nobody
    assert (stage.root / "etc/sv/web.server/run").stat().st_uid == 0
    # With that, he can work his service without root.
    done = subprocess.run(["sv", "restart", str(web.service())], user=USER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_rerun_with_nothing_new_changes_nothing(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    web.publish("one")
    assert agent("reconfigure").code == 0
    before = web.pid(), web.releases, (web.deploy_to / "revisions.log").read_text(), _tree(stage.root / "etc")
    cloud.api.forget_calls()

    ran = agent("reconfigure")

    assert ran.code == 0, ran.stderr
    assert (web.pid(), web.releases, (web.deploy_to / "revisions.log").read_text(), _tree(stage.root / "etc")) == before
    assert [(call.service, call.action) for call in cloud.calls] == [("s3", "GetObject")]


def test_an_s3_role_never_asks_ec2(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    web.publish("one")
    cloud.api.forget_calls()
    assert agent("reconfigure").code == 0
    assert cloud.count("ec2") == 0
    assert cloud.count("sts") == 0


def test_a_new_revision_rolls_forward_and_old_releases_are_pruned(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(extra="keep_releases = 2"))
    seen = []
    for version in ("one", "two", "three"):
        web.publish(version)
        assert agent("reconfigure").code == 0
        assert web.answer() == version
        seen.append(web.current)
    assert seen == sorted(set(seen))
    assert web.releases == seen[1:]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst", ".tar.xz"])
def test_an_archive_alone_is_enough(stage: Stage, web: App, agent: Agent, cloud: Cloud, suffix: str) -> None:
    stage.configure(web.config(url=f"s3://{BUCKET}/web{suffix}", service=""))
    cloud.put(BUCKET, f"web{suffix}", compressed(tar(web.tree("one")), suffix))
    assert agent("reconfigure").code == 0
    assert (web.deploy_to / "current/VERSION").read_text() == "one"
    assert agent("reconfigure").code == 0
    assert len(web.releases) == 1
    cloud.put(BUCKET, f"web{suffix}", compressed(tar(web.tree("two")), suffix))
    assert agent("reconfigure").code == 0
    assert (web.deploy_to / "current/VERSION").read_text() == "two"


def test_an_empty_environment_is_enough(stage: Stage, web: App, cloud: Cloud) -> None:
    """At boot there is no PATH, no HOME, no LANG."""
    web.publish("one")
    bare = [f"{name}={value}" for name, value in cloud.environment().items() if name.startswith("AWS_")]
    ran = subprocess.run(
        ["/usr/bin/env", "-i", *bare, sys.executable, "-m", "bootagent", "run", "--once", "--root", str(stage.root)],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert web.answer() == "one"


def test_the_standard_variables_point_it_at_any_simulator(stage: Stage, web: App, cloud: Cloud) -> None:
    """One without instance metadata, with credentials of its own: tags come from the command line."""
    web.publish("one")
    variables = {
        "AWS_ENDPOINT_URL_S3": cloud.api.endpoint,
        "AWS_REGION": cloud.region,
        "AWS_ACCESS_KEY_ID": "other",
        "AWS_SECRET_ACCESS_KEY": "other",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    words = ["reconfigure", "--root", str(stage.root), "--tag", "Role=web", "--tag", "Environment=staging"]
    ran = subprocess.run(
        [sys.executable, "-m", "bootagent", *words], env=variables, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert web.answer() == "one"


def test_tags_choose_what_runs_and_a_changed_role_retires_the_old(
    stage: Stage, web: App, agent: Agent, cloud: Cloud
) -> None:
    worker = stage.app("worker")
    roles = '[roles.web]\napps = ["web"]\n[roles.worker]\napps = ["worker"]\n[roles.review]\napps = "*"\n'
    stage.configure(web.config(), worker.config(), roles=roles)
    web.publish("web one")
    worker.publish("worker one")
    assert agent("reconfigure").code == 0
    assert web.answer() == "web one"
    assert not worker.deploy_to.exists()

    cloud.set_tag("Role", "worker")
    assert agent("reconfigure").code == 0
    assert worker.answer() == "worker one"
    assert not (stage.root / "etc/service/web.server").is_symlink()
    assert not web.service().exists()
    with pytest.raises(OSError):
        web.answer(within=0)

    cloud.set_tag("Role", "review")
    assert agent("reconfigure").code == 0
    assert (web.answer(), worker.answer()) == ("web one", "worker one")


def test_an_unknown_role_is_refused_before_anything_changes(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    web.publish("one")
    cloud.set_tag("Role", "wbe")
    ran = agent("reconfigure")
    assert ran.code == 2
    assert "no role 'wbe'" in ran.stderr and "did you mean 'web'?" in ran.stderr
    assert not web.deploy_to.exists()


def test_an_argument_wins_over_the_tag(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    web.publish("one")
    cloud.set_tag("Role", "other")
    assert agent("reconfigure", "--tag", "Role=web").code == 0
    assert web.answer() == "one"


def test_two_apps_side_by_side_do_not_wait_for_a_broken_neighbour(stage: Stage, web: App, agent: Agent) -> None:
    other = stage.app("other")
    stage.configure(web.config(), other.config())
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "other" in ran.stderr and "NoSuchKey" in ran.stderr
    assert web.answer() == "one"
    other.publish("other one")
    assert agent("reconfigure").code == 0
    assert (web.answer(), other.answer()) == ("one", "other one")


def test_plan_says_what_would_be_done_and_changes_nothing(stage: Stage, web: App, agent: Agent) -> None:
    web.publish("one")
    before = _tree(stage.root)
    ran = agent("plan", "--json")
    assert ran.code == 0, ran.stderr
    [lane] = json.loads(ran.stdout)
    assert lane["intent"] == "deploy"
    verdicts = [step["verdict"] for step in lane["steps"]]
    assert verdicts[0] == "would do" and set(verdicts[1:]) == {"would check"}
    assert _tree(stage.root) == before
    assert agent("reconfigure").code == 0
    [lane] = json.loads(agent("plan", "--json").stdout)
    assert lane["intent"] == "keep"
    assert {step["verdict"] for step in lane["steps"]} == {"is so"}


def test_the_prepare_hook_has_what_it_needs_and_nothing_more(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(extra='hooks = { prepare = ["bin/prepare", "a b"] }'))
    web.publish(
        "one", web.tree("one", bin__prepare='#!/bin/sh\necho "$@" > arguments; env > environment; pwd > where\n')
    )
    assert agent("reconfigure", env={"LEAK": "me"}).code == 0
    here = web.deploy_to / "current"
    assert (here / "arguments").read_text() == "a b\n"
    assert (here / "where").read_text().strip() == str(here.resolve())
    environment = dict(line.split("=", 1) for line in (here / "environment").read_text().splitlines())
    assert "LEAK" not in environment and not any(name.startswith("AWS") for name in environment)
    assert environment["BOOTAGENT_ROLE"] == "web" and environment["BOOTAGENT_ENVIRONMENT"] == "staging"


def test_a_changed_configuration_file_restarts_the_services(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    stage.configure(web.config(extra=f'linked_files = [{{ path = "config/key", from = "s3://{BUCKET}/key" }}]'))
    cloud.put(BUCKET, "key", b"first")
    web.publish("one")
    assert agent("reconfigure").code == 0
    pid, release = web.pid(), web.current
    assert (web.deploy_to / "current/config/key").read_bytes() == b"first"
    assert (web.deploy_to / "shared/config/key").stat().st_mode & 0o007 == 0
    cloud.put(BUCKET, "key", b"second")
    assert agent("reconfigure").code == 0
    assert (web.deploy_to / "current/config/key").read_bytes() == b"second"
    assert web.pid() != pid and web.current == release


def _tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file that is not runsv's own: its mode and content."""
    return {
        str(path): (path.lstat().st_mode, os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes())
        for path in sorted(root.rglob("*"))
        if "supervise" not in path.parts and "log" not in path.parts and (path.is_symlink() or path.is_file())
    }
