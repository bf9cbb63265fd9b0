"""The agent with what the image holds: as the source itself, and until another source can be read."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootagent.sandbox.cloud import Cloud
from tests.conftest import Agent, Ran, agent_argv
from tests.host.git_server import Repository
from tests.host.stage import BUCKET, SERVER, USER, App, Stage
from tests.host.test_agent_crash import expect_whole, run_killed_at
from tests.waiting import until

BAKED = "/opt/web"
R1, R2 = "20260101000000", "20260102000000"
IMAGE = f'{{ type = "image", path = "{BAKED}" }}'
HELD = '{ type = "image" }'
S3 = f'type = "s3", url = "s3://{BUCKET}/web/staging.json"'
PLACE = "/srv/git/web.git"
GIT = f'type = "git", url = "file://{PLACE}", ref = "main"'
AS_HELD = 'fallback = "image"'
AS_TREE = f'fallback = {{ type = "image", path = "{BAKED}" }}'


def bake(place: Path, version: str, revision: str | None = None, *, works: bool = True) -> Path:
    """A tree as somebody who makes images leaves it: root's, and readable."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "VERSION").write_text(version)
    (place / "server.py").write_text(SERVER if works else "raise SystemExit('no database for you')\n")
    if revision:
        (place / "REVISION").write_text(f"{revision}\n")
    return place


def ending(ran: Ran) -> Any:
    """How the app's lane ended, from ``reconfigure --json``."""
    return json.loads(ran.stdout)["endings"]["web"]


def planned(agent: Agent) -> Any:
    """The app's lane, from ``plan --json``."""
    ran = agent("plan", "--json")
    assert ran.code == 0, ran.stderr
    (lane,) = json.loads(ran.stdout)
    return lane


def ended_well(stage: Stage) -> bool:
    """Whether the last run did."""
    with contextlib.suppress(FileNotFoundError):
        last = stage.state()["last_run"]
        return last is not None and last["exit_code"] == 0
    return False


