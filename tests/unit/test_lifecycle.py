"""What is judged of a launch, what is watched meanwhile, and the rules of the simulated group."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bootagent import aws, journal, readiness, state
from bootagent.environment import secrets
from bootagent.environment.concealed import Concealed
from bootagent.errors import AwsError, MetadataError, UsageError
from bootagent.instance import Instance
from bootagent.journal import Journal
from bootagent.lifecycle import diagnosis, escort, group, heart, place
from bootagent.lifecycle.place import Place
from bootagent.lifecycle.verdict import RunEnd, Runs, Verdict, failure, judge
from bootagent.machine import Machine
from bootagent.sandbox.api import Call
from bootagent.sandbox.autoscaling import AutoScaling, Hook
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.metadata import LIFECYCLE, SPOT
from bootagent.services import servicedir
from tests.waiting import until

CONFIGURATION = """
[apps.web]
deploy_to = "/srv/web"
source = { type = "image" }
[roles.web]
apps = ["web"]
"""


# --- the verdict -------------------------------------------------------------------------------------------------


def ended(exit_code: int, *, transient: bool = False, readiness: str | None = None) -> RunEnd:
    return RunEnd(exit_code, transient, readiness)


@pytest.mark.parametrize(
    ("end", "late", "verdict"),
    [
        (None, False, "wait"),
        (None, True, "give up"),
        (ended(0, readiness="sustained"), False, "continue"),
        (ended(0, readiness="sustained"), True, "continue"),
        (ended(0), False, "wait"),  # such as what somebody has stopped
        (ended(0), True, "give up"),
        (ended(0, readiness="prepared"), False, "wait"),
        (ended(1, transient=True), False, "wait"),
        (ended(1, transient=True), True, "give up"),
        (ended(1), False, "give up"),
        (ended(2), False, "give up"),
        (ended(3, transient=True, readiness="sustained"), False, "wait"),
        (ended(3, transient=True, readiness="sustained"), True, "continue"),
        (ended(3, readiness="sustained"), False, "continue"),
        (ended(3), True, "give up"),
    ],
)
def test_a_launch_is_judged_by_the_last_run(end: RunEnd | None, late: bool, verdict: Verdict) -> None:
    assert judge(end, pooled=False, late=late) == verdict


def test_for_the_pool_it_is_enough_to_be_prepared() -> None:
    assert judge(ended(0, readiness="prepared"), pooled=True, late=False) == "continue"
    assert judge(ended(0, readiness="sustained"), pooled=True, late=False) == "wait"


class Book:
    """A journal to be written as runs write it."""

    def __init__(self, root: Path) -> None:
        self.machine = Machine(root)

    def run(self, command: str = "run", *, boot_id: str = "", since: float | None = None, **ending: Any) -> None:
        one = Journal(self.machine)
        one.run = f"{command}-{time.monotonic_ns()}"
        begun = journal.uptime() if since is None else since
        one.record("run-begin", command=command, boot_id=boot_id or journal.boot_id(), uptime=begun)
        if ending.get("exit_code"):
            one.record("failed", phase="stage", step="pull", error="it broke")
        usual = {"exit_code": 0, "transient": False, "readiness": None, "problems": ["no luck"]}
        one.record("run-end", **{**usual, "uptime": journal.uptime(), **ending})
        one.close()

    def begin(self, pid: int, since: float) -> Journal:
        """A run of some process that has not ended."""
        one = Journal(self.machine)
        one.run = f"run-{pid}"
        one.record("run-begin", command="run", boot_id=journal.boot_id(), uptime=since)
        return one


def test_only_runs_of_this_launch_count(tmp_path: Path) -> None:
    book, since = Book(tmp_path), journal.uptime()
    runs = Runs(book.machine, since)
    assert runs.last() is None, "there is no journal yet"
    book.run(since=since - 1)
    assert runs.last() is None, "it began before"
    book.run(boot_id="another", since=since + 1)
    assert runs.last() is None, "that was another boot"
    book.run("retry", exit_code=1, transient=True)
    found = runs.last()
    assert found is not None
    assert (found.exit_code, found.transient, found.problems) == (1, True, ("no luck",))
    assert failure(found) == {"phase": "stage", "step": "pull", "sentence": "it broke"}
    assert Runs(book.machine, since).last() == found, "though it ended before anybody looked"
    book.run("rollback")
    assert runs.last() == found, "it was not to configure the instance"
    book.run("reconfigure")
    last = runs.last()
    assert last is not None
    assert (last.exit_code, failure(last)) == (0, {})


def test_the_last_run_is_the_one_that_ended_last(tmp_path: Path) -> None:
    """The one at boot waits for its tags; meanwhile user-data has its turn, and fails."""
    book, since = Book(tmp_path), journal.uptime()
    waiting = book.begin(os.getpid(), since)
    runs = Runs(book.machine, since)
    assert runs.are_at_work() and runs.last() is None
    book.run("reconfigure", since=since + 1, exit_code=1)
    last = runs.last()
    assert last is not None and last.exit_code == 1
    assert judge(last, pooled=False, late=False, at_work=runs.are_at_work()) == "wait"
    assert judge(last, pooled=False, late=True, at_work=runs.are_at_work()) == "give up"
    time.sleep(0.02)
    waiting.record("run-end", uptime=journal.uptime(), exit_code=0, transient=False, readiness="sustained")
    waiting.close()
    last = runs.last()
    assert last is not None and last.exit_code == 0 and not runs.are_at_work()
    assert judge(last, pooled=False, late=False, at_work=False) == "continue"


@pytest.mark.spawns
def test_a_run_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    book, since = Book(tmp_path), journal.uptime()
    killed = subprocess.Popen(["sleep", "60"])
    runs = Runs(book.machine, since)
    book.begin(killed.pid, since)
    book.run("reconfigure", exit_code=1)
    assert runs.are_at_work()
    killed.kill()
    killed.wait()
    last = runs.last()
    assert judge(last, pooled=False, late=False, at_work=runs.are_at_work()) == "give up"


# --- health that lasts -------------------------------------------------------------------------------------------


class Flag:
    """A step that is satisfied for as long as it is told to be."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __str__(self) -> str:
        return "be so"

    def is_satisfied(self, machine: Machine) -> bool:
        self.times -= 1
        return self.times >= 0

    def apply(self, machine: Machine) -> None:
        raise AssertionError("it is only to be looked at")


