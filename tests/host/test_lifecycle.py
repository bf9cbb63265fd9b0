"""The autoscaling group's hooks, answered by the daemon: launch, termination, warm pool, spot. Times are compressed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bootagent.sandbox.api import Call
from bootagent.sandbox.autoscaling import AutoScaling, Hook, PoolState
from bootagent.sandbox.cloud import Cloud
from tests.conftest import Agent
from tests.host.stage import BUCKET, App, Stage
from tests.host.test_daemon import Daemon, Start, set_notice, start
from tests.waiting import until

__all__ = ["start"]

#: A busy machine may need long for the first heartbeat; from then on they are due every seven seconds.
READY = Hook("ready", "launching", 20)
DRAINED = Hook("drained", "terminating", 20)
CRASHING = (
    '[apps.web.services.server]\ncommand = ["sh", "-c", "echo no such database; exit 1"]\ncheck = { within = "2s" }\n'
)

Group = Callable[..., AutoScaling]


def lifecycle(**settings: str) -> str:
    """The table, with ``settings`` over the usual ones; an empty one leaves its key out."""
    usual = {"launching": "ready", "terminating": "drained", "sustained": "1s", "give_up_after": "60s"}
    usual["diagnosis"] = f"s3://{BUCKET}/diagnoses/{{environment}}"
    return "\n[lifecycle]\n" + "".join(f'{key} = "{value}"\n' for key, value in {**usual, **settings}.items() if value)


@pytest.fixture
def group(cloud: Cloud) -> Iterator[Group]:
    """A group with the cloud's instance: ``group(hooks, pool=…, lag=…)``; it is launched by the test."""
    with ExitStack() as stack:

        def make(
            hooks: Sequence[Hook] = (READY, DRAINED), pool: PoolState | None = None, lag: float = 0
        ) -> AutoScaling:
            made = AutoScaling(cloud, hooks=hooks, pool=pool, lag=lag, compressed=True)
            return stack.enter_context(made)

        yield make


def in_service(stage: Stage, web: App, group: Group, start: Start) -> tuple[AutoScaling, Daemon]:
    """An instance that its group has taken into service, with a release of ``web``."""
    stage.configure(web.config() + lifecycle())
    web.publish("one")
    fleet = group()
    fleet.launch()
    daemon = start()
    until(lambda: fleet.state == "InService")
    return fleet, daemon


def told(daemon: Daemon, beginning: str) -> dict[str, Any]:
    """What an escort has logged, once it has: a note, or that something failed."""

    def found() -> list[dict[str, Any]]:
        lines = daemon.logged("note") + daemon.logged("failed")
        return [one for one in lines if str(one.get("error", one["step"])).startswith(beginning)]

    return dict(until(found)[0])


def diagnosis(cloud: Cloud) -> dict[str, Any]:
    (key,) = [key for key in cloud.keys(BUCKET) if key.startswith("diagnoses/")]
    assert key.startswith(f"diagnoses/staging/{cloud.instance.instance_id}/")
    return dict(json.loads(cloud.get(BUCKET, key)))


# --- launch ------------------------------------------------------------------------------------------------------


def test_a_launch_is_continued_once_health_has_lasted(
    stage: Stage, web: App, start: Start, group: Group, cloud: Cloud
) -> None:
    stage.configure(web.config() + lifecycle(sustained="4s"))
    web.publish("one")
    fleet = group()
    fleet.launch()
    daemon = start()
    until(lambda: any("launch: waiting 4 s of health" in line for line in daemon.manager.heard("STATUS=")))
    seen, pid = time.monotonic(), web.pid()
    assert fleet.state == "Pending:Wait"
    until(lambda: fleet.state == "InService")
    assert time.monotonic() - seen > 3
    assert web.pid() == pid
    assert fleet.answers == [("ready", "CONTINUE", "call")]
    assert fleet.heartbeats
    told(daemon, "launch: continued")
    until(lambda: daemon.status().endswith("; launch: continued"))
    until(lambda: not (stage.root / "run/bootagent/launching").exists())
    assert not (stage.root / "var/lib/bootagent/launch.json").exists()
    # In service there is nothing to answer, after a restart of the agent neither, nor is a run held up.
    daemon.leave()
    cloud.api.forget_calls()
    assert start().ended("run")["exit_code"] == 0
    time.sleep(2)
    assert cloud.count("autoscaling") == cloud.count("autoscaling", "DescribeAutoScalingInstances") == 1


