"""A run killed at any point, then run again: `current` whole, the service healthy, nothing left over."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bootagent.sandbox.cloud import Cloud
from tests.conftest import Agent, agent_argv
from tests.host.stage import App, Stage

#: Runs the command line, and kills itself (SIGKILL) when the journal is about to get its Nth record.
DRIVER = """
import os, signal, sys
from bootagent import cli, journal
left = int(sys.argv.pop(1))
write = journal.Journal.record
def record(self, *words, **fields):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *words, **fields)
journal.Journal.record = record
sys.exit(cli.main())
"""
HOOK = 'hooks = { prepare = ["sh", "-c", "echo prepared >> prepared"] }\nlinked_dirs = ["log"]\nkeep_releases = 3'


def run_killed_at(root: Path, cloud: Cloud, records: int) -> int:
    argv = [sys.executable, "-c", DRIVER, str(records), *agent_argv(root, "reconfigure")[3:]]
    done = subprocess.run(argv, env=cloud.process_environment(), capture_output=True, check=False, timeout=60)
    return done.returncode


def expect_whole(stage: Stage, web: App, version: str) -> None:
    assert web.answer() == version
    assert (web.deploy_to / "current/VERSION").read_text() == version
    assert (web.deploy_to / "current/REVISION").exists()
    assert (web.deploy_to / "current/prepared").read_text().startswith("prepared\n")
    assert stage.release_state("web", web.current) == "good"
    assert stage.state()["apps"]["web"]["pending"] is None
    assert not [path for path in (web.deploy_to / "releases").iterdir() if path.name.startswith(".")]
    assert not [path for path in web.deploy_to.iterdir() if path.name.startswith(".")]
    assert len(web.releases) <= 3


def test_killed_at_every_record_of_a_first_boot(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    """The machine is carried from one kill to the next, each a record further than the last."""
    stage.configure(web.config(extra=HOOK))
    web.publish("one")
    kills = 0
    while run_killed_at(stage.root, cloud, kills) == -signal.SIGKILL:
        kills += 1
        link = web.deploy_to / "current"
        assert not link.is_symlink() or (link / "VERSION").read_text() == "one", "current is absent or whole"
        assert kills < 60
    assert kills > 10, "the run is as long as expected"
    expect_whole(stage, web, "one")
    assert len(web.releases) == 1


@pytest.mark.parametrize("part", range(4))
def test_killed_at_every_record_of_an_update(stage: Stage, web: App, agent: Agent, cloud: Cloud, part: int) -> None:
    """Each kill meets a fresh update; every fourth record in each of four parts, side by side."""
    stage.configure(web.config(extra=HOOK))
    web.publish("0")
    assert agent("reconfigure").code == 0
    at = part
    while True:
        previous = str((web.deploy_to / "current/VERSION").read_text())
        web.publish(str(at + 1))
        killed = run_killed_at(stage.root, cloud, at) == -signal.SIGKILL
        assert (web.deploy_to / "current/VERSION").read_text() in (previous, str(at + 1))
        ran = agent("reconfigure")
        assert ran.code == 0, f"after a kill at record {at}: {ran.stderr}"
        expect_whole(stage, web, str(at + 1))
        if not killed:
            break
        at += 4
    assert at > 10


def test_killed_at_random_moments(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    """Between the records, too: in the middle of an unpack, a switch, a wait."""
    stage.configure(web.config(extra=HOOK))
    filler = {f"files/{number}": os.urandom(2000) for number in range(3000)}
    web.publish("0")
    assert agent("reconfigure").code == 0
    dice = random.Random(4)
    for turn in range(1, 9):
        web.publish(str(turn), {**web.tree(str(turn)), **filler})
        process = subprocess.Popen(
            agent_argv(stage.root, "reconfigure"), env=cloud.process_environment(), stderr=subprocess.DEVNULL
        )
        time.sleep(dice.uniform(0.15, 1.2))
        process.kill()
        process.wait()
        assert (web.deploy_to / "current/VERSION").read_text() in (str(turn - 1), str(turn))
        ran = agent("reconfigure")
        assert ran.code == 0, ran.stderr
        expect_whole(stage, web, str(turn))


def test_a_run_killed_while_taking_back_a_bad_release(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    web.publish("good")
    assert agent("reconfigure").code == 0
    good = web.current
    for at in range(8, 60):
        web.publish(f"bad {at}", {**web.tree("bad"), "server.py": "raise SystemExit(1)\n"})
        if run_killed_at(stage.root, cloud, at) != -signal.SIGKILL:
            break
        ran = agent("reconfigure")
        assert ran.code == 3, ran.stderr
        assert web.current == good and web.answer() == "good"
    else:
        pytest.fail("the run never ended")


def test_two_runs_at_once_take_turns(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    stage.configure(web.config(extra='hooks = { prepare = ["sleep", "2"] }'))
    web.publish("one")
    first = subprocess.Popen(
        agent_argv(stage.root, "run", "--once"), env=cloud.process_environment(), stderr=subprocess.DEVNULL
    )
    time.sleep(1)
    refused = agent("reconfigure", "--lock-wait", "0")
    assert refused.code == 75
    assert f"pid {first.pid}, run" in refused.stderr
    assert agent("status").code == 75
    assert agent("status", "--wait", "60").code == 0
    assert agent("reconfigure", "--lock-wait", "60").code == 0
    assert first.wait() == 0
    assert len(web.releases) == 1
