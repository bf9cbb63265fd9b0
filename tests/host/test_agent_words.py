"""What a run that failed says: the phase it was in, the words of whoever failed, and whether another try helps."""

from __future__ import annotations

import json

from tests.conftest import Agent
from tests.host.stage import USER, App, Stage

DATABASE = f"""
[apps.db]
deploy_to = "/opt/db"
user = "{USER}"
source = {{ type = "image", copy = false }}
[apps.db.services.pg]
command = ["sh", "-c", "exit 1"]
check = {{ within = "2s" }}
stable_for = "300ms"
"""


def test_an_app_that_waits_for_a_failed_one_has_failed_where_it_waited(stage: Stage, web: App, agent: Agent) -> None:
    (stage.root / "opt/db").mkdir(parents=True)
    web.publish("one")
    stage.configure(web.config(extra='after = ["db"]'), DATABASE, roles='[roles.web]\napps = "*"\n')
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "its services are not begun: they come after those of db" in ran.stderr
    said = json.loads((stage.root / "run/bootagent-status.json").read_text())
    assert {one["app"]: one["phase"] for one in said["failures"]} == {"db": "serve", "web": "serve"}
    assert "failed in serve, web" in agent("status").stdout
    (told,) = json.loads(agent("history", "--json").stdout)
    assert {one["phase"] for one in told["failures"]} == {"serve"}


def test_a_hook_fails_in_its_own_words_and_a_machine_without_cgroups_is_tried_once(
    stage: Stage, web: App, agent: Agent
) -> None:
    web.publish("one")
    stage.configure(web.config(extra='hooks = { prepare = ["sh", "-c", "exit 7"] }'))
    ran = agent("reconfigure", "--json")
    ending = json.loads(ran.stdout)["endings"]["web"]
    assert ": sh -c 'exit 7' failed with exit code 7" in ending["sentence"]
    assert "setpriv" not in ran.stdout + ran.stderr
    assert ending["transient"]  # what it could not do it may be able to do later

    with_cgroup = web.config() + "cgroup = { processes = 50 }\n"
    stage.configure(with_cgroup)  # below this root there is no /sys
    for ran in (agent("reconfigure", "--json"), agent("reconfigure", "--json")):
        outcome = json.loads(ran.stdout)
        assert (ran.code, outcome["transient"]) == (1, False)
        assert "/sys/fs/cgroup is no cgroup version 2" in outcome["endings"]["web"]["sentence"]
    stage.configure(web.config())
    assert agent("reconfigure").code == 0, "no release is to blame"
    assert web.answer() == "one"
    stage.configure(with_cgroup)
    outcome = json.loads(agent("reconfigure", "--json").stdout)
    assert (outcome["exit_code"], outcome["transient"]) == (1, False)