def test_what_does_not_stay_up_is_not_continued(stage: Stage, web: App, start: Start, group: Group) -> None:
    service = '[apps.web.services.server]\ncommand = ["sleep", "3"]\nstable_for = "300ms"\n'
    stage.configure(web.config(service=service) + lifecycle(sustained="6s", give_up_after="12s"))
    web.publish("one")
    fleet = group()
    fleet.launch()
    daemon = start()
    ended = daemon.ended("run")
    assert ended["exit_code"] == 1
    until(lambda: fleet.answers)
    assert fleet.answers[0] == ("ready", "ABANDON", "call")
    assert "not ready after 12 s" in told(daemon, "launch: abandoned")["error"]


def test_a_launch_that_cannot_succeed_is_abandoned_with_its_diagnosis_stored_first(
    stage: Stage, web: App, start: Start, group: Group, cloud: Cloud
) -> None:
    stage.configure(web.config(service=CRASHING) + lifecycle())
    web.publish("one")
    fleet = group()
    fleet.launch()
    daemon = start()
    until(lambda: fleet.answers)
    assert fleet.answers[0] == ("ready", "ABANDON", "call")
    made = [call.action for call in cloud.calls if call.action in ("PutObject", "CompleteLifecycleAction")]
    assert made[:2] == ["PutObject", "CompleteLifecycleAction"]
    found = diagnosis(cloud)
    assert found["failure"]["phase"] == "serve"
    assert "it crashed" in found["failure"]["sentence"]
    assert "no such database" in found["tails"]["web"]
    assert "no such database" in found["logs"]["web.server"]
    assert found["journal"][0]["event"] == "run-begin"
    assert found["status"]["last_run"]["exit_code"] == 1
    # The group terminates it, and waits for the other hook.
    until(lambda: ("drained", "CONTINUE", "call") in fleet.answers)
    assert fleet.state == "Terminated"
    assert daemon.ended("stop")["exit_code"] == 0


def test_long_work_is_carried_by_heartbeats_and_what_another_try_betters_is_tried(
    stage: Stage, web: App, start: Start, group: Group, cloud: Cloud
) -> None:
    stage.configure(web.config(extra='hooks = { prepare = ["sleep", "15"] }') + lifecycle())
    web.publish("one")
    cloud.api.fail("s3", "GetObject", code="ServiceUnavailable", times=8)
    # Throttled as well, and denied at first, as with a role that is late.
    cloud.api.fail("autoscaling", "RecordLifecycleActionHeartbeat", code="Throttling", status=400, times=1)
    cloud.api.fail("autoscaling", "DescribeAutoScalingInstances", code="AccessDenied", status=403, times=1)
    fleet = group()
    fleet.launch()
    daemon = start()
    assert daemon.ended("run")["exit_code"] == 1
    until(lambda: fleet.state == "InService", within=90)
    assert web.answer() == "one"
    assert len(fleet.heartbeats) >= 3
    denied = told(daemon, "to be tried again")["error"]
    assert "allow autoscaling:DescribeAutoScalingInstances to the instance's role" in denied


