"""The agent with releases from git: a boot clones and runs one script; what goes wrong leaves the old one serving."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from bootagent.sandbox.cloud import Cloud
from tests.conftest import Agent, Ran
from tests.host.git_server import Files, Repository
from tests.host.stage import SERVER, USER, App, Stage
from tests.host.test_agent_crash import expect_whole, run_killed_at

#: Where the repository is, on the machine itself.
PLACE = "/srv/git/web.git"
SOURCE = f'{{ type = "git", url = "file://{PLACE}", ref = "main" }}'
HOOK = 'hooks = { prepare = ["bin/setup"] }'
SETUP = "#!/bin/sh\nid -un >prepared-by\necho prepared >>prepared\n"


def configured(web: App, source: str = SOURCE, extra: str = HOOK) -> str:
    """The app's configuration with a git source and its one script."""
    return web.config(source=source, extra=extra)


def push(repository: Repository, version: str, **more: str | None) -> str:
    """Push a version of the app. Returns the commit's id."""
    if not (repository.work / "bin").exists():
        (repository.work / "bin").mkdir()
        (repository.work / "bin/setup").touch(mode=0o755)
    named = {name.replace("__", "/"): text for name, text in more.items()}
    files: Files = {"VERSION": version, "server.py": SERVER, "bin/setup": SETUP, **named}
    return repository.commit(files)


def ending(ran: Ran) -> Any:
    """How the app's lane ended, from ``reconfigure --json``."""
    return json.loads(ran.stdout)["endings"]["web"]


def planned(agent: Agent) -> Any:
    """The app's lane, from ``plan --json``."""
    ran = agent("plan", "--json")
    assert ran.code == 0, ran.stderr
    (lane,) = json.loads(ran.stdout)
    return lane


def files(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file that is not runit's own: mode, time and content."""
    return {
        str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns, b"" if path.is_symlink() else path.read_bytes())
        for path in sorted(root.rglob("*"))
        if "supervise" not in path.parts and (path.is_symlink() or path.is_file())
    }


