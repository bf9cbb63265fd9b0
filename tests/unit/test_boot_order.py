"""How long services wait for their turn at a boot, and what ends it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import tomli

from bootagent.config.document import Document
from bootagent.config.resolve import resolve, validate
from bootagent.machine import Machine
from bootagent.plan import boot_order as of_apps
from bootagent.services import boot_order

CONFIG = """
[apps.web]
deploy_to = "/srv/web"
after = ["queue"]
source = { type = "image", path = "/opt/web" }
[apps.queue]
deploy_to = "/srv/queue"
source = { type = "image", path = "/opt/queue" }
[apps.queue.services.broker]
after = ["store", "db.postgres"]
check = { within = "40s" }
[apps.queue.services.store]
stable_for = "50s"
[apps.db]
deploy_to = "/srv/db"
source = { type = "image", path = "/opt/db" }
[apps.db.services.postgres]
check = { within = "5s" }
[roles.all]
apps = "*"
[roles.web]
apps = ["web"]
"""


def test_a_service_waits_for_the_longest_way_to_it() -> None:
    within = {"db": 30.0, "cache": 10.0, "web": 5.0, "edge": 1.0, "mail": 1.0}
    after = {"web": ["db", "cache"], "cache": ["db"], "edge": ["web"], "mail": ["elsewhere.db"]}
    found = boot_order.waits(within, after)
    assert found == {"db": 0, "cache": 30, "web": 40, "edge": 45, "mail": 0}
    assert boot_order.waits(within, after, before=35) == {"db": 35, "cache": 65, "web": 75, "edge": 80, "mail": 35}


def test_an_app_waits_for_the_apps_before_it_and_for_those_before_them() -> None:
    config = resolve(validate(Document(tomli.loads(CONFIG), {}, "config.toml")), {}, {"Role": "all"})
    found = {app.name: of_apps.before(config, app) for app in config.apps}
    # A release may bring services of its own, with the usual deadline: 30 s.
    assert found == {"db": 0, "queue": 30, "web": 30 + 51 + 40}
    alone = resolve(validate(Document(tomli.loads(CONFIG), {}, "config.toml")), {}, {"Role": "web"})
    assert of_apps.before(alone, alone.apps[0]) == 0, "what does not run here is not waited for"


@pytest.mark.spawns
def test_a_script_waits_until_it_may_begin_and_no_longer_than_it_is_told(tmp_path: Path) -> None:
    machine, outer = Machine(tmp_path), tmp_path / "a sv"
    outer.mkdir()
    script = "\n".join(boot_order.lines(machine, "web.front", str(outer)))

    def took() -> float:
        began = time.monotonic()
        done = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout + done.stderr == ""
        return time.monotonic() - began

    fresh = took()
    assert boot_order.is_noted(outer, 0) and not boot_order.is_noted(outer, 1)
    boot_order.note(machine, outer, 1.8)
    assert boot_order.is_noted(outer, 1.8) and not boot_order.is_noted(outer, 0)
    assert took() >= 2
    boot_order.note(machine, outer, 900)
    boot_order.begin(machine, "web.other")
    boot_order.begin(machine, "web.front")
    assert took() < fresh + 30
    boot_order.forget(machine, "web.front")
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(["sh", "-c", script], check=True, timeout=1)
    boot_order.forget(machine, "web.other")
    assert not machine.real(boot_order.BEGUN).exists()
    boot_order.note(machine, outer, 0)
    assert boot_order.is_noted(outer, 0) and list(outer.iterdir()) == []