class Source:
    """Something that releases come from, and that does not answer before the first is published."""

    def __init__(self, stage: Stage, web: App, work: Path, table: str) -> None:
        self.table = table
        self._web = web
        self._work = work
        self._origin = stage.root / PLACE.lstrip("/")
        self._repository: Repository | None = None

    def publish(self, version: str, *, works: bool = True) -> None:
        """Let it hold a version."""
        server = SERVER if works else "raise SystemExit(1)\n"
        if self.table == S3:
            self._web.publish(version, self._web.tree(version) | {"server.py": server})
            return
        self._repository = self._repository or Repository(self._origin, self._work, USER)
        self._repository.commit({"VERSION": version, "server.py": server})

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Inside ``with``, nobody can read it."""
        if self.table == S3:
            pointer = self._web.cloud.get(BUCKET, self._web.key)
            self._web.cloud.delete(BUCKET, self._web.key)
            yield
            self._web.cloud.put(BUCKET, self._web.key, pointer)
        else:
            aside = self._origin.with_name("aside.git")
            self._origin.rename(aside)
            yield
            aside.rename(self._origin)


@pytest.fixture
def web(stage: Stage) -> App:
    """An app that is not configured yet."""
    return stage.app()


@pytest.fixture(params=[S3, GIT], ids=["s3", "git"])
def source(request: pytest.FixtureRequest, stage: Stage, web: App, tmp_path: Path) -> Source:
    """A source that does not answer yet."""
    return Source(stage, web, tmp_path / "work", request.param)


# --- the image as the source -------------------------------------------------------------------------------------


def test_a_baked_tree_is_released_and_nobody_is_asked(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    stage.configure(web.config(source=IMAGE, extra='hooks = { prepare = ["sh", "-c", "echo prepared >>prepared"] }'))
    bake(stage.root / "opt/web", "one", "v1")
    cloud.api.forget_calls()
    lane = planned(agent)
    assert (lane["intent"], lane["revision"], lane["reason"]) == ("deploy", "v1", "v1 is new")
    assert any(re.fullmatch(rf"copy {BAKED} to /srv/web/releases/\d{{14}}", step["step"]) for step in lane["steps"])
    ran = agent("run", "--once")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "one"
    (release,) = web.releases
    assert web.current == release
    assert (web.deploy_to / "current/REVISION").read_text().strip() == "v1"
    assert (web.deploy_to / "current/prepared").read_text() == "prepared\n"
    assert stage.release_state("web", release) == "good"
    assert not (stage.root / "opt/web/prepared").exists(), "it is a copy"

    pid = web.pid()
    assert agent("reconfigure").code == 0
    assert (web.pid(), web.releases) == (pid, [release])
    lane = planned(agent)
    assert (lane["intent"], lane["release"]) == ("keep", release)
    assert {step["verdict"] for step in lane["steps"]} == {"is so"}
    assert f"web: keep {release} (v1 is what was deployed last)" in agent("plan").stdout
    assert cloud.calls == []


def test_a_tree_that_was_baked_anew_is_a_new_release(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(source=IMAGE))
    tree = bake(stage.root / "opt/web", "one", "v1")
    assert agent("reconfigure").code == 0
    first = web.current
    bake(tree, "two", "v2")
    assert agent("reconfigure").code == 0
    assert web.answer() == "two"
    assert web.releases == [first, web.current]
    assert agent("rollback").code == 0
    assert web.answer() == "one"
    assert agent("reconfigure").code == 0
    assert web.answer() == "one"


def test_an_app_that_was_read_in_place_shows_its_own_releases(stage: Stage, web: App, agent: Agent) -> None:
    """Status must not go on telling of what another source showed."""
    stage.configure(web.config(source=IMAGE))
    tree = bake(stage.root / "opt/web", "one", "v1")
    assert agent("reconfigure").code == 0
    state = stage.state()
    seen = {"snap-1": {"state": "good", "revision": "snap-1", "label": "snap-1", "at": "2026-11-01T00:00:00Z"}}
    state["apps"]["web"] |= {"in_place": True, "releases": seen, "proven": "snap-1", "revision": "snap-1"}
    (stage.root / "var/lib/bootagent/state.json").write_text(json.dumps(state))
    bake(tree, "two", "v2")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "two"
    told = json.loads(agent("status", "--json").stdout)["apps"]["web"]
    assert (told["current"], list(told["releases"])) == (web.current, web.releases)


def test_a_baked_work_tree_of_git_is_known_by_its_commit(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(source=IMAGE))
    tree = bake(stage.root / "opt/web", "one")
    settings = ["-c", "user.name=A Developer", "-c", "user.email=dev@example.com"]
    for words in (["init", "-q", "-b", "main"], ["add", "--all"], ["commit", "-q", "-m", "a change"]):
        subprocess.run(["git", *settings, *words], cwd=tree, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, check=True, capture_output=True, text=True)
    assert agent("reconfigure").code == 0
    assert (web.deploy_to / "current/REVISION").read_text() == head.stdout
    assert not (web.deploy_to / "current/.git").exists()
    (tree / ".git/index").touch()
    (tree / "untracked").touch()
    assert agent("reconfigure").code == 0
    assert len(web.releases) == 1


def test_a_baked_tree_that_is_missing_is_a_clear_failure(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(source=IMAGE))
    ran = agent("reconfigure", "--json", "--log", "text")
    assert ran.code == 1
    assert f"the image has no {BAKED}" in ending(ran)["sentence"]
    assert "bake it into the image" in ending(ran)["sentence"] and "Traceback" not in ran.stderr
    assert f"the image has no {BAKED}" in agent("plan").stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="root's files can be read by root alone")
def test_a_baked_tree_that_the_app_cannot_read_is_a_clear_failure(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(source=IMAGE))
    (bake(stage.root / "opt/web", "one", "v1") / "server.py").chmod(0o600)
    ran = agent("reconfigure", "--json", "--log", "text")
    assert ran.code == 1
    assert f"let {USER} read all of it" in ending(ran)["sentence"]
    assert not list(web.deploy_to.glob("releases/*"))


def test_the_release_that_a_baked_current_names_is_started(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    """Not the newest: whoever made the image may have gone back."""
    stage.configure(web.config(source=HELD))
    bake(web.deploy_to / "releases" / R1, "one")
    bake(web.deploy_to / "releases" / R2, "two")
    (web.deploy_to / "current").symlink_to(f"releases/{R1}")
    cloud.api.forget_calls()
    lane = planned(agent)
    assert (lane["intent"], lane["release"]) == ("hotfix", R1)
    assert "it is what the image holds" in lane["reason"]
    ran = agent("run", "--once")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "one"
    assert (web.current, web.releases) == (R1, [R1, R2])
    pid = web.pid()
    assert agent("reconfigure").code == 0
    assert web.pid() == pid
    assert {step["verdict"] for step in planned(agent)["steps"]} == {"is so"}
    assert cloud.calls == []


def test_what_the_image_holds_is_worth_another_try_only_once_it_has_served(
    stage: Stage, web: App, agent: Agent
) -> None:
    stage.configure(web.config(source=HELD))
    place = bake(web.deploy_to / "releases" / R1, "one", works=False)
    (web.deploy_to / "current").symlink_to(f"releases/{R1}")
    for served in (False, True):
        ran = agent("reconfigure", "--json", "--log", "text")
        assert ran.code == 1, ran.stderr
        assert ending(ran)["transient"] == served
        broken = (place / "server.py").read_text()
        (place / "server.py").write_text(SERVER)
        assert agent("reconfigure").code == 0
        assert web.answer() == "one"
        (place / "server.py").write_text(broken)
        (web.service() / "supervise/control").write_text("t")


def test_without_a_baked_current_the_newest_release_is_switched_to(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(source=HELD))
    bake(web.deploy_to / "releases" / R1, "one")
    bake(web.deploy_to / "releases" / R2, "two")
    assert planned(agent)["release"] == R2
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert (web.current, web.answer()) == (R2, "two")
    pid = web.pid()
    assert agent("reconfigure").code == 0
    assert (web.current, web.pid()) == (R2, pid)
    assert agent("rollback").code == 0
    assert (web.current, web.answer()) == (R1, "one")
    assert agent("reconfigure").code == 0
    assert (web.current, web.answer()) == (R1, "one")


def test_an_image_that_holds_nothing_is_a_clear_failure(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(source=HELD))
    ran = agent("reconfigure", "--json", "--log", "text")
    assert ran.code == 1
    assert "/srv/web holds no release: bake one into the image" in ending(ran)["sentence"]
    assert not ending(ran)["transient"], "nothing will come of waiting"
    assert "web: nothing (/srv/web holds no release" in agent("plan").stdout


# --- the image until the source can be read ----------------------------------------------------------------------


def test_a_baked_tree_serves_until_the_source_can_be_read(stage: Stage, web: App, agent: Agent, source: Source) -> None:
    stage.configure(web.config(source=f"{{ {source.table}, {AS_TREE} }}"))
    bake(stage.root / "opt/web", "baked", "v1")
    lane = planned(agent)
    assert (lane["intent"], lane["revision"]) == ("deploy", "v1")
    assert "until it can be read, what the image holds serves" in lane["reason"]
    assert any(step["step"].startswith(f"copy {BAKED} to ") for step in lane["steps"])

    ran = agent("reconfigure", "--json", "--log", "text")
    assert ran.code == 3, ran.stderr
    assert ending(ran)["transient"], "the daemon is to try again"
    assert "now runs release" in ending(ran)["sentence"] and "until it can be read" in ending(ran)["sentence"]
    baked, pid = web.current, web.pid()
    assert web.answer() == "baked"
    assert agent("status").code == 3

    ran = agent("reconfigure", "--json", "--log", "text")  # nothing has changed
    assert ran.code == 3 and ending(ran)["transient"]
    assert (web.pid(), web.releases) == (pid, [baked])

    source.publish("one")
    assert agent("reconfigure").code == 0
    assert web.answer() == "one"
    one = web.current
    assert web.releases == [baked, one]

    with source.away():
        ran = agent("reconfigure", "--json", "--log", "text")
        assert ran.code == 3 and ending(ran)["transient"]
        lane = planned(agent)
        assert (lane["intent"], lane["release"]) == ("keep", one)
    assert (web.current, web.answer(), web.releases) == (one, "one", [baked, one])
    assert agent("reconfigure").code == 0


def test_a_baked_release_serves_until_the_source_can_be_read(
    stage: Stage, web: App, agent: Agent, source: Source
) -> None:
    stage.configure(web.config(source=f"{{ {source.table}, {AS_HELD} }}"))
    bake(web.deploy_to / "releases" / R1, "old")
    bake(web.deploy_to / "releases" / R2, "baked")
    assert planned(agent)["release"] == R2
    ran = agent("reconfigure", "--json", "--log", "text")
    assert ran.code == 3, ran.stderr
    assert ending(ran)["transient"]
    assert (web.current, web.answer()) == (R2, "baked")
    source.publish("one")
    assert agent("reconfigure").code == 0
    assert web.answer() == "one"
    one = web.current
    with source.away():
        assert agent("reconfigure").code == 3
    assert (web.current, web.answer()) == (one, "one")


@pytest.mark.parametrize("source", [S3], indirect=True)
def test_what_does_not_work_is_taken_back_to_what_the_image_holds(
    stage: Stage, web: App, agent: Agent, source: Source
) -> None:
    stage.configure(web.config(source=f"{{ {source.table}, {AS_TREE} }}"))
    bake(stage.root / "opt/web", "baked", "v1")
    assert agent("reconfigure").code == 3
    baked = web.current
    source.publish("one", works=False)
    ran = agent("reconfigure", "--json", "--log", "text")
    assert ran.code == 3, ran.stderr
    assert f"release {baked} was put back and serves" in ending(ran)["sentence"]
    assert (web.current, web.answer()) == (baked, "baked")
    ran = agent("reconfigure")
    assert ran.code == 3 and "failed before" in ran.stderr
    assert len(web.releases) == 2
    source.publish("two")
    assert agent("reconfigure").code == 0
    assert web.answer() == "two"


@pytest.mark.parametrize("source", [S3], indirect=True)
def test_a_baked_tree_that_does_not_work_is_not_tried_under_new_names(
    stage: Stage, web: App, agent: Agent, source: Source
) -> None:
    stage.configure(web.config(source=f"{{ {source.table}, {AS_TREE} }}"))
    bake(stage.root / "opt/web", "baked", "v1", works=False)
    for _ in range(3):
        ran = agent("reconfigure", "--json", "--log", "text")
        assert ran.code == 1, ran.stderr
        assert "web.server is not healthy" in ending(ran)["sentence"]
        assert ending(ran)["transient"], "the source may answer yet"
        (release,) = web.releases
        assert stage.release_state("web", release) == "bad"
    source.publish("one")
    assert agent("reconfigure").code == 0
    assert web.answer() == "one"


@pytest.mark.parametrize("fallback", [AS_HELD, AS_TREE], ids=["held", "tree"])
def test_a_fallback_that_is_not_there_is_named_beside_the_source(
    stage: Stage, web: App, agent: Agent, fallback: str
) -> None:
    stage.configure(web.config(source=f"{{ {S3}, {fallback} }}"))
    ran = agent("reconfigure", "--json", "--log", "text")
    assert ran.code == 1
    said = ending(ran)
    assert "NoSuchKey" in said["sentence"] and said["transient"]
    if fallback == AS_TREE:
        assert f"the image has no {BAKED}" in said["sentence"]
    (failure,) = stage.state()["last_run"]["failures"]
    assert (failure["code"], failure["iam_action"]) == ("NoSuchKey", "s3:GetObject")


def test_a_release_from_before_is_better_than_the_fallback(stage: Stage, web: App, agent: Agent) -> None:
    """A fallback that is configured later does not take the place of what has served."""
    stage.configure(web.config(source=f"{{ {S3} }}"))
    web.publish("one")
    assert agent("reconfigure").code == 0
    one = web.current
    bake(stage.root / "opt/web", "baked", "v1")
    stage.configure(web.config(source=f"{{ {S3}, {AS_TREE} }}"))
    web.cloud.delete(BUCKET, web.key)
    assert agent("reconfigure").code == 3
    assert (web.current, web.releases, web.answer()) == (one, [one], "one")


def test_what_a_killed_run_left_unfinished_is_not_what_the_image_holds(stage: Stage, web: App, agent: Agent) -> None:
    """Its hook has not run: a release of ours that was never seen to serve."""
    hook = 'hooks = { prepare = ["false"] }'
    stage.configure(web.config(source=f"{{ {S3}, {AS_HELD} }}", extra=hook))
    web.publish("one")
    assert agent("reconfigure").code == 1
    assert len(web.releases) == 1
    web.cloud.delete(BUCKET, web.key)
    ran = agent("reconfigure")
    assert ran.code == 1, ran.stderr
    assert not (web.deploy_to / "current").is_symlink()
    bake(web.deploy_to / "releases" / R1, "baked")
    assert agent("reconfigure").code == 3
    assert (web.current, web.answer()) == (R1, "baked")


def test_killed_at_every_record_of_a_first_boot_without_its_source(
    stage: Stage, web: App, agent: Agent, cloud: Cloud
) -> None:
    """The machine is carried from one kill to the next, each a record further than the last."""
    hook = 'hooks = { prepare = ["sh", "-c", "echo prepared >>prepared"] }'
    stage.configure(web.config(source=f"{{ {S3}, {AS_TREE} }}", extra=hook))
    bake(stage.root / "opt/web", "baked", "v1")
    kills = 0
    while run_killed_at(stage.root, cloud, kills) == -signal.SIGKILL:
        kills += 1
        link = web.deploy_to / "current"
        assert not link.is_symlink() or (link / "VERSION").read_text() == "baked", "current is absent or whole"
        assert kills < 60
    assert kills > 10, "the run is as long as expected"
    assert web.answer() == "baked"
    assert web.releases == [web.current]
    assert not [path for path in (web.deploy_to / "releases").iterdir() if path.name.startswith(".")]
    assert stage.release_state("web", web.current) == "good"
    assert agent("status").code == 3
    web.publish("one")
    assert agent("reconfigure").code == 0
    expect_whole(stage, web, "one")


def test_the_daemon_tries_again_until_the_source_answers(stage: Stage, web: App, cloud: Cloud) -> None:
    stage.configure(web.config(source=f"{{ {S3}, {AS_TREE} }}"))
    bake(stage.root / "opt/web", "baked", "v1")
    daemon = subprocess.Popen(agent_argv(stage.root, "run"), env=cloud.process_environment())
    try:
        assert web.answer(within=60) == "baked"
        web.publish("one")
        until(lambda: ended_well(stage), "it did not try again")
        assert web.answer() == "one"
    finally:
        daemon.terminate()
        daemon.wait(60)