def git(directory: Path, *words: str) -> str:
    """Run git as the app's user in a bare repository of his; what it printed."""
    user = USER if os.geteuid() == 0 else None
    argv = ["git", f"--git-dir={directory}", *words]
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    done = subprocess.run(argv, user=user, cwd="/", env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def own(path: Path) -> None:
    """Let the app's user own a tree."""
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{USER}:", str(path)], check=True)


@pytest.fixture
def repository(stage: Stage, tmp_path: Path) -> Repository:
    """A bare repository on the machine that the app's user can read."""
    return Repository(stage.root / PLACE.lstrip("/"), tmp_path / "work", USER)


@pytest.fixture
def web(stage: Stage, repository: Repository) -> App:
    """An app whose source is the repository, with one version pushed."""
    app = stage.app()
    stage.configure(configured(app))
    push(repository, "one")
    return app


def test_a_first_boot_clones_and_runs_one_script(
    stage: Stage, web: App, repository: Repository, agent: Agent, cloud: Cloud
) -> None:
    """An empty disk; and nobody of AWS is asked for anything."""
    cloud.api.forget_calls()
    ran = agent("run", "--once")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "one"
    assert (web.deploy_to / "current/REVISION").read_text().strip() == repository.head()
    assert (web.deploy_to / "current/prepared").read_text() == "prepared\n"
    assert not (web.deploy_to / "current/.git").exists()
    log = (web.deploy_to / "revisions.log").read_text()
    assert log == f"Branch file://{PLACE} (at {repository.head()}) deployed as release {web.current} by bootagent\n"
    mirror = web.deploy_to / "repo"
    assert (mirror / "HEAD").read_text() == "ref: refs/heads/main\n"
    assert cloud.calls == []
    if os.geteuid() == 0:
        assert (web.deploy_to / "current/prepared-by").read_text().strip() == USER
        owned = [mirror, *mirror.rglob("*"), *(web.deploy_to / "releases").rglob("*")]
        assert {path.lstat().st_uid for path in owned} == {pwd.getpwnam(USER).pw_uid}


def test_a_rerun_changes_nothing(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    assert agent("reconfigure").code == 0
    before = web.pid(), files(web.deploy_to), files(stage.root / "etc")
    cloud.api.forget_calls()
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert (web.pid(), files(web.deploy_to), files(stage.root / "etc")) == before
    assert cloud.calls == []


def test_a_push_is_deployed(stage: Stage, web: App, repository: Repository, agent: Agent) -> None:
    assert agent("reconfigure").code == 0
    first = web.current
    second = push(repository, "two")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "two"
    assert web.current > first and web.releases == [first, web.current]
    assert (web.deploy_to / "current/REVISION").read_text().strip() == second


def test_a_branch_that_was_forced_back_is_deployed_too(
    stage: Stage, web: App, repository: Repository, agent: Agent
) -> None:
    first = repository.head()
    push(repository, "two")
    assert agent("reconfigure").code == 0
    assert web.answer() == "two"
    repository.push("--force", f"{first}:refs/heads/main")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "one"


def test_a_failed_script_leaves_the_old_release_serving(
    stage: Stage, web: App, repository: Repository, agent: Agent
) -> None:
    assert agent("reconfigure").code == 0
    pid, first = web.pid(), web.current
    push(repository, "two", bin__setup="#!/bin/sh\n[ -e /nowhere ] || { echo no package foo >&2; exit 9; }\n")
    ran = agent("run", "--once", "--json", "--log", "text")
    assert ran.code == 3, ran.stderr
    said = ending(ran)
    assert "run the prepare hook bin/setup" in said["sentence"] and "still serves" in said["sentence"]
    assert "no package foo" in said["tail"]
    assert said["transient"], "what a script could not do, it may be able to do later"
    assert (web.pid(), web.current, web.answer()) == (pid, first, "one")
    assert agent("status").code == 3
    assert stage.state()["last_run"]["outcome"] == "degraded"

    push(repository, "three")
    assert agent("reconfigure").code == 0
    assert web.answer() == "three"
    assert agent("status").code == 0


def test_a_failed_script_at_first_boot_marks_the_boot_failed_and_works_once_it_can(
    stage: Stage, web: App, repository: Repository, agent: Agent
) -> None:
    ready = stage.root / "ready"
    push(repository, "one", bin__setup=f"#!/bin/sh\n[ -e '{ready}' ] && echo prepared >>prepared\n")
    ran = agent("run", "--once")
    assert ran.code == 1, ran.stderr
    assert not (web.deploy_to / "current").is_symlink()
    assert stage.state()["last_run"]["outcome"] == "failed"
    ready.touch()
    assert agent("reconfigure").code == 0
    assert web.answer() == "one"
    assert (web.deploy_to / "current/prepared").read_text() == "prepared\n"
    assert len(web.releases) == 1, "the same release, finished"


def test_a_release_that_does_not_start_is_taken_back(
    stage: Stage, web: App, repository: Repository, agent: Agent
) -> None:
    assert agent("reconfigure").code == 0
    first = web.current
    push(repository, "two", **{"server.py": "raise SystemExit('no database for you')\n"})
    assert agent("reconfigure").code == 3
    assert (web.current, web.answer()) == (first, "one")
    ran = agent("reconfigure")
    assert ran.code == 3
    assert "failed before" in ran.stderr
    assert len(web.releases) == 2, "it is not tried again"


def test_a_ref_that_is_not_there_leaves_the_old_release_serving(
    stage: Stage, web: App, repository: Repository, agent: Agent
) -> None:
    assert agent("reconfigure").code == 0
    pid, first = web.pid(), web.current
    stage.configure(configured(web, SOURCE.replace("main", "mian")))
    lane = planned(agent)
    assert (lane["intent"], lane["release"]) == ("keep", first)
    ran = agent("reconfigure", "--json", "--log", "text")
    assert ran.code == 3, ran.stderr
    said = ending(ran)["sentence"]
    assert f"file://{PLACE} has no branch or tag 'mian'; near it are main" in said
    assert "\n" not in said and "Traceback" not in ran.stderr
    assert (web.pid(), web.current, web.answer()) == (pid, first, "one")


def test_a_repository_that_is_gone_leaves_the_old_release_serving(
    stage: Stage, web: App, repository: Repository, agent: Agent
) -> None:
    assert agent("reconfigure").code == 0
    pid, first = web.pid(), web.current
    away = repository.origin.with_name("away.git")
    repository.origin.rename(away)
    ran = agent("reconfigure", "--json", "--log", "text")
    assert ran.code == 3, ran.stderr
    said = ending(ran)
    assert said["transient"] and PLACE in said["sentence"]
    assert (web.pid(), web.current, web.answer()) == (pid, first, "one")
    assert PLACE in planned(agent)["reason"]
    assert f"web: keep {first}" in agent("plan").stdout
    away.rename(repository.origin)
    assert agent("reconfigure").code == 0


def test_a_boot_does_not_wait_long_for_a_repository_while_something_can_serve(
    stage: Stage, web: App, repository: Repository, agent: Agent
) -> None:
    """A boot waits for the network as long as for its tags, two minutes; with nothing running, that is an outage."""
    assert agent("reconfigure").code == 0
    repository.origin.rename(repository.origin.with_name("away.git"))
    begun = time.monotonic()
    ran = agent("run", "--once", timeout=300)
    assert ran.code == 3, ran.stderr
    assert time.monotonic() - begun < 90
    assert web.answer() == "one"


def test_a_repository_that_is_not_there_at_first_boot_is_a_clear_failure(
    stage: Stage, web: App, repository: Repository, agent: Agent
) -> None:
    shutil.rmtree(repository.origin)
    ran = agent("reconfigure", "--json", "--log", "text")
    assert ran.code == 1
    said = ending(ran)
    assert said["transient"] and PLACE in said["sentence"] and "\n" not in said["sentence"]
    assert not list(web.deploy_to.glob("releases/*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user's repository")
def test_a_repository_that_belongs_to_somebody_else_is_named_with_a_remedy(
    stage: Stage, web: App, repository: Repository, agent: Agent
) -> None:
    """git refuses another owner's repository on the same machine: safe.directory in git-config(1)."""
    subprocess.run(["chown", "-R", "daemon:", str(repository.origin)], check=True)
    ran = agent("reconfigure", "--json", "--log", "text")
    assert ran.code == 1
    assert "dubious ownership" in ending(ran)["sentence"] and "safe.directory" in ending(ran)["sentence"]


def test_rollback_goes_back_and_is_not_undone_by_a_rerun(
    stage: Stage, web: App, repository: Repository, agent: Agent
) -> None:
    assert agent("reconfigure").code == 0
    first = web.current
    push(repository, "two")
    assert agent("reconfigure").code == 0
    assert agent("rollback").code == 0
    assert (web.current, web.answer()) == (first, "one")
    ran = agent("reconfigure")
    assert ran.code == 0 and "was rolled back" in ran.stderr, ran.stderr
    assert (web.current, web.answer()) == (first, "one")
    push(repository, "three")
    assert agent("reconfigure").code == 0
    assert web.answer() == "three"


def test_the_mirror_that_capistrano_keeps_is_used(stage: Stage, web: App, repository: Repository, agent: Agent) -> None:
    """As its git plugin makes it: ``git clone --mirror``, then ``git remote update --prune``."""
    mirror = web.deploy_to / "repo"
    mirror.mkdir(parents=True)
    (mirror / "of-capistrano").touch()
    own(mirror)
    for words in (
        ["init", "-q", "--bare"],
        ["remote", "add", "--mirror=fetch", "origin", f"file://{repository.origin}"],
    ):
        git(mirror, *words)
    git(mirror, "remote", "update", "--prune")
    push(repository, "two")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "two"
    assert (mirror / "of-capistrano").exists(), "it was not made anew"
    assert git(mirror, "rev-parse", "main").strip() == repository.head()


def test_plan_says_what_would_be_done_and_changes_nothing(
    stage: Stage, web: App, repository: Repository, agent: Agent
) -> None:
    before = files(stage.root)
    commit = repository.head()[:12]
    lane = planned(agent)
    assert (lane["intent"], lane["revision"], lane["reason"]) == ("deploy", repository.head(), f"{commit} is new")
    assert [step["verdict"] for step in lane["steps"]].count("would do") == 1
    steps = [step["step"] for step in lane["steps"]]
    place = r"/srv/web/releases/\d{14}"
    assert any(re.fullmatch(rf"check out {commit} of file://{PLACE} to {place}", step) for step in steps)
    assert any(re.fullmatch(rf"run the prepare hook bin/setup in {place} as \w+", step) for step in steps)
    text = agent("plan").stdout
    assert f"({commit} is new)" in text and f"check out {commit} of file://{PLACE}" in text
    assert files(stage.root) == before

    assert agent("reconfigure").code == 0
    lane = planned(agent)
    assert (lane["intent"], lane["release"]) == ("keep", web.current)
    assert {step["verdict"] for step in lane["steps"]} == {"is so"}


def test_killed_at_every_record_of_a_first_boot(
    stage: Stage, web: App, repository: Repository, agent: Agent, cloud: Cloud
) -> None:
    """The machine is carried from one kill to the next, each a record further than the last."""
    stage.configure(configured(web, extra=f'{HOOK}\nlinked_dirs = ["log"]\nkeep_releases = 3'))
    kills = 0
    while run_killed_at(stage.root, cloud, kills) == -signal.SIGKILL:
        kills += 1
        link = web.deploy_to / "current"
        assert not link.is_symlink() or (link / "VERSION").read_text() == "one", "current is absent or whole"
        assert kills < 60
    assert kills > 10, "the run is as long as expected"
    expect_whole(stage, web, "one")
    assert len(web.releases) == 1