@pytest.fixture
def launching(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    path = machine.real(readiness.LAUNCHING)
    path.parent.mkdir(parents=True)
    path.touch()
    return machine


def test_services_are_looked_at_until_the_time_is_over(launching: Machine) -> None:
    begun = time.monotonic()
    assert readiness.lasting_problem(launching, {"web": (Flag(1000),)}, "/etc/sv", 1.2) is None
    assert time.monotonic() - begun >= 1.2
    assert readiness.lasting_problem(launching, {"web": (Flag(1000),), "api": (Flag(1),)}, "/etc/sv", 5) == (
        "api: its services did not stay healthy for 5 s"
    )


def test_nobody_waits_longer_than_the_launch_does(launching: Machine) -> None:
    launching.real(readiness.LAUNCHING).unlink()
    begun = time.monotonic()
    assert readiness.lasting_problem(launching, {"web": (Flag(0),)}, "/etc/sv", 60) is None
    assert time.monotonic() - begun < 5


# --- the diagnosis -----------------------------------------------------------------------------------------------


def place_with(tmp_path: Path, settings: str) -> Place | None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIGURATION + settings)
    config.chmod(0o600)
    return place.read(Machine(tmp_path), config, {})


@pytest.mark.parametrize(
    ("wanted", "prefix"),
    [
        ("s3://logs/{environment}/{tag:Team}/", "s3://logs/staging/blue"),
        ("s3://logs/{region}/{tag:Missing}/x", "s3://logs"),
        ("s3://logs", "s3://logs"),
    ],
)
def test_where_the_diagnosis_goes_is_filled_in_as_far_as_it_can_be(tmp_path: Path, wanted: str, prefix: str) -> None:
    found = place_with(tmp_path, f'[lifecycle]\nlaunching = "ready"\ndiagnosis = "{wanted}"\n')
    assert found is not None
    assert found.diagnosis(Instance("i-1", "eu-west-1", tags={"Environment": "staging", "Team": "blue"})) == prefix


def test_a_configuration_without_hooks_has_no_place(tmp_path: Path) -> None:
    assert place_with(tmp_path, "") is None


# --- the group ---------------------------------------------------------------------------------------------------


