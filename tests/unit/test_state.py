"""What is remembered between runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from bootagent import own_file, state
from bootagent.machine import Machine
from bootagent.state import AppState, Failure, LastRun, Pending, ReleaseRecord, State, Told

FULL = State(
    instance_id="i-1",
    apps={
        "web": AppState(
            deploy_to="/srv/web",
            revision="sha256:b",
            pending=Pending("20261112120000", "sha256:b", "b", "boot", staged=True),
            releases={
                "20261111120000": ReleaseRecord("good", "sha256:a", "a", "2026-11-11T12:00:00Z"),
                "20261112120000": ReleaseRecord("bad", "sha256:b", "b", "2026-11-12T12:00:00Z", "it ended at once"),
            },
        ),
        "api": AppState("/srv/api"),
    },
    last_run=LastRun(
        run="r",
        command="run",
        started="2026-11-12T12:00:00Z",
        finished="2026-11-12T12:00:09Z",
        exit_code=3,
        outcome="degraded",
        error="it ended at once",
        role="web",
        environment="staging",
        apps={"web": "stays on 20261111120000"},
        mode="review",
        seconds=9.0,
        exit_codes={"web": 3},
        failures=(Failure("it ended at once", "web", "serve", "start web", "a tail", "Code", "4711", "s3:GetObject"),),
        phases={"read": 0.5},
    ),
    told=Told("eu-west-1", {"bootagent:state": "done"}, "/var/lib/x.prom", "boot"),
    left=(
        ("old", AppState("/srv/old", "rev", releases={"20261110120000": ReleaseRecord("good", "rev", "rev", "at")})),
    ),
)


def saved(machine: Machine) -> Path:
    return machine.real(state.PATH)


# --- the file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [FULL, State(), replace(FULL, last_run=None), replace(FULL, apps={})])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, known: State) -> None:
    machine = Machine(tmp_path)
    state.save(machine, known)
    assert state.load(machine) == known


TEXTS = st.text(max_size=20)
RECORDS = st.builds(
    ReleaseRecord, st.sampled_from(["staged", "active", "good", "bad"]), TEXTS, TEXTS, TEXTS, st.none() | TEXTS
)
APPS = st.builds(
    AppState,
    TEXTS,
    st.none() | TEXTS,
    st.none() | st.builds(Pending, TEXTS, TEXTS, TEXTS, TEXTS, st.booleans()),
    st.dictionaries(TEXTS, RECORDS, max_size=3),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.builds(State, st.none() | TEXTS, st.dictionaries(TEXTS, APPS, max_size=3)))
def test_any_state_makes_the_round_trip(tmp_path: Path, known: State) -> None:
    machine = Machine(tmp_path)
    state.save(machine, known)
    assert state.load(machine) == known


def test_nothing_saved_is_an_empty_state(tmp_path: Path) -> None:
    assert state.load(Machine(tmp_path)) == State()
    assert list(tmp_path.iterdir()) == []


def test_only_we_may_read_it_and_nothing_else_is_left_beside_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    state.save(machine, State())
    state.save(machine, FULL)
    path = saved(machine)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["state.json"]
    assert json.loads(path.read_text())["version"] == own_file.VERSION


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\x00",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"version": 2, "instance_id": null, "apps": {}, "last_run": null}',
        b'{"version": 1, "instance_id": null, "apps": [1], "last_run": null}',
        b'{"version": 1, "instance_id": null, "apps": {"web": null}, "last_run": null}',
        b'{"version": 1, "instance_id": null, "apps": {}, "last_run": {"run": "x"}}',
        b'{"version": 1, "instance_id": null, "apps": {"web": {"deploy_to": "/x", "revision": null, "pending": null, '
        b'"releases": {"r": {"state": "good"}}}}, "last_run": null}',
        bytes(4096),
    ],
)
def test_a_damaged_file_is_set_aside_and_told_nothing_by(tmp_path: Path, content: bytes) -> None:
    machine = Machine(tmp_path)
    state.save(machine, FULL)
    saved(machine).write_bytes(content)
    assert state.load(machine) == State()
    assert [(entry.name, entry.read_bytes()) for entry in saved(machine).parent.iterdir()] == [
        ("state.json.damaged", content)
    ]
    state.save(machine, FULL)
    assert state.load(machine) == FULL


@pytest.mark.parametrize("length", range(0, 230, 23))
def test_a_file_cut_short_never_passes_for_a_whole_one(tmp_path: Path, length: int) -> None:
    machine = Machine(tmp_path)
    state.save(machine, FULL)
    saved(machine).write_bytes(saved(machine).read_bytes()[:length])
    assert state.load(machine) == State()


# --- what it means -----------------------------------------------------------------------------------------------


def test_on_the_same_instance_all_of_it_holds() -> None:
    assert FULL.on_instance("i-1") == FULL


def test_a_first_run_learns_its_instance() -> None:
    unknown = replace(FULL, instance_id=None)
    assert unknown.on_instance("i-1") == replace(FULL, told=Told(metrics="/var/lib/x.prom")), "the tags were another's"
    assert State().on_instance(None) == State()


def test_an_image_of_another_instance_keeps_what_the_disk_holds_and_forgets_what_was_going_on() -> None:
    here = FULL.on_instance("i-2")
    assert here.instance_id == "i-2"
    assert here.last_run is None
    assert here.told == Told(metrics="/var/lib/x.prom"), "the file is on this disk, the tags are another's"
    assert here.apps["web"].pending is None
    assert here.apps["web"].revision == "sha256:b"
    assert here.apps["web"].releases == FULL.apps["web"].releases
    assert here.on_instance("i-2") == here


def test_an_app_that_moved_starts_afresh() -> None:
    assert FULL.app("web", "/srv/web") == FULL.apps["web"]
    assert FULL.app("web", "/srv/elsewhere") == AppState("/srv/elsewhere")
    assert FULL.app("new", "/srv/new") == AppState("/srv/new")


def test_replacing_and_forgetting_an_app_leaves_the_others() -> None:
    changed = FULL.with_app("web", AppState("/x"))
    assert (changed.apps["web"], changed.apps["api"]) == (AppState("/x"), FULL.apps["api"])
    assert set(FULL.with_app("web", None).apps) == {"api"}
    assert FULL.apps["web"].deploy_to == "/srv/web"


def test_what_an_app_leaves_behind_is_known_until_it_comes_back() -> None:
    web = replace(FULL.apps["web"], pending=None)
    for gone in (FULL.with_app("web", None), FULL.with_app("web", AppState("/srv/elsewhere"))):
        assert gone.left == (*FULL.left, ("web", web))
        assert gone.app("web", "/srv/web") == web
        assert gone.on_instance("i-2").left == gone.left, "the image has the releases, too"
        back = gone.with_app("web", web)
        assert back.left[0] == FULL.left[0] and ("web", web) not in back.left
    assert FULL.with_app("api", None).left == FULL.left, "there is nothing of it"


def test_the_last_good_release_is_the_newest_good_one_that_is_there() -> None:
    releases = {
        "20261111120000": ReleaseRecord("good", "a", "a", ""),
        "20261112120000": ReleaseRecord("good", "b", "b", ""),
        "20261113120000": ReleaseRecord("bad", "c", "c", ""),
        "20261114120000": ReleaseRecord("active", "d", "d", ""),
    }
    app = AppState("/srv/web", releases=releases)
    assert app.last_good(tuple(releases)) == "20261112120000"
    assert app.last_good(("20261111120000", "20261113120000")) == "20261111120000"
    assert app.last_good(("20261113120000", "20261114120000")) is None
    assert app.last_good(()) is None
    assert [name for name in releases if app.is_bad(name)] == ["20261113120000"]
    assert (app.revision_of("20261111120000"), app.revision_of("20260101000000")) == ("a", None)
