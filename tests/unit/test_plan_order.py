"""The order of apps and services, as plans have it."""

from __future__ import annotations

from pathlib import Path

from bootagent import plan
from bootagent.config.document import load
from bootagent.config.resolve import validate
from bootagent.machine import Machine
from bootagent.plan import Lane
from bootagent.state import State
from bootagent.steps.stopped import Stopped
from bootagent.survey import services_to_stop

CONFIG = """
[apps.web]
deploy_to = "/srv/web"
source = { type = "image", path = "/opt/web" }
[apps.web.services.front]
command = ["true"]
after = ["back", "db.postgres"]
stop_within = "3s"
[apps.web.services.back]
command = ["true"]
[apps.db]
deploy_to = "/srv/db"
source = { type = "image", path = "/opt/db" }
[apps.db.services.postgres]
command = ["true"]
[roles.all]
apps = "*"
"""


def test_lanes_go_in_turns() -> None:
    web, db, mail = Lane("web", "keep", {}, after=("db", "elsewhere")), Lane("db", "keep", {}), Lane("mail", "keep", {})
    assert plan.in_turns([web, db, mail]) == [[db, mail], [web]]
    assert plan.in_turns([web]) == [[web]]


def test_what_comes_after_others_is_stopped_before_them(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    for name in ("web.front", "web.back", "db.postgres", "old.job"):
        directory = tmp_path / "etc/sv" / name
        directory.mkdir(parents=True)
        (directory / "bootagent.json").write_text("{}")
    found = services_to_stop(validate(load([path])), State(), Machine(tmp_path))
    names = [one.app for one in found]
    assert names.index("web") < names.index("db")
    assert {one.app: one.after for one in found} == {"web": ("db",), "db": (), "old": ()}
    steps = plan.services_down(found)
    (web,) = [step for step in steps if isinstance(step, Stopped) and step.app == "web"]
    assert web.services == (("web.back", 10.0), ("web.front", 3.0))
    assert dict(web.after)["web.front"] == ("web.back",)
