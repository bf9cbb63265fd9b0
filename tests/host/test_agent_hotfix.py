"""Taking turns with Capistrano, and going back."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

from tests.conftest import Agent
from tests.host.stage import App, Stage


def cap_deploy(web: App, release: str, version: str) -> None:
    """What ``cap deploy`` of a hotfix does: a release of its own, a switch, a line in the log, a restart."""
    place = web.deploy_to / "releases" / release
    shutil.copytree(web.deploy_to / "current/", place, symlinks=True)
    (place / "VERSION").write_text(version)
    (place / "REVISION").write_text("cafe\n")
    scratch = web.deploy_to / "releases" / "current"
    scratch.symlink_to(place)
    scratch.rename(web.deploy_to / "current")
    with (web.deploy_to / "revisions.log").open("a") as log:
        log.write(f"Branch main (at cafe) deployed as release {release} by deploy\n")
    (web.service() / "supervise/control").write_text("t")


def after(release: str) -> str:
    return f"{datetime.strptime(release, '%Y%m%d%H%M%S') + timedelta(seconds=1):%Y%m%d%H%M%S}"


def test_a_hotfix_survives_a_rerun_and_a_newer_bundle_wins(stage: Stage, web: App, agent: Agent) -> None:
    web.publish("one")
    assert agent("reconfigure").code == 0
    hotfix = after(web.current)
    cap_deploy(web, hotfix, "hotfix")
    assert web.answer() in ("one", "hotfix")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.current == hotfix and web.answer() == "hotfix"
    pid = web.pid()
    assert agent("reconfigure").code == 0
    assert web.pid() == pid, "the hotfix is left in peace"
    web.publish("two")
    assert agent("reconfigure").code == 0
    assert web.answer() == "two" and web.current > hotfix


def test_a_hotfix_that_does_not_serve_by_now_is_worth_another_try(stage: Stage, web: App, agent: Agent) -> None:
    web.publish("one")
    assert agent("reconfigure").code == 0
    hotfix = after(web.current)
    cap_deploy(web, hotfix, "hotfix")
    server = web.deploy_to / "current/server.py"
    works = server.read_text()
    server.write_text("raise SystemExit('no database')\n")
    (web.service() / "supervise/control").write_text("t")
    ran = agent("reconfigure", "--json", "--log", "text")
    assert ran.code == 1, ran.stderr
    assert json.loads(ran.stdout)["endings"]["web"]["transient"]
    server.write_text(works)
    assert agent("reconfigure").code == 0
    assert web.current == hotfix and web.answer() == "hotfix"


def test_a_bad_release_falls_back_to_the_hotfix(stage: Stage, web: App, agent: Agent) -> None:
    web.publish("one")
    assert agent("reconfigure").code == 0
    hotfix = after(web.current)
    cap_deploy(web, hotfix, "hotfix")
    web.publish("two", {**web.tree("two"), "server.py": "raise SystemExit(1)\n"})
    assert agent("reconfigure").code == 3
    assert web.current == hotfix and web.answer() == "hotfix"


def test_capistrano_s_rollback_sees_boot_releases_by_time_of_activation(stage: Stage, web: App, agent: Agent) -> None:
    """``cap deploy:rollback`` takes the second of ``ls -xt releases``; a bad release must not be it."""
    for version in ("one", "two"):
        web.publish(version)
        assert agent("reconfigure").code == 0
    one, two = web.releases
    web.publish("bad", {**web.tree("bad"), "server.py": "raise SystemExit(1)\n"})
    assert agent("reconfigure").code == 3
    by_time = sorted(web.releases, key=lambda name: -(web.deploy_to / "releases" / name).stat().st_mtime)
    assert by_time[:2] == [two, one]


def test_rollback_goes_back_and_is_not_undone_by_a_rerun(stage: Stage, web: App, agent: Agent) -> None:
    for version in ("one", "two"):
        web.publish(version)
        assert agent("reconfigure").code == 0
    one, two = web.releases
    ran = agent("rollback")
    assert ran.code == 0, ran.stderr
    assert web.current == one and web.answer() == "one"
    assert agent("reconfigure").code == 0
    assert web.current == one and web.answer() == "one"
    assert agent("rollback").code == 2, "there is nothing before it"
    assert agent("rollback", two).code == 0
    assert web.answer() == "two"
    assert agent("rollback", "20010101000000").code == 2
    assert agent("rollback").code == 0
    assert agent("reconfigure", "--retry").code == 0
    assert web.answer() == "two" and len(web.releases) == 3
    runs = json.loads(agent("history", "--json").stdout)
    assert [run["command"] for run in runs].count("rollback") == 5


def test_rollback_brings_back_services_links_and_environment(stage: Stage, web: App, agent: Agent) -> None:
    extra = 'linked_files = ["config/database.yml"]\n[apps.web.environment]\npath = "config/env"\nlayers = []'
    stage.configure(web.config(extra=extra, service=""))
    shared = web.deploy_to / "shared/config/database.yml"
    shared.parent.mkdir(parents=True)
    shared.write_text("shared")
    run = "#!/bin/sh\nexec sleep {}\n"
    one = {"config/service/job/run": run.format(1001), "config/env/web/COLOUR": "red\n", "config/env/web/OLD": "yes\n"}
    two = {
        "config/service/job/run": run.format(1002),
        "config/service/extra/run": run.format(1003),
        "config/env/web/COLOUR": "blue\n",
    }
    web.publish("one", {**web.tree("one"), **one})
    assert agent("reconfigure").code == 0
    first = web.current
    web.publish("two", {**web.tree("two"), **two})
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    extra_pid = web.pid("extra")
    seen = Path(f"/proc/{web.pid('job')}/environ").read_bytes().split(b"\0")
    assert b"COLOUR=blue" in seen and b"OLD=yes" not in seen

    ran = agent("rollback")
    assert ran.code == 0, ran.stderr
    assert web.current == first
    assert (web.service("job") / "run").read_text() == one["config/service/job/run"]
    assert not web.service("extra").exists() and not Path(f"/proc/{extra_pid}").exists()
    pid = web.pid("job")
    seen = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert b"COLOUR=red" in seen and b"OLD=yes" in seen
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x001001\0"
    assert (web.deploy_to / "current/config/database.yml").resolve() == shared.resolve()
    assert agent("reconfigure").code == 0
    assert web.pid("job") == pid


def test_a_bad_release_falls_back_to_the_one_rolled_back_to(stage: Stage, web: App, agent: Agent) -> None:
    for version in ("one", "two"):
        web.publish(version)
        assert agent("reconfigure").code == 0
    one, _ = web.releases
    assert agent("rollback").code == 0
    web.publish("bad", {**web.tree("bad"), "server.py": "raise SystemExit(1)\n"})
    assert agent("reconfigure").code == 3
    assert web.current == one and web.answer() == "one"


def test_rollback_sees_capistrano_s_releases(stage: Stage, web: App, agent: Agent) -> None:
    web.publish("one")
    assert agent("reconfigure").code == 0
    hotfix = after(web.current)
    cap_deploy(web, hotfix, "hotfix")
    web.publish("two")
    assert agent("reconfigure").code == 0
    assert agent("rollback").code == 0
    assert web.current == hotfix and web.answer() == "hotfix"


def test_status_history_and_timeline_tell_the_story(stage: Stage, web: App, agent: Agent) -> None:
    assert agent("status").code == 75
    assert "never ran" in agent("status").stdout
    web.publish("one")
    assert agent("reconfigure").code == 0
    status = agent("status")
    assert status.code == 0
    assert web.current in status.stdout and "good" in status.stdout and "web.server" in status.stdout
    timeline = json.loads(agent("timeline", "--json").stdout)
    assert timeline["finished"] and {span["phase"] for span in timeline["spans"]} == {
        "read",
        "stage",
        "activate",
        "serve",
    }
    assert all(span["end"] >= span["begin"] for span in timeline["spans"])
    assert "unpack" in agent("timeline").stdout
    assert "done" in agent("history").stdout