def escort_of(daemon: Daemon) -> int:
    """The process id of the daemon's escort; 0 when there is none."""
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
    found = [int(pid) for pid in children if b"--escort" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    return found[0] if found else 0


def test_an_escort_that_is_killed_is_sent_again_and_health_is_watched_to_the_end(
    stage: Stage, web: App, start: Start, group: Group
) -> None:
    stage.configure(web.config() + lifecycle(sustained="15s", give_up_after="150s"))
    web.publish("one")
    fleet = group()
    fleet.launch()
    daemon = start()
    until(lambda: any("launch: waiting 15 s of health" in line for line in daemon.manager.heard("STATUS=")))
    seen, first = time.monotonic(), until(lambda: escort_of(daemon))
    os.kill(first, signal.SIGKILL)
    until(lambda: daemon.logged("escort ended"))
    assert daemon.logged("escort ended")[0]["exit_code"] == -9
    until(lambda: escort_of(daemon) not in (0, first))
    assert (stage.root / "run/bootagent/launching").exists()
    assert fleet.state == "Pending:Wait"
    until(lambda: fleet.state == "InService")
    assert time.monotonic() - seen > 14, "it is cut short by nobody"
    assert fleet.answers == [("ready", "CONTINUE", "call")]
    until(lambda: not (stage.root / "run/bootagent/launching").exists())


# --- termination -------------------------------------------------------------------------------------------------


def test_a_termination_is_continued_once_the_services_are_down(
    stage: Stage, web: App, start: Start, group: Group, cloud: Cloud
) -> None:
    slow = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(15), sys.exit()))\n"
        "while True: time.sleep(0.1)\n"
    )
    service = '[apps.web.services.slow]\ncommand = ["python3", "slow.py"]\nstable_for = "300ms"\nstop_within = "30s"\n'
    stage.configure(web.config(service=service) + lifecycle())
    web.publish("one", {"slow.py": slow})
    fleet = group(lag=2)
    fleet.launch()
    daemon = start()
    until(lambda: fleet.state == "InService")
    pid = web.pid("slow")
    down: list[bool] = []

    def answered(call: Call, done: bool) -> None:
        if call.action == "CompleteLifecycleAction" and not done:
            down.append(not Path(f"/proc/{pid}").exists())

    cloud.api.listen(answered)
    fleet.terminate()
    until(lambda: fleet.state == "Terminated")
    assert down == [True], "no answer before the services are down"
    assert fleet.answers[1:] == [("drained", "CONTINUE", "call")]
    assert fleet.heartbeats.count("drained") >= 2
    told(daemon, "termination: continued")
    until(lambda: daemon.status().endswith("; termination: continued"))


def test_a_stop_that_fails_is_told_and_the_termination_is_continued(
    stage: Stage, web: App, start: Start, group: Group
) -> None:
    fleet, daemon = in_service(stage, web, group, start)
    # The stop cannot even begin: its lock is no file.
    lock = stage.root / "run/bootagent/lock"
    lock.unlink()
    lock.mkdir()
    fleet.terminate()
    assert daemon.ended("stop")["exit_code"] != 0
    until(lambda: fleet.state == "Terminated")
    assert fleet.answers[1:] == [("drained", "CONTINUE", "call")]
    lock.rmdir()


def test_a_spot_notice_in_the_middle_of_a_run_has_the_services_stopped_first(
    stage: Stage, web: App, start: Start, group: Group
) -> None:
    fleet, daemon = in_service(stage, web, group, start)
    stage.configure(web.config(extra='hooks = { prepare = ["sleep", "600"] }') + lifecycle())
    web.publish("two")
    daemon.process.send_signal(1)
    until(lambda: "sleep" in daemon.status())
    fleet.interrupt()
    noticed = time.monotonic()
    assert daemon.ended("stop")["exit_code"] == 0
    assert time.monotonic() - noticed < 40
    with pytest.raises(OSError):
        web.answer(within=0)
    until(lambda: "termination: waiting for Terminating:Wait" in daemon.status())
    assert len(fleet.answers) == 1, "the group has not said that it waits"
    fleet.terminate()
    until(lambda: fleet.state == "Terminated")
    assert fleet.answers[1:] == [("drained", "CONTINUE", "call")]


def test_a_scale_in_in_the_middle_of_a_launch_ends_it_and_a_rebalance_notice_does_not(
    stage: Stage, web: App, start: Start, group: Group, cloud: Cloud
) -> None:
    stage.configure(web.config() + lifecycle(sustained="100s", give_up_after="150s"))
    web.publish("one")
    fleet = group(lag=2)
    fleet.launch()
    daemon = start()
    until(lambda: "launch: waiting 100 s of health" in daemon.status())
    set_notice(cloud, "rebalance", '{"noticeTime": "2026-11-20T08:22:00Z"}')
    until(lambda: [one for one in daemon.logged("notice") if one["kind"] == "rebalance"])
    assert "launch: waiting 100 s of health" in daemon.status()
    assert (fleet.state, web.answer()) == ("Pending:Wait", "one")
    fleet.terminate()
    assert daemon.ended("stop")["exit_code"] == 0
    with pytest.raises(OSError):
        web.answer(within=0)
    until(lambda: fleet.state == "Terminated")
    assert fleet.answers == [("drained", "CONTINUE", "call")], "the launch is not answered"
    assert fleet.states[:4] == ["Pending", "Pending:Wait", "Terminating", "Terminating:Wait"]
    assert not [name for name in ("launching", "stopping") if (stage.root / "run/bootagent" / name).exists()]


