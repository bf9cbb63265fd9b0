"""How services end, and how those that do not work are told from those that do."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from bootagent.services import runit
from tests.conftest import Agent
from tests.host.stage import USER, App, Stage

QUICK = 'check = { within = "3s" }\nstable_for = "300ms"\nstop_within = "2s"\n'
OBEDIENT = 'command = ["sleep", "1000"]\n'
STUBBORN = """command = ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]\n"""


def service(name: str, more: str, quick: str = QUICK) -> str:
    return f"[apps.web.services.{name}]\n{more}{quick}"


def noted(stage: Stage) -> list[str]:
    """All notes of the last run in the journal."""
    lines = (stage.root / "var/lib/bootagent/journal.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [record["step"] for record in records if record["event"] == "note" and record["run"] == records[-1]["run"]]


def test_the_stop_script_goes_before_term_and_who_is_killed_is_told(stage: Stage, web: App, agent: Agent) -> None:
    place = stage.root / "common"
    place.mkdir()
    place.chmod(0o777)
    # It hands back work while the service still runs; then comes TERM.
    tidy = f"""command = ["sh", "-c", "trap 'echo TERM >>{place}/tidy; exit 0' TERM; while :; do sleep 0.1; done"]
stop = ["sh", "-c", "echo $(id -un) $GREETING $(cat VERSION) >>{place}/tidy"]
env = {{ GREETING = "hello" }}
"""
    late = OBEDIENT + 'stop = ["sh", "-c", "trap : TERM; while :; do sleep 0.1; done"]\n'
    failing = OBEDIENT + 'stop = ["sh", "-c", "exit 7"]\n'
    stage.configure(
        web.config(
            service=service("tidy", tidy)
            + service("late", late)
            + service("failing", failing)
            + service("stubborn", STUBBORN)
            + service("hung", "")
        )
    )
    tree = {
        "config/service/hung/run": "#!/bin/sh\nexec sleep 1000\n",
        "config/service/hung/control/t": "#!/bin/sh\nexec sleep 8\n",
    }
    web.publish("one", {**web.tree("one"), **tree})
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    ran = agent("stop")
    assert ran.code == 0, ran.stderr
    assert (place / "tidy").read_text() == f"{USER if os.geteuid() == 0 else user} hello one\nTERM\n"
    notes = noted(stage)
    assert "web.stubborn had to be killed after 2 s" in notes
    assert "a control script of web.hung did not end, and was killed" in notes
    assert "the stop script of web.late took too long, and was ended" in notes
    assert "the stop script of web.failing failed with exit code 7" in notes
    assert not [note for note in notes if "web.tidy" in note or "web.late had" in note or "web.failing had" in note]
    told = stage.state()["last_run"]["apps"]["web"]
    assert "web.stubborn had to be killed after 2 s" in told and "web.tidy" not in told, told
    assert "web.stubborn had to be killed after 2 s" in ran.stderr

    assert agent("reconfigure").code == 0
    for name in ("tidy", "late", "failing", "stubborn", "hung"):
        assert web.pid(name)


def test_a_check_that_flaps_does_not_pass(stage: Stage, web: App, agent: Agent) -> None:
    """Every second look would find it well."""
    place = stage.root / "common"
    place.mkdir()
    place.chmod(0o777)
    flapping = f"test -e {place}/odd && rm {place}/odd && echo not now && exit 1; : >{place}/odd"
    check = 'stable_for = "300ms"\n' + f'check = {{ command = ["sh", "-c", "{flapping}"], within = "3s" }}\n'
    job = 'command = ["sh", "-c", "echo at work; exec sleep 1000"]\n'
    stage.configure(web.config(service=service("job", job, check)))
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "web.job is not healthy after 3 s: its check does not keep passing" in ran.stderr, ran.stderr
    assert "not now" in ran.stderr and "at work" in ran.stderr, ran.stderr


def test_a_port_that_is_taken_is_told_with_the_log(stage: Stage, web: App, agent: Agent) -> None:
    # What is up for as long as Python takes to begin is no proof.
    slow = 'check = { within = "20s" }\nstable_for = "6s"\n'
    second = service(
        "second", f'command = ["python3", "server.py"]\nenv = {{ PORT = "{web.port}" }}\nafter = ["server"]\n', slow
    )
    first = web.config(extra="").partition("[apps.web.services.server]")[2]
    stage.configure(web.config(service=f"[apps.web.services.server]{first}\n{second}"))
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "service web.second is not healthy" in ran.stderr and "web.server is not" not in ran.stderr
    assert "Address already in use" in ran.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be two users")
def test_the_user_of_a_service_leads_it_without_root(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(service=service("job", OBEDIENT + 'stop = ["sh", "-c", "echo stopping"]\n')))
    web.publish("one")
    assert agent("reconfigure").code == 0

    def sv(*words: str, place: Path) -> int:
        return subprocess.run(["sv", *words, place], user=USER, check=False, capture_output=True).returncode

    pid = web.pid("job")
    assert sv("-w", "5", "restart", place=web.service("job")) == 0
    deadline = time.monotonic() + 60
    while (found := runit.status(web.service("job"))) is None or found.pid in (0, pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    log = stage.root / "var/log/bootagent/web.job/current"
    while "stopping" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert sv("down", place=web.service("job").parent) != 0, "the one around it is root's"
