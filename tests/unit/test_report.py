"""What can be told: facts, and their texts."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bootagent import journal, lock, state
from bootagent.errors import BootagentError
from bootagent.journal import Journal
from bootagent.machine import Machine
from bootagent.plan import Lane, Plan
from bootagent.report import history, plan, status, timeline
from bootagent.state import AppState, Failure, LastRun, Pending, ReleaseRecord, ReleaseState, State

R1, R2, R3 = "20261111120000", "20261112120000", "20261113120000"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def remember(machine: Machine, exit_code: int = 0, outcome: str = "done", **more: Any) -> None:
    facts = {"role": "web", "environment": "staging", "apps": {"web": "now runs release " + R2}, **more}
    last = LastRun("r", "run", "2026-11-12T12:00:00.000Z", "2026-11-12T12:00:09.000Z", exit_code, outcome, **facts)
    releases = {
        R1: ReleaseRecord("good", "sha256:a", COMMIT, "2026-11-11T12:00:00.000Z"),
        R3: ReleaseRecord("bad", "sha256:c", "v3", "2026-11-13T12:00:00.000Z", "it ended at once"),
    }
    state.save(machine, State("i-1", {"web": AppState("/srv/web", "sha256:a", None, releases)}, last))


# --- status ------------------------------------------------------------------------------------------------------


def test_a_machine_that_never_ran(machine: Machine) -> None:
    found = status.facts(machine, "/etc/sv")
    assert (found["outcome"], found["exit_code"], found["running"], found["apps"]) == ("never ran", 75, None, {})
    assert status.text(found) == "never ran"


def test_the_facts_of_a_machine(machine: Machine) -> None:
    remember(machine)
    for name in (R1, R2):
        machine.real(f"/srv/web/releases/{name}").mkdir(parents=True)
    machine.real("/srv/web/current").symlink_to(f"releases/{R1}")
    machine.real("/etc/sv/web.puma").mkdir(parents=True)
    (machine.real("/etc/sv/web.puma") / "bootagent.json").write_text("{}")
    machine.real("/etc/sv/web.foreign").mkdir()
    machine.real("/etc/sv/webbing.puma").mkdir()
    found = status.facts(machine, "/etc/sv")
    assert (found["outcome"], found["exit_code"], found["instance_id"]) == ("done", 0, "i-1")
    web = found["apps"]["web"]
    assert web["current"] == R1
    assert {name: (one["state"], one["current"], one["present"]) for name, one in web["releases"].items()} == {
        R1: ("good", True, True),
        R2: ("foreign", False, True),
        R3: ("bad", False, False),
    }
    assert web["releases"][R3]["reason"] == "it ended at once"
    assert web["services"] == {"web.puma": {"state": "unsupervised", "pid": None, "seconds": None}}


@pytest.mark.parametrize(("exit_code", "outcome"), [(0, "done"), (1, "failed"), (2, "refused"), (3, "degraded")])
def test_status_ends_as_the_last_run_did(machine: Machine, exit_code: int, outcome: str) -> None:
    remember(machine, exit_code, outcome)
    found = status.facts(machine, "/etc/sv")
    assert (found["exit_code"], found["outcome"]) == (exit_code, outcome)


def test_the_text_of_a_status(machine: Machine) -> None:
    remember(machine)
    machine.real(f"/srv/web/releases/{R1}").mkdir(parents=True)
    machine.real("/srv/web/current").symlink_to(f"releases/{R1}")
    found = status.facts(machine, "/etc/sv")
    found["apps"]["web"]["services"] = {
        "web.puma": {"state": "run", "pid": 4711, "seconds": 61},
        "web.clock": {"state": "unsupervised", "pid": None, "seconds": None},
    }
    assert status.text(found).splitlines() == [
        "done: run of 2026-11-12T12:00:09.000Z, role web in staging (exit 0)",
        f"  web: now runs release {R2}",
        "",
        "APP  RELEASE           STATE       REVISION      SINCE",
        "web  20261111120000 *  good        0123456789ab  2026-11-11T12:00:00.000Z",
        "web  20261113120000    bad (gone)  v3            2026-11-13T12:00:00.000Z",
        "",
        "SERVICE    STATE         PID   FOR",
        "web.puma   run           4711  61 s",
        "web.clock  unsupervised  -     -",
    ]


def test_a_release_that_is_gone_is_shown_only_where_it_means_something(machine: Machine) -> None:
    def record(how: ReleaseState, revision: str) -> ReleaseRecord:
        return ReleaseRecord(how, revision, revision, "2026-11-11T12:00:00.000Z")

    gone = {
        "20261101000001": record("good", "sha256:gone"),
        "20261101000002": record("good", "snap-0a"),
        "20261101000003": record("bad", "sha256:bad"),
        "20261101000004": record("staged", "sha256:left"),
        "20261101000005": record("staged", "sha256:made"),
        "20261101000006": record("good", "sha256:there"),
    }
    pending = Pending("20261101000005", "sha256:made", "made", "boot")
    state.save(machine, State("i-1", {"web": AppState("/srv/web", "sha256:a", pending, gone)}))
    machine.real("/srv/web/releases/20261101000006").mkdir(parents=True)
    lines = status.text(status.facts(machine, "/etc/sv")).splitlines()
    assert [" ".join(line.split()[1:-2]) for line in lines if line.startswith("web ")] == [
        "20261101000002 good (in a snapshot)",
        "20261101000003 bad (gone)",
        "20261101000005 staged (gone)",
        "20261101000006 good",
    ]
    machine.real("/srv/web/releases/20261101000006").rmdir()
    machine.real("/srv/web/releases").rmdir()
    machine.real("/srv/web/releases").write_text("no directory")
    assert len(status.facts(machine, "/etc/sv")["apps"]["web"]["releases"]) == 6


def test_a_run_that_never_learned_its_role_says_why_and_no_nonsense(machine: Machine) -> None:
    remember(machine, 2, "refused", role=None, environment=None, apps={}, error="config.toml: apps: is missing")
    text = status.text(status.facts(machine, "/etc/sv"))
    assert "  config.toml: apps: is missing" in text.splitlines()
    assert text.startswith("refused: run of ")
    assert "None" not in text


def test_a_failure_is_told_with_its_mode_its_place_what_aws_said_and_what_the_service_said(machine: Machine) -> None:
    tail = "no database\n\x1b[31mgiving up\n"
    start = Failure("web.puma is not healthy", "web", "serve", "start web", tail)
    denied = Failure("denied", "api", "read", None, "", "AccessDenied", "4711", "s3:GetObject")
    remember(machine, 1, "failed", mode="production", failures=(start, denied))
    found = status.facts(machine, "/etc/sv")
    assert status.text(found).splitlines()[:7] == [
        "failed: run of 2026-11-12T12:00:09.000Z, role web in staging, mode production (exit 1)",
        f"  web: now runs release {R2}",
        "  failed in serve, web; step: start web",
        "    | no database",
        "    | \\x1b[31mgiving up",
        "  failed in read, api; code: AccessDenied; request: 4711; needs: s3:GetObject",
        "",
    ]
    told = json.loads(json.dumps(found["last_run"]))
    assert told["failures"][0]["tail"] == tail
    assert (told["failures"][1]["code"], told["mode"]) == ("AccessDenied", "production")


def test_a_run_under_way_is_told_with_what_it_is_at(machine: Machine) -> None:
    remember(machine)
    with lock.Lock(machine, "run", 0):
        log = Journal(machine)
        log.record("run-begin", command="run")
        found = status.facts(machine, "/etc/sv")
        assert (found["outcome"], found["exit_code"]) == ("running", 75)
        assert status.text(found).splitlines()[0] == "running: starting"
        with log.span("stage", "unpack it", "web"):
            log.record("note", step="a note is no step")
            text = status.text(status.facts(machine, "/etc/sv"))
        assert text.splitlines()[0] == "running: stage web unpack it"
    assert status.facts(machine, "/etc/sv")["running"] is None


def test_waiting_for_a_status_ends_in_time_or_at_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("bootagent.report.status.time.monotonic", lambda: clock[0])

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if clock[0] > 5 and clock[0] - seconds <= 5:
            remember(machine)

    monkeypatch.setattr("bootagent.report.status.time.sleep", sleep)
    assert status.wait(machine, "/etc/sv", 3)["exit_code"] == 75
    assert clock[0] == pytest.approx(3, abs=0.3)
    assert status.wait(machine, "/etc/sv", 100)["exit_code"] == 0
    assert clock[0] == pytest.approx(5, abs=0.6)
    remember(machine, 3, "degraded")
    assert status.wait(machine, "/etc/sv", 100)["exit_code"] == 3
    assert clock[0] == pytest.approx(5, abs=0.6)


def test_waiting_for_something_that_serves_outlasts_a_failed_run(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(machine, 1, "failed")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            remember(machine, 3, "degraded")

    monkeypatch.setattr("bootagent.report.status.time.sleep", sleep)
    assert status.wait(machine, "/etc/sv", 100)["exit_code"] == 1
    assert status.wait(machine, "/etc/sv", 100, serving=True)["exit_code"] == 3
    assert len(slept) == 3


# --- history and timeline ----------------------------------------------------------------------------------------


def journaled(machine: Machine, *lines: dict[str, Any]) -> None:
    """Write records as they would be after a run named ``r``."""
    path = machine.real(journal.PATH)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for line in lines:
            file.write(json.dumps({"run": "r", "at": "2026-11-12T12:00:00.000Z", **line}) + "\n")


BEGIN = {"event": "run-begin", "t": 0.0, "command": "run", "uptime": 12.34}
READ = {"event": "done", "t": 0.5, "phase": "read", "step": "read tags", "app": None, "seconds": 0.5}
LANE = {"event": "lane", "t": 0.5, "app": "web", "intent": "deploy", "release": R1, "revision": "v1", "reason": "new"}
STAGE = {"event": "done", "t": 3.0, "phase": "stage", "step": "unpack it", "app": "web", "seconds": 2.5}
BROKE = {"event": "failed", "t": 4.0, "phase": "serve", "step": "start it", "app": "web", "seconds": 1.0, "error": "no"}
END = {"event": "run-end", "t": 4.0, "exit_code": 1, "outcome": "failed"}


def test_the_history_of_a_machine(machine: Machine) -> None:
    journaled(machine, BEGIN, READ, LANE, STAGE, BROKE, END)
    journaled(machine, *({**line, "run": "killed"} for line in (BEGIN, READ)))
    first, second = history.facts(machine)
    assert (first["outcome"], first["exit_code"], first["seconds"]) == ("failed", 1, 4.0)
    assert first["apps"] == {"web": {"intent": "deploy", "release": R1, "revision": "v1", "reason": "new"}}
    assert first["failures"] == [{"app": "web", "phase": "serve", "step": "start it", "sentence": "no"}]
    assert (second["outcome"], second["exit_code"], second["apps"]) == ("interrupted", None, {})
    assert history.text([first, second]).splitlines() == [
        "STARTED                   COMMAND  OUTCOME      TOOK   FAILED IN  APPS",
        "2026-11-12T12:00:00.000Z  run      interrupted  0.5 s  -          -",
        f"2026-11-12T12:00:00.000Z  run      failed       4.0 s  serve      web: deploy {R1}",
    ]


def test_no_history(machine: Machine) -> None:
    assert history.facts(machine) == []
    assert history.text([]) == "no run yet"


def test_no_timeline_is_a_sentence_with_a_remedy(machine: Machine) -> None:
    with pytest.raises(BootagentError, match=r"no run yet \(bootagent reconfigure\)"):
        timeline.facts(machine)


def test_the_history_has_what_the_end_of_a_run_says_of_its_failures(machine: Machine) -> None:
    failure = {"app": "web", "phase": "serve", "step": "start it", "sentence": "no", "code": None, "tail": ""}
    journaled(machine, BEGIN, BROKE, {**END, "failures": [failure], "tails": {"web": "last words"}})
    assert history.facts(machine)[0]["failures"] == [{**failure, "tail": "last words"}]


def test_a_timeline_is_of_the_last_run_and_in_the_order_of_beginnings(machine: Machine) -> None:
    journaled(machine, {**BEGIN, "run": "older"}, {**STAGE, "run": "older"})
    journaled(machine, BEGIN, STAGE, READ, BROKE, END)
    found = timeline.facts(machine)
    assert (found["run"], found["seconds"], found["finished"], found["uptime_at_start"]) == ("r", 4.0, True, 12.34)
    assert [(span["step"], span["begin"], span["end"], span["failed"]) for span in found["spans"]] == [
        ("read tags", 0.0, 0.5, False),
        ("unpack it", 0.5, 3.0, False),
        ("start it", 3.0, 4.0, True),
    ]
    assert timeline.text(found).splitlines() == [
        "run of 2026-11-12T12:00:00.000Z: 4.00 s (reading 0.50 s), begun 12 s after the kernel started",
        "",
        "PHASE                                      TOOK       STEP",
        "read   |####                            |     0.50 s  read tags",
        "stage  |    ####################        |     2.50 s  web: unpack it",
        "serve  |                        xxxxxxxx|     1.00 s  web: start it",
    ]


def test_a_timeline_of_a_killed_run_says_so(machine: Machine) -> None:
    journaled(machine, BEGIN, READ)
    assert "0.50 s, not finished (reading" in timeline.text(timeline.facts(machine))


def test_what_a_killed_run_was_at_is_told(machine: Machine) -> None:
    began = [{**READ, "event": "begin", "t": 0.0}, READ, {**STAGE, "event": "begin", "t": 0.5}]
    journaled(machine, BEGIN, *began, {**LANE, "t": 2.5, "event": "note"})
    found = timeline.facts(machine)
    assert [span["unfinished"] for span in found["spans"]] == [False, True]
    last = found["spans"][-1]
    assert (last["step"], last["begin"], last["end"], last["unfinished"]) == ("unpack it", 0.5, 2.5, True)
    assert found["outcome"] == "not finished"
    assert "|      >>>>>>>>>>>>>>>>>>>>>>>>>>|     2.00 s  web: unpack it" in timeline.text(found)


def test_a_timeline_knows_when_the_run_waited_for_tags(machine: Machine) -> None:
    waiting = [{"event": "waiting", "t": t, "phase": "read", "step": "wait"} for t in (0.2, 5.3, 10.4)]
    journaled(machine, BEGIN, *waiting, {**READ, "t": 12.0}, {**END, "t": 12.5})
    assert timeline.facts(machine)["waits"] == [{"step": "wait", "begin": 0.2, "end": 12.0}]


def booted(machine: Machine, run: str, command: str = "run", uptime: float = 12.34, **more: Any) -> None:
    begin = {**BEGIN, "boot_id": journal.boot_id(), "command": command, "uptime": uptime, **more}
    journaled(machine, *({**line, "run": run} for line in (begin, READ, LANE, STAGE, {**END, "exit_code": 0})))


def test_a_boot_is_told_from_the_kernel_on(machine: Machine) -> None:
    booted(machine, "of-another-boot", boot_id="other")
    booted(machine, "this")
    found = timeline.facts(machine)
    # No systemd below this root: all that is known is how long it took.
    stage = {"name": "kernel and init", "begin": 0.0, "end": 12.34}
    assert found["boot"] == {"stages": [stage], "finish": None, "healthy": 16.34}
    line = timeline.text(found).splitlines()[1]
    assert line == "kernel and init 12.34 s; healthy 16.34 s after the kernel started"
    assert timeline.of_boot(machine) == found


@pytest.mark.parametrize(
    ("last", "boot"),
    [
        ({"command": "reconfigure"}, "first"),  # somebody's own, after the boot's
        ({"command": "run", "uptime": 99.0}, "first"),  # another try
    ],
)
def test_the_boots_run_is_not_the_last_one(machine: Machine, last: dict[str, Any], boot: str) -> None:
    booted(machine, "first")
    booted(machine, "last", **last)
    assert (timeline.facts(machine)["run"], timeline.facts(machine)["boot"]) == ("last", None)
    assert timeline.of_boot(machine)["run"] == boot
    assert timeline.of_boot(machine)["boot"]["healthy"] == 16.34


@pytest.mark.parametrize("begin", [{"uptime": 200000.0}, {"boot_id": "other"}, {"command": "reconfigure"}])
def test_without_a_boots_run_the_last_one_is_told_without_the_kernels_share(
    machine: Machine, begin: dict[str, Any]
) -> None:
    booted(machine, "last", **begin)
    assert timeline.facts(machine)["boot"] is None
    found = timeline.of_boot(machine)
    assert (found["run"], found["boot"]) == ("last", None)


def test_a_boot_that_failed_is_never_called_healthy(machine: Machine) -> None:
    journaled(machine, {**BEGIN, "boot_id": journal.boot_id()}, READ, BROKE, END)
    found = timeline.facts(machine)
    assert found["boot"]["healthy"] is None
    assert "healthy" not in timeline.text(found)


def test_a_timeline_with_nothing_in_it(machine: Machine) -> None:
    journaled(machine, BEGIN, {**END, "t": 0.0})
    assert timeline.text(timeline.facts(machine)).endswith("nothing had to be done")


# --- plan --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fake:
    """A step that is so, is not so, or cannot tell."""

    name: str
    satisfied: bool | Exception = True

    def __str__(self) -> str:
        return f"do {self.name}"

    def is_satisfied(self, machine: Machine) -> bool:
        if isinstance(self.satisfied, Exception):
            raise self.satisfied
        return self.satisfied

    def apply(self, machine: Machine) -> None:
        raise AssertionError("a plan changes nothing")


def verdicts(machine: Machine, *steps: Fake) -> list[str]:
    lane = Lane("web", "deploy", {"stage": steps[:1], "activate": steps[1:2], "serve": steps[2:]}, R1, "sha256:a", "v1")
    (told,) = plan.facts(Plan((lane,)), machine)
    return [step["verdict"] for step in told["steps"]]


def test_a_plan_is_sure_up_to_the_first_step_that_would_change_something(machine: Machine) -> None:
    assert verdicts(machine, Fake("a"), Fake("b", False), Fake("c"), Fake("d", ValueError())) == [
        "is so",
        "would do",
        "would check",
        "would check",
    ]
    assert verdicts(machine, Fake("a"), Fake("b"), Fake("c")) == ["is so"] * 3


@pytest.mark.parametrize("error", [BootagentError("no such file"), OSError(13, "Permission denied")])
def test_a_step_that_cannot_tell_says_why(machine: Machine, error: Exception) -> None:
    """As the run itself does, which takes an OSError for the machine's fault."""
    first, second, third = verdicts(machine, Fake("a", error), Fake("b"), Fake("c"))
    assert first == f"cannot tell: {error}"
    assert (second, third) == ("would check", "would check")


