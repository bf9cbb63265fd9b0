"""What starts after what, and ends before it: services of one app, and apps."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from bootagent.sandbox.supervisor import Supervisor
from bootagent.services import runit
from tests.conftest import Agent
from tests.host.stage import App, Stage

SLEEP = "exec sleep 1000"


def service(app: str, name: str, script: str, **more: object) -> str:
    """A service that runs a shell script; quick to be called stable, and to be given up."""
    table = {"command": ["sh", "-c", script], "stable_for": "300ms", "stop_within": "3s", **more}
    lines = [f"{key} = {_toml(value)}" for key, value in {"check": {"within": "3s"}, **table}.items()]
    return "\n".join([f"[apps.{app}.services.{name}]", *lines, ""])


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def _common(stage: Stage) -> Path:
    """A directory that every service may write."""
    place = stage.root / "common"
    place.mkdir()
    place.chmod(0o777)
    return place


def _since(app: App, name: str) -> float:
    found = runit.status(app.service(name))
    assert found and found.state == "run"
    return found.since


def test_a_service_starts_once_what_it_comes_after_is_healthy(stage: Stage, web: App, agent: Agent) -> None:
    ready = _common(stage) / "ready"
    health = {"command": ["test", "-e", str(ready)], "within": "8s"}

    def configure(*, value: str = "1", after: str = "db", db: str = f"sleep 1; : >{ready}; {SLEEP}") -> None:
        stage.configure(
            web.config(
                service=service("web", "front", f"test -e {ready} && {SLEEP}; echo too early", after=[after])
                + service("web", "db", db, check=health, env={"VALUE": value})
                + service("web", "cache", SLEEP)
            )
        )

    configure()
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert "too early" not in (stage.root / "var/log/bootagent/web.front/current").read_text()
    assert _since(web, "cache") < _since(web, "db") + 1 <= _since(web, "front")
    pids = {name: web.pid(name) for name in ("front", "db", "cache")}
    assert agent("reconfigure").code == 0
    assert {name: web.pid(name) for name in pids} == pids, "nothing is new"

    configure(value="2")
    assert agent("reconfigure").code == 0
    assert web.pid("db") != pids["db"]
    assert (web.pid("front"), web.pid("cache")) == (pids["front"], pids["cache"]), "they have not changed"

    pids = {name: web.pid(name) for name in pids}
    configure(value="3", after="dbb")
    ran = agent("reconfigure")
    assert ran.code != 0
    assert "web.front comes after web.dbb" in ran.stderr and "web.front, web.db, web.cache" in ran.stderr
    assert {name: web.pid(name) for name in pids} == pids, "refused before anything is stopped"

    configure(db="echo no disk; exit 1")
    ran = agent("reconfigure")
    assert ran.code != 0
    assert "web.db is not healthy" in ran.stderr, ran.stderr
    ready.unlink()
    web.publish("two")
    ran = agent("reconfigure")
    assert "web.db is not healthy" in ran.stderr and "not begun: web.front (after web.db)" in ran.stderr, ran.stderr


def test_at_a_boot_a_service_waits_for_its_turn_but_not_for_ever(
    stage: Stage, web: App, agent: Agent, runsvdir: Supervisor
) -> None:
    """runsvdir starts them all at once; who comes after others waits for the agent to say that they are healthy."""

    def configure(within: str) -> None:
        stage.configure(
            web.config(
                service=service("web", "front", SLEEP, after=["db"], check={"within": "60s"})
                + service("web", "db", SLEEP, check={"within": within})
            )
        )

    def boot() -> float:
        """The moment when db is up."""
        runsvdir.stop()
        shutil.rmtree(stage.root / "run/bootagent/begun")  # a tmpfs
        runsvdir.start()
        deadline = time.monotonic() + 30
        while not (found := runit.status(web.service("db"))) or found.state != "run":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found.since

    configure("100s")
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    boot()
    time.sleep(3)
    assert not runit.is_supervised(web.service("front"))
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert _since(web, "db") < _since(web, "front")
    pids = web.pid("db"), web.pid("front")

    configure("4s")
    assert agent("reconfigure").code == 0
    assert (web.pid("db"), web.pid("front")) == pids, "for how long it waits is no reason to restart it"
    up = boot()  # and the agent does not come
    deadline = time.monotonic() + 60
    while not (found := runit.status(web.service("front"))) or found.state != "run":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert _since(web, "front") >= up + 3
    assert agent("stop").code == 0
    assert not (stage.root / "run/bootagent/begun").exists()


def test_an_app_comes_after_another_and_ends_before_it(stage: Stage, agent: Agent) -> None:
    place = _common(stage)
    web, db = stage.app("web"), stage.app("db")
    noting = "trap 'sleep 0.5; date +%s%N >{0}/{1}.ended; exit 0' TERM; date +%s%N >{0}/{1}.begun; "
    wait = "while :; do sleep 0.1; done"

    def configure(of_db: str) -> None:
        stage.configure(
            # The tables' own order says nothing.
            web.config(
                extra='after = ["db"]',
                service=service("web", "front", noting.format(place, "front") + wait, after=["web"])
                + service("web", "web", noting.format(place, "web") + wait),
            ),
            db.config(service=service("db", "postgres", of_db, check={"within": "2s"})),
        )

    configure("echo no disk; exit 1")
    web.publish("one")
    db.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 1, ran.stderr
    assert "its services are not begun: they come after those of db, which does not serve" in ran.stderr
    assert not (place / "web.begun").exists()
    assert stage.release_state("web", web.releases[0]) != "bad"

    configure("sleep 0.2; " + noting.format(place, "db") + wait)
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    begun = {name: int((place / f"{name}.begun").read_text()) for name in ("web", "db")}
    assert begun["db"] < begun["web"]

    # One that is back on its old release is good enough for those after it.
    db.publish("two", {**db.tree("two"), "broken": ""})
    configure("test ! -e broken || exit 1; " + noting.format(place, "db") + wait)
    pid = web.pid("front")
    web.publish("two")
    ran = agent("reconfigure")
    assert ran.code == 3, ran.stderr
    assert "db: " in ran.stderr and len(db.releases) == 2
    assert web.pid("front") != pid
    assert stage.release_state("web", web.current) == "good"

    ran = agent("stop")
    assert ran.code == 0, ran.stderr
    ended = {name: int((place / f"{name}.ended").read_text()) for name in ("front", "web", "db")}
    assert ended["front"] + 500_000_000 <= ended["web"], "it was told to end only when the other had"
    assert ended["web"] + 500_000_000 <= ended["db"]
