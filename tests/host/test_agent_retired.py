"""What the role does not run any more: it goes in order and in its own time, and a reset leaves nothing of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Agent
from tests.host.stage import App, Stage
from tests.host.test_agent_stop import look

#: Says when it is told to end.
POLITE = """command = ["sh", "-c", "trap 'echo {name} >>{place}/ended; exit 0' TERM; while :; do sleep 0.1; done"]"""
STUBBORN = """command = ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]"""
ROLES = """
[roles.web]
apps = "*"
[roles.narrow]
apps = ["web"]
services = ["web.second"]
[roles.idle]
apps = []
"""


def service(app: App, name: str, command: str, more: str = "") -> str:
    """A service that may take two seconds to stop."""
    quick = 'stable_for = "300ms"\nstop_within = "2s"\ncheck = { within = "10s" }\n'
    return f"[apps.{app.name}.services.{name}]\n{command}\n{quick}{more}\n"


@pytest.fixture
def two(stage: Stage) -> tuple[App, App]:
    """``web``, whose services come after each other and after that of ``db``; each has a secret."""
    place = stage.root / "common"
    place.mkdir()
    place.chmod(0o777)
    web, db = stage.app("web"), stage.app("db")
    for name in ("first", "second", "db"):
        stage.cloud.api.ssm(stage.cloud.region).put_parameter(Name=f"/{name}", Value=name * 5, Type="SecureString")
    said = {name: POLITE.format(name=name, place=place) for name in ("second", "db")}
    stage.configure(
        web.config(
            extra='after = ["db"]',
            service=service(web, "first", STUBBORN, 'secrets = [{ name = "ONE", from = "ssm:/first" }]')
            + service(
                web, "second", said["second"], 'after = ["first"]\nsecrets = [{ name = "TWO", from = "ssm:/second" }]'
            ),
        ),
        db.config(service=service(db, "data", said["db"], 'secrets = [{ name = "DB", from = "ssm:/db" }]')),
        roles=ROLES,
    )
    return web, db


def notes(root: Path) -> list[str]:
    """What the last run has told in notes."""
    records = [json.loads(line) for line in (root / "var/lib/bootagent/journal.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if record["event"] == "note" and record["run"] == records[-1]["run"]]


def secrets(stage: Stage) -> list[str]:
    """The services that have secrets in memory."""
    place = stage.root / "run/bootagent/secrets"
    return sorted(path.name for path in place.iterdir()) if place.is_dir() else []


def test_what_a_role_leaves_goes_in_order_and_a_reset_forgets_none_of_it(
    stage: Stage, two: tuple[App, App], agent: Agent, machine_root: Path
) -> None:
    web, _ = two
    before = look(machine_root)
    for app in two:
        app.publish("one")
    assert agent("reconfigure").code == 0
    assert secrets(stage) == ["db.data", "web.first", "web.second"]
    release, ended = web.current, stage.root / "common/ended"

    ran = agent("reconfigure", "--tag", "Role=narrow")
    assert ran.code == 0, ran.stderr
    assert secrets(stage) == ["web.second"], "neither of the app nor of the service that is not run"
    assert "web.first had to be killed after 2 s" in notes(machine_root), "as long as it may take, no longer"
    assert ended.read_text() == "db\n"

    assert agent("reconfigure", "--tag", "Role=web").code == 0
    assert web.current == release, "it is known yet"
    ran = agent("reconfigure", "--tag", "Role=idle")
    assert ran.code == 0, ran.stderr
    assert ended.read_text() == "db\nsecond\ndb\n", "the one that comes after goes first"
    assert secrets(stage) == []
    assert (web.deploy_to / "releases" / release).is_dir()

    ran = agent("stop", "--reset")
    assert ran.code == 0, ran.stderr
    ended.unlink()
    assert look(machine_root) == before
    assert f"/srv/web/releases/{release}" in ran.stdout and "/srv/db/releases/" in ran.stdout
    assert stage.state()["left"] == []
