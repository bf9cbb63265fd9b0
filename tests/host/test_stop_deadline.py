"""A stop that has little time: whoever does not end is cut short, told so, and the machine is down by then."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from bootagent.sandbox.balancer_api import LoadBalancing
from bootagent.sandbox.disks import Disks
from tests.conftest import Agent, processes_of
from tests.host.stage import Stage

pytest_plugins = ("tests.host.disks",)

SECONDS = 15
#: Neither it nor what it leaves behind heeds TERM.
STUBBORN = """
[apps.web.services.job]
command = ["sh", "-c", "trap '' TERM; setsid sh -c 'while :; do sleep 0.1; done' & exec python3 server.py"]
env = {{ PORT = "{port}" }}
stable_for = "300ms"
stop_within = "5m"
check = {{ http = "http://127.0.0.1:{port}/", within = "20s" }}
"""
HOOK = 'hooks = { stop = ["sleep", "301"], within = "5m" }'
ROLE = """
[roles.web]
apps = ["web"]
[roles.web.traffic]
target_groups = [{{ group = "front", port = {port} }}]
within = "60s"
drain_within = "5m"
[roles.web.volumes.data]
mountpoint = "/mnt/data"
user = "nobody"
volume = {{ size = "1GiB" }}
within = "30s"
"""


def noted(root: Path) -> list[str]:
    """What the last run has told in notes."""
    records = [json.loads(line) for line in (root / "var/lib/bootagent/journal.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if record["event"] == "note" and record["run"] == records[-1]["run"]]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_nobody_keeps_a_stop_from_its_deadline(disks: Disks, stage: Stage, agent: Agent, machine_root: Path) -> None:
    """Each of them would like five minutes: a balancer, a service, what that left behind, and a hook."""
    web = stage.app()
    with LoadBalancing(stage.cloud) as balancers:
        balancers.add_group("front", 80)
        stage.configure(
            web.config(extra=HOOK, service=STUBBORN.format(port=web.port)), roles=ROLE.format(port=web.port)
        )
        web.publish("one")
        ran = agent("reconfigure")
        assert ran.code == 0, ran.stderr
        assert os.path.ismount(machine_root / "mnt/data")
        balancers.faults.never_drained = True
        ran = agent("stop", "--within", str(SECONDS))
        assert balancers.state("front", stage.cloud.instance.instance_id) == "draining"
    took = stage.state()["last_run"]["seconds"]  # without the start of Python, which a busy machine makes long
    assert SECONDS / 2 < took < SECONDS, ran.stderr
    assert not os.path.ismount(machine_root / "mnt/data")
    left = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_of(machine_root)]
    assert [words for words in left if b"sandbox.init" not in words and b"runsvdir" not in words] == []
    notes = noted(machine_root)
    assert any(re.search(r"front .*still drains after [0-9.]+ s, in place of 300 s", note) for note in notes), notes
    assert any(re.search(r"web.job had to be killed after [0-9.]+ s, in place of 300 s", note) for note in notes), notes
    assert any(note.startswith("KILL to what web.job left behind") for note in notes), notes
    assert re.search(
        r"sleep 301 took longer than [0-9.]+ s, in place of 300 s, for the stop has to be over", ran.stderr
    )
    assert ran.code == 1, "the hook did not do its work"
    assert "had to be killed after" in stage.state()["last_run"]["apps"]["web"]
