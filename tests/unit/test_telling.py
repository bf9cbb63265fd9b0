"""What others are told of a run: the console's line, the status file, the metrics, the tags."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from bootagent import telling
from bootagent.config.model import Telling
from bootagent.errors import AwsError, BootagentError, MachineError, ServiceError, StepError
from bootagent.machine import Machine, Note
from bootagent.state import AppState, Failure, LastRun, ReleaseRecord, State, Told
from bootagent.telling import console_line, metrics, status_file, tags

R1, R2 = "20261111120000", "20261112120000"
START = "start and verify the services of web (puma)"
BROKEN = Failure("web.puma is not healthy after 30 s: it crashed 3 times", "web", "serve", START, "no database\n")
QUIET = Telling(console=False)


def ended(outcome: str = "done", exit_code: int = 0, **more: object) -> LastRun:
    times = "2026-11-12T12:00:00.000Z", "2026-11-12T12:00:42.500Z"
    facts = {"apps": {"web": f"now runs release {R2} (v2); v2 is new"}, "exit_codes": {"web": exit_code}}
    last = LastRun("r", "run", *times, exit_code, outcome, None, "web", "staging", seconds=42.4)
    return replace(last, **{**facts, **more})  # type: ignore[arg-type]


def known(last: LastRun | None, proven: str | None = R2) -> State:
    releases = {
        R1: ReleaseRecord("good", "sha256:a", "v1", "2026-11-11T12:00:00Z"),
        R2: ReleaseRecord("good", "sha256:b", "v2", "2026-11-12T12:00:00Z"),
    }
    return State("i-1", {"web": AppState("/srv/web", "sha256:b", None, releases, proven)}, last)


DEGRADED = ended(
    "degraded", 3, apps={"web": f"{START}: no; release {R1} was put back and serves"}, failures=(BROKEN,), mode="m"
)


# --- errors ------------------------------------------------------------------------------------------------------


def test_a_failure_knows_its_phase_its_step_and_its_tail() -> None:
    error = StepError("start web", ServiceError("web.puma died", tail="last words\n"), phase="serve")
    assert telling.failure_of(error, "web") == Failure("web.puma died", "web", "serve", "start web", "last words")


def test_a_failed_call_is_told_with_its_code_its_request_and_what_it_needs() -> None:
    denied = AwsError("cannot read it", code="AccessDenied", request_id="4711", iam_action="s3:GetObject", remedy="x")
    found = telling.failure_of(denied, "web")
    assert (found.phase, found.step, found.sentence) == ("read", None, "cannot read it (x)")
    assert (found.code, found.request_id, found.iam_action) == ("AccessDenied", "4711", "s3:GetObject")
    assert telling.failure_of(StepError("pull", denied, phase="stage")).code == "AccessDenied"


def test_what_was_made_of_a_failed_step_keeps_its_place() -> None:
    try:
        try:
            raise StepError("mount it", MachineError("no such disk"), phase="attach")
        except StepError as error:
            raise MachineError("volume data: mount it: no such disk") from error
    except MachineError as error:
        found = telling.failure_of(error)
    assert (found.phase, found.step, found.sentence) == ("attach", "mount it", "volume data: mount it: no such disk")


# --- the console -------------------------------------------------------------------------------------------------


def test_the_line_of_a_good_run() -> None:
    assert console_line.line(known(ended())) == f"bootagent: done, web: now runs release {R2} (v2), 42 s"


def test_the_line_of_a_run_that_fell_back() -> None:
    assert console_line.line(known(DEGRADED, proven=R1)) == (
        f"bootagent: degraded, web: stays on release {R1} "
        "(serve: web.puma is not healthy after 30 s: it crashed 3 times), 42 s"
    )


def test_the_line_of_a_run_that_left_nothing() -> None:
    last = replace(DEGRADED, outcome="failed", exit_code=1, exit_codes={"web": 1})
    assert console_line.line(known(last)).startswith("bootagent: failed, web: does not work (serve: web.puma is")


def test_the_line_of_a_stop_that_went_wrong() -> None:
    failure = Failure("bin/leave exited with 1", "web", "stop", "run the stop hook")
    last = ended("failed", 1, command="stop", failures=(failure,))
    assert console_line.line(known(last)) == "bootagent: failed, web: stop: bin/leave exited with 1, 42 s"


def test_what_failed_comes_first() -> None:
    apps = {"api": "now runs release 1; x", "web": DEGRADED.apps["web"]}
    last = replace(DEGRADED, apps=apps, exit_codes={"api": 0, "web": 3})
    line = console_line.line(known(last))
    assert line.index("web:") < line.index("api: now runs release 1,")


def test_a_run_that_never_began_says_why() -> None:
    last = replace(ended("refused", 2, apps={}, exit_codes={}, error="no mode 'x'"), failures=(Failure("no mode 'x'"),))
    assert console_line.line(known(last)) == "bootagent: refused, read: no mode 'x', 42 s"
    assert "this role runs nothing" in console_line.line(known(ended(apps={})))


@given(st.text(max_size=2000), st.text(max_size=2000))
def test_the_line_is_one_plain_line_whatever_is_said(sentence: str, name: str) -> None:
    failure = replace(BROKEN, sentence=sentence)
    last = replace(DEGRADED, apps={"web": sentence, name: sentence}, failures=(failure, replace(failure, app=None)))
    line = console_line.line(known(last))
    assert line.splitlines() == [line]
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in line)
    assert len(line) <= console_line.CHARACTERS
    assert line.endswith(", 42 s")


@pytest.fixture
def terminal() -> Iterator[tuple[int, Path]]:
    """A character device to write to, and the other end of it."""
    ours, theirs = pty.openpty()
    yield ours, Path(os.ttyname(theirs))
    for descriptor in (ours, theirs):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_the_line_reaches_a_console(terminal: tuple[int, Path]) -> None:
    ours, console = terminal
    assert console_line.write(console, "bootagent: done")
    assert b"\nbootagent: done\r" in os.read(ours, 1000)


def test_a_console_that_stands_still_is_not_waited_for(terminal: tuple[int, Path]) -> None:
    _, console = terminal
    began = time.monotonic()
    taken = [console_line.write(console, "x" * 500) for _ in range(200)]
    assert taken[0] and not taken[-1], "nobody reads, and it fills"
    assert time.monotonic() - began < 5


def test_what_is_no_console_is_left_alone(tmp_path: Path) -> None:
    plain = tmp_path / "console"
    plain.write_text("mine")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (plain, pipe, tmp_path / "absent", tmp_path):
        assert not console_line.write(place, "bootagent: done")
    assert plain.read_text() == "mine"


@pytest.mark.parametrize(("root", "watched", "told"), [("/", False, 1), ("/", True, 0), ("other", False, 0)])
def test_the_console_is_this_machines_and_only_for_who_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, watched: bool, told: int
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(console_line, "write", lambda console, text: written.append(console))
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as screen, (tmp_path / "log").open("w") as log:
        monkeypatch.setattr("sys.stderr", screen if watched else log)
        console_line.show(Machine(Path(root) if root == "/" else tmp_path), "bootagent: done")
    os.close(ours)
    assert written == [Path("/dev/console")] * told


def test_the_console_gets_one_plain_line_of_whatever_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(console_line, "write", lambda console, text: shown.append(text))
    monkeypatch.setattr("sys.stderr", None)
    console_line.show(Machine(), "bootagent: the launch of i-1 is given up: it\nbroke\x1b[2J")
    console_line.show(Machine(), "bootagent: " + "x" * 1000)
    assert shown[0] == "bootagent: the launch of i-1 is given up: it broke\\x1b[2J"
    assert len(shown[1]) == console_line.CHARACTERS


def test_the_units_leave_the_console_to_that_line() -> None:
    units = sorted((Path(__file__).parents[2] / "systemd").glob("*.service"))
    found = [line for unit in units for line in unit.read_text().splitlines() if line.startswith("Standard")]
    assert found and set(found) == {"StandardOutput=journal"}


# --- the status file ---------------------------------------------------------------------------------------------


def test_the_status_file_is_for_everyone_and_has_nobodys_log(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (tmp_path / "run").mkdir()
    status_file.write(machine, known(DEGRADED, proven=R1))
    path = tmp_path / "run/bootagent-status.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert "no database" not in path.read_text()
    found = json.loads(path.read_text())
    assert (found["outcome"], found["exit_code"], found["role"], found["mode"]) == ("degraded", 3, "web", "m")
    assert found["apps"]["web"] == {
        "exit_code": 3,
        "sentence": DEGRADED.apps["web"],
        "release": R1,
        "revision": "v1",
        "state": "good",
    }
    (failure,) = found["failures"]
    assert (failure["phase"], failure["step"], failure["sentence"]) == ("serve", START, BROKEN.sentence)


# --- the metrics -------------------------------------------------------------------------------------------------


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What Prometheus's own parser makes of it; every family has help and a type."""
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names)), "a family stands in one place"
    assert all(family.documentation and family.type == "gauge" for family in families)
    return {
        (sample.name.removeprefix("bootagent_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_metrics_as_prometheus_reads_them() -> None:
    last = replace(DEGRADED, phases={"read": 0.5, "serve": 30.25})
    found = samples(metrics.text(known(last, proven=R1), last, 1794484850.0))
    assert found["last_run_timestamp_seconds", ()] == 1794484842.5
    assert found["last_look_timestamp_seconds", ()] == 1794484850.0
    assert found["last_run_duration_seconds", ()] == 42.4
    assert found["last_run_exit_code", ()] == 3
    assert found["app_exit_code", (("app", "web"),)] == 3
    release = (("app", "web"), ("release", R1), ("revision", "v1"), ("state", "good"))
    assert found["app_release_info", release] == 1
    assert found["last_run_phase_duration_seconds", (("phase", "serve"),)] == 30.25
    outcomes = {labels[0][1]: value for (name, labels), value in found.items() if name == "last_run_outcome"}
    assert {name for name, value in outcomes.items() if value} == {"degraded"}
    assert outcomes.keys() == {"done", "degraded", "failed", "refused", "stopped"}
    (info,) = [dict(labels) for name, labels in found if name == "run_info"]
    assert (info["role"], info["environment"], info["mode"]) == ("web", "staging", "m")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_survives_as_a_label(value: str) -> None:
    last = replace(DEGRADED, role=value)
    found = samples(metrics.text(known(last), last, 0.0))
    assert [dict(labels)["role"] for name, labels in found if name == "run_info"] == [value]


def test_a_run_without_anything_makes_no_empty_families() -> None:
    last = ended("refused", 2, apps={}, exit_codes={}, role=None, environment=None)
    text = metrics.text(State(None, {}, last), last, 0.0)
    assert "app_release_info" not in text and samples(text)["last_run_exit_code", ()] == 2


def test_the_metrics_file_is_whole_and_for_everyone(tmp_path: Path) -> None:
    machine, path = Machine(tmp_path), "/var/lib/node/bootagent.prom"
    metrics.write(machine, path, known(ended()))
    real = machine.real(path)
    assert stat.S_IMODE(real.stat().st_mode) == 0o644
    assert [one.name for one in real.parent.iterdir()] == ["bootagent.prom"]
    samples(real.read_text())
    metrics.remove(machine, path)
    metrics.remove(machine, path)
    assert not real.exists()


def test_a_look_that_finds_all_as_it_was_is_told_but_not_with_every_look(tmp_path: Path) -> None:
    machine, path = Machine(tmp_path), "/m/one.prom"
    state = replace(known(ended()), told=Told(metrics=path))
    metrics.write(machine, path, state)
    before = machine.real(path).read_text()
    looked = ("last_look_timestamp_seconds", ())
    assert samples(before)[looked] == 1794484842.5, "the run itself has looked"
    telling.looked(machine, state)
    assert machine.real(path).read_text() == before, "it was written just now"
    for off in (-metrics.LOOK_SECONDS - 1, 1000):  # a minute ago; and by a clock that was wrong
        os.utime(machine.real(path), (time.time() + off,) * 2)
        began = time.time()
        telling.looked(machine, state)
        found = samples(machine.real(path).read_text())
        assert began - 1 < found[looked] < time.time() + 1
        assert {key: value for key, value in found.items() if key != looked} == {
            key: value for key, value in samples(before).items() if key != looked
        }
    machine.real(path).unlink()
    telling.looked(machine, state)
    assert machine.real(path).exists()
    telling.looked(machine, known(ended()))  # nobody wants to know


def test_metrics_follow_no_link_of_whoever_owns_the_directory(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "node").symlink_to(tmp_path / "etc")
    with pytest.raises(BootagentError, match="is a link"):
        metrics.write(machine, "/node/bootagent.prom", known(ended()))
    assert not list((tmp_path / "etc").iterdir())


# --- the tags ----------------------------------------------------------------------------------------------------


def test_the_tags() -> None:
    assert tags.wanted(known(ended())) == {"bootagent:release": f"web={R2}", "bootagent:state": "done"}
    failed = known(ended("failed", 1))
    assert tags.wanted(failed) == {"bootagent:release": "web=none", "bootagent:state": "failed"}
    stopped = known(ended("stopped", command="stop"))
    assert tags.wanted(stopped) == {"bootagent:release": f"web={R2}", "bootagent:state": "stopped"}
    assert tags.wanted(State(None, {}, ended())) == {"bootagent:release": "none", "bootagent:state": "done"}


def test_what_does_not_fit_into_a_tag_is_counted() -> None:
    web = known(ended()).apps["web"]
    many = State("i-1", {f"app{number:02}": web for number in range(40)}, ended())
    value = tags.wanted(many)["bootagent:release"]
    assert 230 < len(value) <= 256
    assert value.endswith(f" +{40 - value.count('=')}")
    assert len(tags.wanted(State("i-1", {"x" * 400: web}, ended()))["bootagent:release"]) == 256


# --- all of it ---------------------------------------------------------------------------------------------------


def told(machine: Machine, state: State, how: Telling = QUIET, *, seen: bool = True) -> Told:
    return telling.tell(machine, state, how, "eu-west-1", boot_id="boot", seen=seen)


def test_a_metrics_file_that_is_configured_away_is_removed(tmp_path: Path) -> None:
    machine, state = Machine(tmp_path), known(ended())
    (tmp_path / "run").mkdir()
    first = told(machine, state, replace(QUIET, metrics="/m/one.prom"))
    assert (tmp_path / "m/one.prom").exists() and first.metrics == "/m/one.prom"
    second = told(machine, replace(state, told=first), replace(QUIET, metrics="/m/two.prom"))
    assert [one.name for one in (tmp_path / "m").iterdir()] == ["two.prom"]
    third = told(machine, replace(state, told=second))
    assert not list((tmp_path / "m").iterdir()) and third.metrics is None


def test_what_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    heard: list[str] = []
    machine = Machine(tmp_path, lambda event: heard.append(event.label) if isinstance(event, Note) else None)
    (tmp_path / "m").write_text("no directory")
    told(machine, known(ended()), replace(QUIET, metrics="/m/one.prom"))  # and there is no /run either
    assert [line.partition(":")[0] for line in heard] == ["cannot write the status file", "cannot write /m/one.prom"]


def test_without_a_configuration_those_are_told_who_were_told_before() -> None:
    assert telling.as_before(Told()) == Telling(console=True, tags=False, metrics=None)
    last = Told("eu-west-1", {"bootagent:state": "done"}, "/m/x.prom", "boot")
    assert telling.as_before(last) == Telling(console=True, tags=True, metrics="/m/x.prom")


def test_no_call_is_made_for_an_instance_that_nobody_has_seen_in_this_boot(tmp_path: Path) -> None:
    """An image's state names the instance it was made of; no client is even made here."""
    (tmp_path / "run").mkdir()
    before = Told("eu-west-1", {"bootagent:state": "done"}, None, "an earlier boot")
    state = replace(known(ended("stopped", command="stop")), told=before)
    assert told(Machine(tmp_path), state, Telling(console=False, tags=True), seen=False) == before