def test_the_text_of_a_plan(machine: Machine) -> None:
    lanes = (
        Lane("old", "retire", {"stage": (Fake("old", False),)}, reason="the role does not run it"),
        Lane("web", "deploy", {"stage": (Fake("a"), Fake("b", False)), "serve": (Fake("c"),)}, R1, reason="v1 is new"),
        Lane("api", "nothing", {}, reason="no bucket"),
    )
    assert plan.text(plan.facts(Plan(lanes), machine)).splitlines() == [
        "old: retire (the role does not run it)",
        "  PHASE  VERDICT   STEP",
        "  stage  would do  do old",
        "",
        f"web: deploy {R1} (v1 is new)",
        "  PHASE  VERDICT      STEP",
        "  stage  is so        do a",
        "  stage  would do     do b",
        "  serve  would check  do c",
        "",
        "api: nothing (no bucket)",
    ]


def test_the_reason_for_a_long_verdict_is_below_its_row(machine: Machine) -> None:
    why = "the mount does not answer, " * 10
    lane = Lane("web", "keep", {"stage": (Fake("a", BootagentError(why)), Fake("b"))}, R1, reason="nothing new")
    assert plan.text(plan.facts(Plan((lane,)), machine)).splitlines()[1:] == [
        "  PHASE  VERDICT      STEP",
        "  stage  cannot tell  do a",
        f"    | {why}",
        "  stage  would check  do b",
    ]


def test_telling_leaves_the_machine_as_it_is(machine: Machine) -> None:
    status.facts(machine, "/etc/sv")
    history.facts(machine)
    plan.facts(Plan((Lane("web", "nothing", {}),)), machine)
    assert list(os.scandir(machine.root)) == []