@pytest.fixture
def inside(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process calls AWS as a program on the cloud's instance does."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    aws.forget_clients()
    yield
    aws.forget_clients()


def member(cloud: Cloud) -> group.Member:
    found = group.member(cloud.region, cloud.instance.instance_id)
    assert found is not None
    return found


def target(cloud: Cloud) -> Any:
    return cloud.metadata._entries[LIFECYCLE].decode()


def test_a_launch_waits_for_every_hook_and_an_answer_counts_once(cloud: Cloud, inside: None) -> None:
    hooks = [Hook("a", "launching", 60), Hook("b", "launching", 7200), Hook("c", "terminating", 60)]
    with AutoScaling(cloud, hooks=hooks) as fleet:
        assert group.member(cloud.region, cloud.instance.instance_id) is None
        fleet.launch()
        until(lambda: fleet.state == "Pending:Wait")
        one = member(cloud)
        assert (one.group, one.launch_waits, one.end_waits, target(cloud)) == ("fleet", True, False, "InService")
        assert group.hook(one, "a") == group.Hook("a", 60.0, 6000.0)
        assert group.hook(one, "d") is None
        assert group.beat(one, "a")
        assert not group.beat(one, "c"), "it is for the other end"
        assert group.complete(one, "a", "CONTINUE")
        assert not group.complete(one, "a", "CONTINUE")
        assert not group.beat(one, "a")
        assert member(cloud).state == "Pending:Wait"
        assert group.complete(one, "b", "CONTINUE")
        assert fleet.states == ["Pending", "Pending:Wait", "Pending:Proceed", "InService"]
        with pytest.raises(AwsError, match="not found") as raised:
            group.complete(one, "d", "CONTINUE")
        assert raised.value.iam_action == "autoscaling:CompleteLifecycleAction"


def test_abandoned_it_goes_by_way_of_the_other_hooks(cloud: Cloud, inside: None) -> None:
    hooks = [Hook("a", "launching", 60), Hook("b", "launching", 60), Hook("c", "terminating", 60)]
    with AutoScaling(cloud, hooks=hooks) as fleet:
        fleet.launch()
        until(lambda: fleet.state == "Pending:Wait")
        assert group.complete(member(cloud), "a", "ABANDON")
        assert target(cloud) == "Terminated"
        until(lambda: fleet.state == "Terminating:Wait")
        assert not group.complete(member(cloud), "b", "CONTINUE"), "it waits no longer"
        assert group.complete(member(cloud), "c", "CONTINUE")
        assert fleet.states[-2:] == ["Terminating:Proceed", "Terminated"]
        assert group.member(cloud.region, cloud.instance.instance_id) is None


@pytest.mark.parametrize(("default", "state"), [("ABANDON", "Terminated"), ("CONTINUE", "InService")])
def test_without_an_answer_the_default_result_counts(cloud: Cloud, default: Any, state: str) -> None:
    with AutoScaling(cloud, hooks=[Hook("a", "launching", 1, default)], compressed=True) as fleet:
        fleet.launch()
        until(lambda: fleet.state == state)
        assert fleet.answers == [("a", default, "timeout")]


def test_heartbeats_give_time_but_not_for_ever(cloud: Cloud) -> None:
    hook = Hook("a", "launching", 1)
    assert (hook.limit, Hook("b", "launching", 7200).limit) == (100, 48 * 3600)
    with AutoScaling(cloud, hooks=[hook], compressed=True) as fleet:
        fleet.launch()
        until(lambda: fleet.state == "Pending:Wait")
        fleet._actions[0].limit = time.monotonic() + 2
        begun = time.monotonic()
        while not fleet.answers:
            assert time.monotonic() - begun < 10
            if fleet.state == "Pending:Wait" and not fleet.answers:
                fleet.beat("a", fleet.instance_id)
            time.sleep(0.3)
        assert 1.5 < time.monotonic() - begun < 5


def test_the_target_is_told_before_the_state_is_reached(cloud: Cloud, inside: None) -> None:
    with AutoScaling(cloud, hooks=[Hook("c", "terminating", 60)], lag=2) as fleet:
        fleet.launch()
        until(lambda: fleet.state == "InService" and member(cloud))
        fleet.terminate()
        assert (target(cloud), member(cloud).state) == ("Terminated", "InService")
        assert not group.complete(member(cloud), "c", "CONTINUE")
        until(lambda: fleet.state == "Terminating:Wait")


def test_the_pool_has_launches_of_its_own(cloud: Cloud, inside: None) -> None:
    with AutoScaling(cloud, hooks=[Hook("a", "launching", 60)], pool="Hibernated") as fleet:
        fleet.launch()
        until(lambda: fleet.state == "Warmed:Pending:Wait")
        assert (target(cloud), member(cloud).launch_waits, member(cloud).is_pooled) == ("Warmed:Hibernated", True, True)
        assert group.complete(member(cloud), "a", "CONTINUE")
        assert fleet.state == "Warmed:Hibernated"
        fleet.take_from_pool()
        until(lambda: fleet.state == "Pending:Wait")
        assert target(cloud) == "InService"
        assert group.complete(member(cloud), "a", "CONTINUE")
        assert fleet.state == "InService"


def test_spot_gives_two_minutes(cloud: Cloud) -> None:
    with AutoScaling(cloud) as fleet:
        fleet.launch()
        until(lambda: fleet.state == "InService")
        fleet.interrupt()
        assert json.loads(cloud.metadata._entries[SPOT])["action"] == "terminate"


def test_timeouts_are_those_aws_takes(cloud: Cloud) -> None:
    with pytest.raises(UsageError, match="30 to 7200"):
        AutoScaling(cloud, hooks=[Hook("a", "launching", 5)])


def test_a_denial_names_the_action(cloud: Cloud, inside: None) -> None:
    with AutoScaling(cloud, hooks=[Hook("a", "launching", 60)]):
        cloud.api.fail("autoscaling", "DescribeAutoScalingInstances", code="AccessDenied", status=403)
        with pytest.raises(AwsError, match="allow autoscaling:DescribeAutoScalingInstances to the instance's role"):
            group.member(cloud.region, cloud.instance.instance_id)
        cloud.api.fail("autoscaling", "DescribeAutoScalingInstances", code="Throttling", status=400, times=2)
        assert group.member(cloud.region, cloud.instance.instance_id) is None


# --- the escort --------------------------------------------------------------------------------------------------


class Journey:
    """An escort at work in a thread of this process; ``ends`` writes how a run went, as the daemon's runs do."""

    def __init__(self, tmp_path: Path, **settings: str) -> None:
        usual = {"launching": "ready", "terminating": "drained", "give_up_after": "60s", "sustained": "0s"}
        lines = "".join(f'{key} = "{value}"\n' for key, value in {**usual, **settings}.items() if value)
        found = place_with(tmp_path, f"[lifecycle]\n{lines}")
        assert found is not None
        self.machine, self.said, self._book = found.machine, list[str](), Book(tmp_path)
        self._place, self.done = found, None
        self._thread = threading.Thread()

    def begin(self, what: str = "launching") -> None:
        self.mark()
        one = escort.Escort(self._place, lambda sentence, wrong: self.said.append(sentence))

        def work() -> None:
            self.done = getattr(one, what)()

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def mark(self) -> None:
        """As the daemon does before a run begins."""
        path = self.machine.real(readiness.LAUNCHING)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(f"{journal.uptime()}\n")

    def ends(self, code: int, **more: Any) -> None:
        self._book.run(exit_code=code, **more)

    def over(self) -> bool:
        self._thread.join(60)
        return not self._thread.is_alive()

    def heard(self, beginning: str) -> bool:
        return any(sentence.startswith(beginning) for sentence in self.said)


@pytest.fixture
def quick(inside: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (
        ("LOOK_SECONDS", 0.05),
        ("ASK_SECONDS", 0.2),
        ("CONFIRM_SECONDS", 1.0),
        ("STORE_SECONDS", 1.0),
    ):
        monkeypatch.setattr(escort, name, seconds)
    monkeypatch.setattr(heart, "RETRY_SECONDS", 0.2)


READY, DRAINED = Hook("ready", "launching", 6), Hook("drained", "terminating", 6)


@pytest.fixture
def fleet(cloud: Cloud, quick: None) -> Iterator[AutoScaling]:
    with AutoScaling(cloud, hooks=[READY, DRAINED], compressed=True) as running:
        running.launch()
        until(lambda: running.state == "Pending:Wait")
        yield running


def test_what_is_to_stay_stays_until_somebody_mends_it(tmp_path: Path, cloud: Cloud, fleet: AutoScaling) -> None:
    cloud.create_bucket("logs")
    journey = Journey(tmp_path, on_failure="stay", diagnosis="s3://logs", give_up_after="4s")
    journey.begin()
    until(lambda: journey.heard("launch: fleet waits"))
    journey.ends(1)
    until(lambda: journey.heard("launch: given up, and kept for inspection: no luck"))
    (key,) = cloud.keys("logs")
    assert json.loads(cloud.get("logs", key))["why"] == "no luck"
    before = len(fleet.heartbeats)
    until(lambda: len(fleet.heartbeats) >= before + 3)  # beyond the time it would have been tried for
    assert (fleet.state, fleet.answers) == ("Pending:Wait", [])
    journey.ends(0, readiness="sustained")
    assert journey.over()
    assert fleet.state == "InService"
    assert len(cloud.keys("logs")) == 1


def test_a_diagnosis_that_cannot_be_stored_is_told_and_no_reason_to_stay(
    tmp_path: Path, cloud: Cloud, fleet: AutoScaling
) -> None:
    cloud.create_bucket("logs")
    journey = Journey(tmp_path, diagnosis="s3://logs/below")
    cloud.api.fail("s3", "PutObject", code="AccessDenied", status=403, times=99)
    journey.begin()
    until(lambda: journey.heard("launch: fleet waits"))
    journey.ends(2)
    assert journey.over()
    assert journey.heard("launch: the diagnosis is not stored: cannot store the diagnosis as s3://logs/below/i-")
    assert "allow s3:PutObject to the instance's role" in journey.said[-2]
    assert fleet.answers[0] == ("ready", "ABANDON", "call")
    assert journey.said[-1] == "launch: abandoned: no luck"


def test_what_another_try_may_better_is_waited_for_but_not_for_ever(tmp_path: Path, fleet: AutoScaling) -> None:
    journey = Journey(tmp_path, give_up_after="5s")
    begun = time.monotonic()
    journey.begin()
    until(lambda: journey.heard("launch: fleet waits"))
    journey.ends(1, transient=True)
    assert journey.over()
    assert time.monotonic() - begun >= 4
    assert fleet.answers[0] == ("ready", "ABANDON", "call")
    assert journey.said[-1] == "launch: abandoned: not ready after 5 s: no luck"


def test_a_restart_gives_a_launch_no_more_time(tmp_path: Path, cloud: Cloud, fleet: AutoScaling) -> None:
    path = tmp_path / "var/lib/bootagent/launch.json"
    path.parent.mkdir(parents=True)
    known = {"instance_id": cloud.instance.instance_id, "state": "Pending:Wait", "boot_id": "before"}
    path.write_text(json.dumps({**known, "uptime": 1.0, "at": time.time() - 100}))
    journey = Journey(tmp_path)
    journey.begin()
    assert journey.over()
    assert fleet.answers[0] == ("ready", "ABANDON", "call")
    assert not path.exists()


def test_degraded_it_is_continued_when_nothing_better_comes_in_time(tmp_path: Path, fleet: AutoScaling) -> None:
    journey = Journey(tmp_path, give_up_after="4s")
    journey.begin()
    until(lambda: journey.heard("launch: fleet waits"))
    journey.ends(3, transient=True, readiness="sustained")
    time.sleep(1)
    assert fleet.answers == []
    assert journey.over()
    assert fleet.state == "InService"


@pytest.mark.parametrize("hooks", [[Hook("theirs", "launching", 60)], []], ids=["another hook", "no hook"])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, cloud: Cloud, quick: None, hooks: list[Hook]) -> None:
    with AutoScaling(cloud, hooks=hooks) as fleet:
        fleet.launch()
        until(lambda: fleet.state == ("Pending:Wait" if hooks else "InService"))
        journey = Journey(tmp_path)
        journey.begin()
        assert journey.over()
        assert journey.said == (["launch: group fleet has no hook ready"] if hooks else [])
        assert {call.action for call in cloud.calls} <= {"DescribeAutoScalingInstances", "DescribeLifecycleHooks"}


def test_a_role_that_is_late_is_waited_for_and_told(tmp_path: Path, cloud: Cloud, fleet: AutoScaling) -> None:
    cloud.api.fail("autoscaling", "DescribeAutoScalingInstances", code="AccessDenied", status=403, times=2)
    cloud.api.fail("autoscaling", "RecordLifecycleActionHeartbeat", code="AccessDenied", status=403, times=1)
    journey = Journey(tmp_path)
    journey.begin()
    until(lambda: fleet.heartbeats)
    journey.ends(0, readiness="sustained")
    assert journey.over()
    assert fleet.state == "InService"
    denied = [sentence for sentence in journey.said if "AccessDenied" in sentence]
    assert len(denied) == 2, "each is told once"
    assert "allow autoscaling:DescribeAutoScalingInstances" in denied[0]
    assert "allow autoscaling:RecordLifecycleActionHeartbeat" in denied[1]


def test_an_end_is_answered_once_the_stop_is_over(tmp_path: Path, fleet: AutoScaling) -> None:
    journey = Journey(tmp_path)
    stopping = journey.machine.real(escort.STOPPING)
    stopping.parent.mkdir(parents=True, exist_ok=True)
    stopping.touch()
    journey.begin("terminating")
    until(lambda: journey.heard("termination: waiting for Terminating:Wait"))
    fleet.terminate()
    until(lambda: fleet.heartbeats.count("drained") >= 2)
    assert fleet.state == "Terminating:Wait"
    stopping.unlink()
    assert journey.over()
    assert fleet.answers == [("drained", "CONTINUE", "call")]
    assert journey.said[-1] == "termination: continued"


def test_an_end_that_the_group_knows_nothing_of_is_not_answered(tmp_path: Path, fleet: AutoScaling) -> None:
    journey = Journey(tmp_path)
    journey.begin("terminating")
    assert journey.over()
    assert journey.said[-1] == "termination: the state is Pending:Wait, not Terminating:Wait; nothing is answered"
    assert fleet.answers == []


def test_a_hook_that_is_deleted_waits_no_longer(tmp_path: Path, cloud: Cloud, fleet: AutoScaling) -> None:
    journey = Journey(tmp_path)
    journey.begin()
    until(lambda: fleet.heartbeats)
    fleet.delete_hook("ready")
    assert journey.over()
    assert journey.said[-1] == "launch: the hook waits no longer"
    assert "CompleteLifecycleAction" not in {call.action for call in cloud.calls}


def test_what_was_judged_for_the_pool_is_no_answer_for_service(
    tmp_path: Path, cloud: Cloud, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instance leaves the pool just as the escort is about to answer: it is prepared, and does not serve."""
    with AutoScaling(cloud, hooks=[Hook("ready", "launching", 60)], pool="Running", compressed=True) as fleet:
        fleet.launch()
        until(lambda: fleet.state == "Warmed:Pending:Wait")
        judged = threading.Event()

        def judging(*about: Any, **more: Any) -> Verdict:
            found = judge(*about, **more)
            if found == "continue" and not judged.is_set():
                judged.set()
                fleet.complete("ready", fleet.instance_id, "CONTINUE")  # somebody else
                fleet.take_from_pool()
                until(lambda: fleet.state == "Pending:Wait")
            return found

        monkeypatch.setattr(escort, "judge", judging)
        journey = Journey(tmp_path)
        journey.begin()
        until(lambda: journey.heard("launch: fleet waits"))
        journey.ends(0, readiness="prepared")
        assert journey.over()
        assert fleet.state == "Pending:Wait"
        assert journey.said[-1] == "launch: the hook waits no longer"


def test_a_run_that_ended_before_the_escort_was_there_counts(tmp_path: Path, fleet: AutoScaling) -> None:
    journey = Journey(tmp_path)
    journey.mark()
    journey.ends(0, readiness="sustained")
    journey.begin()
    assert journey.over()
    assert fleet.state == "InService"


def test_the_diagnosis_comes_before_the_groups_patience_is_over(
    tmp_path: Path, cloud: Cloud, fleet: AutoScaling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(escort, "SHARE_OF_LIMIT", 2.0 / READY.limit)
    cloud.create_bucket("logs")
    journey = Journey(tmp_path, diagnosis="s3://logs", give_up_after="1000s")
    journey.begin()
    assert journey.over()
    assert fleet.answers[0] == ("ready", "ABANDON", "call")
    assert journey.said[-1] == "launch: abandoned: not ready after 2 s: no run has ended"
    assert len(cloud.keys("logs")) == 1


def test_the_heart_beats_while_the_diagnosis_cannot_be_stored_yet(
    tmp_path: Path, cloud: Cloud, fleet: AutoScaling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(escort, "STORE_SECONDS", 60.0)
    monkeypatch.setattr(escort, "ASK_SECONDS", 3.0)
    cloud.create_bucket("logs")
    cloud.api.fail("s3", "PutObject", code="AccessDenied", status=403, times=3)
    journey = Journey(tmp_path, diagnosis="s3://logs")
    journey.begin()
    until(lambda: journey.heard("launch: fleet waits"))
    before = len(fleet.heartbeats)
    journey.ends(1)
    assert journey.over()
    assert len(cloud.keys("logs")) == 1
    assert fleet.answers[0] == ("ready", "ABANDON", "call")
    assert len(fleet.heartbeats) > before, "longer than the hook's timeout"


def test_the_heart_beats_while_an_answer_is_not_taken(
    tmp_path: Path, cloud: Cloud, fleet: AutoScaling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(escort, "ASK_SECONDS", 3.0)  # three of them are longer than the hook's timeout
    cloud.api.fail("autoscaling", "CompleteLifecycleAction", code="AccessDenied", status=403, times=3)
    journey = Journey(tmp_path)
    journey.begin()
    journey.ends(0, readiness="sustained")
    assert journey.over()
    assert fleet.state == "InService"
    assert journey.heard("to be tried again: cannot answer CONTINUE to hook ready of fleet: AccessDenied")


def test_the_heart_does_not_beat_for_who_hangs(fleet: AutoScaling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heart, "HANG_SECONDS", 1.0)
    one = group.member(None, fleet.instance_id)
    assert one is not None
    with heart.Heart(one, group.Hook("ready", 0.6, 600.0), lambda sentence: None) as beating:
        for _ in range(5):
            time.sleep(0.4)
            beating.go_on()
        assert len(fleet.heartbeats) >= 5
        time.sleep(2)
        before = len(fleet.heartbeats)
        until(lambda: fleet.state == "Terminating:Wait")  # nobody has answered, and its time is over
        assert len(fleet.heartbeats) == before
        assert fleet.answers == [("ready", "ABANDON", "timeout")]


def test_a_disk_that_hangs_holds_no_diagnosis_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stand-in is a named pipe that nobody writes to."""
    monkeypatch.setattr(diagnosis, "LOOK_SECONDS", 0.5)
    found = place_with(tmp_path, '[lifecycle]\nlaunching = "ready"\n')
    assert found is not None
    pipe = found.machine.real(journal.PATH).with_name("journal.1.jsonl")
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    made = diagnosis.make(found, "i-1", "why", None)
    assert made["why"] == "why"
    assert made["status"] == {"error": "to read the status took longer than 0.5 s"}
    os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # and on it goes


def test_a_diagnosis_has_the_ends_of_logs_without_secrets(tmp_path: Path) -> None:
    found = place_with(tmp_path, '[lifecycle]\nlaunching = "ready"\n')
    assert found is not None
    directory, log = tmp_path / "etc/sv/web.job", tmp_path / "var/log/bootagent/web.job"
    for made in (directory, log):
        made.mkdir(parents=True)
    (directory / "bootagent.json").write_text("{}")
    for service, value in (("job", "0wn-secret"), (None, "secret-of-the-app")):
        where = secrets.place("web", service)
        secrets.write(found.machine, where, {"KEY": secrets.Secret(Concealed(value), "ssm:/key")})
    (log / "current").write_text("no way to 0wn-secret\nnor to secret-of-the-app\n")
    logs = diagnosis.make(found, "i-1", "why", None)["logs"]
    assert logs == {"web.job": "no way to (secret)\nnor to (secret)"}


def test_an_answer_that_is_never_taken_is_worth_another_escort(
    tmp_path: Path, cloud: Cloud, fleet: AutoScaling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(escort, "ANSWER_SECONDS", 0.0)
    cloud.api.fail("autoscaling", "CompleteLifecycleAction", code="AccessDenied", status=403, times=1)
    journey = Journey(tmp_path)
    journey.begin()
    journey.ends(0, readiness="sustained")
    assert journey.over()
    assert journey.done is False
    assert fleet.state == "Pending:Wait"
    journey.begin()
    assert journey.over()
    assert (journey.done, fleet.state) == (True, "InService")


def test_a_launch_that_is_terminated_is_not_answered(tmp_path: Path, cloud: Cloud, fleet: AutoScaling) -> None:
    journey = Journey(tmp_path)
    journey.begin()
    until(lambda: fleet.heartbeats)
    fleet.terminate()
    assert journey.over()
    assert journey.said[-1] == "launch: the hook waits no longer"
    assert (fleet.state, fleet.answers) == ("Terminating:Wait", [])


def test_what_metadata_knows_before_the_group_does_is_waited_for(
    tmp_path: Path, cloud: Cloud, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(escort, "CONFIRM_SECONDS", 20.0)
    with AutoScaling(cloud, hooks=[READY], compressed=True) as fleet:
        cloud.metadata.put(LIFECYCLE, "InService")
        journey = Journey(tmp_path)
        journey.begin()
        until(lambda: cloud.count("autoscaling", "DescribeAutoScalingInstances") >= 2)
        fleet.launch()
        journey.ends(0, readiness="sustained")
        assert journey.over()
        assert fleet.answers == [("ready", "CONTINUE", "call")]


@pytest.mark.parametrize("launching", ["ready", ""])
def test_on_its_way_back_into_the_pool_the_hook_of_terminations_is_answered(
    tmp_path: Path, cloud: Cloud, quick: None, launching: str
) -> None:
    hooks = [Hook("ready", "launching", 60), Hook("drained", "terminating", 60)]
    with AutoScaling(cloud, hooks=hooks, compressed=True) as fleet:
        fleet.return_to_pool("Stopped")
        until(lambda: fleet.state == "Warmed:Pending:Wait")
        journey = Journey(tmp_path, launching=launching)
        journey.begin()
        until(lambda: journey.heard("launch: fleet waits"))
        assert fleet.answers == []
        journey.ends(0, readiness="prepared")
        assert journey.over()
        assert fleet.answers == [("drained", "CONTINUE", "call")]
        assert fleet.state == "Warmed:Stopped"


@pytest.mark.parametrize("way", ["out of the pool", "back into it"])
def test_a_state_that_is_behind_the_target_is_waited_for(
    tmp_path: Path, cloud: Cloud, quick: None, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(escort, "CONFIRM_SECONDS", 30.0)
    into = way == "back into it"
    hooks = [Hook("drained" if into else "ready", "terminating" if into else "launching", 60)]
    with AutoScaling(cloud, hooks=hooks, pool=None if into else "Running", lag=1, compressed=True) as fleet:
        fleet.launch()
        until(lambda: fleet.state == ("InService" if into else "Warmed:Pending:Wait"))
        if into:
            fleet.return_to_pool("Running")
        else:
            fleet.complete("ready", fleet.instance_id, "CONTINUE")
            fleet.take_from_pool()
        assert fleet.state == ("InService" if into else "Warmed:Running"), "the target is told first"
        journey = Journey(tmp_path)
        journey.begin()
        journey.ends(0, readiness="prepared" if into else "sustained")
        assert journey.over()
        assert fleet.state == ("Warmed:Running" if into else "InService")
        assert fleet.answers[-1] == (hooks[0].name, "CONTINUE", "call")


@pytest.mark.parametrize(
    ("state", "target", "behind"),
    [
        (None, "InService", True),
        (None, "Detached", False),
        (None, "", False),
        ("Warmed:Running", "InService", True),
        ("Warmed:Pending:Proceed", "InService", True),
        ("InService", "Warmed:Stopped", True),
        ("InService", "InService", False),
        ("Standby", "InService", False),
        ("Warmed:Stopped", "Warmed:Stopped", False),
        ("InService", "Terminated", False),
        ("InService", "Warmed:Terminated", False),
        ("Warmed:Running", "Terminated", False),
        ("Warmed:Running", "", False),
    ],
)
def test_whether_the_group_is_behind_its_metadata(state: str | None, target: str, behind: bool) -> None:
    one = group.Member(None, "i-1", "fleet", state) if state else None
    assert group.is_behind(one, target) == behind


def test_what_is_taken_down_while_the_answer_is_not_taken_is_not_continued(
    tmp_path: Path, cloud: Cloud, fleet: AutoScaling
) -> None:
    journey = Journey(tmp_path)
    known = state.State(cloud.instance.instance_id, {"web": state.AppState("/srv/web")})
    state.save(journey.machine, known)
    cloud.api.fail("autoscaling", "CompleteLifecycleAction", code="AccessDenied", status=403, times=3)
    stopped = threading.Event()

    def stop(call: Call, done: bool) -> None:
        if call.action == "CompleteLifecycleAction" and not stopped.is_set():
            state.save(journey.machine, replace(known, stopped=journal.boot_id()))
            stopped.set()

    cloud.api.listen(stop)
    journey.begin()
    journey.ends(0, readiness="sustained")
    until(lambda: journey.heard("launch: waiting for the services, which were stopped"))
    time.sleep(1)  # as many tries as were denied
    assert (fleet.answers, journey.heard("launch: continued")) == ([], False)
    # Started again, a service is not up yet.
    directory = journey.machine.real("/etc/sv/web.server")
    (directory / "service").mkdir(parents=True)
    (directory / servicedir.MARKER).touch()
    state.save(journey.machine, known)
    until(lambda: journey.heard("launch: waiting for web.server to be up again"))
    assert fleet.answers == []
    shutil.rmtree(directory)
    assert journey.over()
    assert fleet.answers == [("ready", "CONTINUE", "call")]


# --- the pool, as metadata tells of it -----------------------------------------------------------------------------


def test_a_target_in_the_pool_is_not_to_serve(cloud: Cloud, inside: None) -> None:
    assert not readiness.is_pooled()
    for says, pooled in (("Warmed:Stopped", True), ("Warmed:Running\n", True), ("InService", False)):
        cloud.metadata.put(LIFECYCLE, says)
        assert readiness.is_pooled() == pooled
        assert readiness.is_kept_back(hooked=False) == pooled


def test_metadata_that_stopped_answering_holds_up_only_whom_hooks_wait_for(
    cloud: Cloud, inside: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.metadata.put(LIFECYCLE, "Warmed:Stopped")
    cloud.metadata.faults.disabled = True
    assert not readiness.is_kept_back(hooked=False)
    with pytest.raises(MetadataError, match="disabled"):
        readiness.is_kept_back(hooked=True)