# --- warm pool ---------------------------------------------------------------------------------------------------


def test_the_warm_pool_gets_it_prepared_and_service_gets_it_serving(
    stage: Stage, web: App, start: Start, group: Group, cloud: Cloud
) -> None:
    stage.configure(web.config(extra='hooks = { prepare = ["sh", "-c", "date +%N > prepared"] }') + lifecycle())
    web.publish("one")
    fleet = group(pool="Stopped")
    fleet.launch()
    daemon = start()
    until(lambda: fleet.state == "Warmed:Stopped")
    assert daemon.ended("run")["exit_code"] == 0
    until(lambda: "not serving: the warm pool has it" in daemon.status())
    assert fleet.answers == [("ready", "CONTINUE", "call")]
    (release,) = web.releases
    assert not (web.deploy_to / "current").exists()
    assert not web.service().exists()
    prepared = (web.deploy_to / "releases" / release / "prepared").read_text()
    daemon.leave()
    path = stage.root / "var/lib/bootagent/state.json"  # it is stopped, and leaves the pool with another boot
    known = json.loads(path.read_text())
    known["apps"]["web"]["pending"]["boot_id"] = "another-boot"
    path.write_text(json.dumps(known))
    cloud.api.forget_calls()
    fleet.take_from_pool()
    start()
    until(lambda: fleet.state == "InService")
    assert fleet.answers == [("ready", "CONTINUE", "call")] * 2
    assert web.answer() == "one"
    assert web.current == release, "what was prepared is what serves"
    assert (web.deploy_to / "current/prepared").read_text() == prepared
    bundles = [call.path for call in cloud.calls if call.action == "GetObject" and "/bundles/" in call.path]
    assert bundles == [], "it is not fetched again"


def test_back_in_the_pool_it_serves_no_longer_and_out_of_it_again(
    stage: Stage, web: App, start: Start, group: Group
) -> None:
    fleet, daemon = in_service(stage, web, group, start)
    fleet.return_to_pool("Running")
    until(lambda: fleet.state == "Warmed:Running")
    assert fleet.answers[1:] == [("drained", "CONTINUE", "call")]
    with pytest.raises(OSError):
        web.answer(within=0)
    fleet.take_from_pool()
    until(lambda: fleet.state == "InService")
    assert fleet.answers[2:] == [("ready", "CONTINUE", "call")]
    assert web.answer() == "one"
    assert daemon.ended("reconfigure", times=2)["exit_code"] == 0


def test_nothing_serves_in_the_pool_where_no_hooks_are_named_either(
    stage: Stage, web: App, start: Start, group: Group, agent: Agent
) -> None:
    stage.configure(web.config())
    web.publish("one")
    fleet = group(hooks=(), pool="Running")
    fleet.launch()
    until(lambda: fleet.state == "Warmed:Running")
    planned = agent("plan")
    assert planned.code == 0 and "not serving: the warm pool has it" in planned.stdout, planned.stdout
    daemon = start()
    assert daemon.ended("run")["exit_code"] == 0
    assert "not serving: the warm pool has it" in until(daemon.status)
    assert not web.service().exists()
    fleet.take_from_pool()
    assert daemon.ended("reconfigure")["exit_code"] == 0
    assert web.answer() == "one"
    fleet.return_to_pool("Running")
    assert daemon.ended("reconfigure", times=2)["exit_code"] == 0
    with pytest.raises(OSError):
        web.answer(within=0)


def test_what_the_image_brings_does_not_serve_in_the_pool(
    stage: Stage, web: App, start: Start, group: Group, cloud: Cloud
) -> None:
    stage.configure(web.config() + lifecycle())
    web.publish("one")
    daemon = start()
    assert daemon.ended("run")["exit_code"] == 0
    daemon.leave()
    web.publish("two")
    fleet = group(pool="Running")
    fleet.launch()
    daemon = start()
    until(lambda: fleet.state == "Warmed:Running")
    with pytest.raises(OSError):
        web.answer(within=0)
    fleet.take_from_pool()
    until(lambda: fleet.state == "InService")
    assert web.answer() == "two"
