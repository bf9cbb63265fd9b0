"""The plan: lists of comparable steps from facts, nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from bootagent import plan
from bootagent.config.model import App, Check, Config, LinkedFile, Runit, S3Source, Service
from bootagent.config.model import Limits as ConfiguredLimits
from bootagent.errors import AwsError, BootagentError
from bootagent.plan import Known, Lane, Moment, Phase, ToStop
from bootagent.pull.bundle import Bundle, Limits
from bootagent.release import Layout
from bootagent.roster import Roster, ServiceSpec
from bootagent.sources import Revision
from bootagent.state import AppState, Pending, ReleaseRecord, ReleaseState
from bootagent.steps.base import Step
from bootagent.steps.current import Current
from bootagent.steps.directories import Directories
from bootagent.steps.forgotten import Forgotten
from bootagent.steps.linked_paths import LinkedPaths, RevisionFile
from bootagent.steps.no_orphans import NoOrphans
from bootagent.steps.prepared import Prepared
from bootagent.steps.prune import Prune
from bootagent.steps.removed_services import RemovedServices
from bootagent.steps.retired_volumes import RetiredVolumes
from bootagent.steps.services import Services
from bootagent.steps.shared_file import SharedFile
from bootagent.steps.staged_bundle import StagedBundle
from bootagent.steps.startable import Startable
from bootagent.steps.stopped import Stopped

NOW = datetime(2026, 11, 20, 9, 30, 0, tzinfo=timezone.utc)
#: The name of a release made now.
NEW = "20261120093000"
R1, R2, R3, R4, R5 = (f"2026111{day}120000" for day in range(1, 6))
BOOT = "this-boot"

UNNAMED = Service("*", None, "deploy", "web", (), "/var/log/bootagent/web.*", 2.0, 10.0, Check(None, None, None, 30.0))
PUMA = Service(
    name="puma",
    command=("bundle", "exec", "puma"),
    user="deploy",
    group="web",
    env=(("A", "b"),),
    log="/var/log/puma",
    stable_for=1.0,
    stop_within=5.0,
    check=Check("http://127.0.0.1:9292/up", None, None, 20.0),
)
WEB = App(
    name="web",
    deploy_to="/srv/web",
    user="deploy",
    group="web",
    source=S3Source("deploys", "web.json", None),
    fallback=None,
    linked_files=(LinkedFile("config/db.yml", None), LinkedFile(".env", "s3://secrets/env")),
    linked_dirs=("log",),
    keep_releases=5,
    prepare=("bin/prepare",),
    hooks_within=60.0,
    release_services="config/service",
    services=(PUMA,),
    unnamed=UNNAMED,
    only=None,
    limits=ConfiguredLimits(unpacked=1000, files=10, reserve=100, within=300.0),
)
RUNIT = Runit("/etc/service", "/etc/sv")


def config(*apps: App) -> Config:
    return Config(role="web", environment="staging", apps=apps or (WEB,), volumes=(), runit=RUNIT)


def bundle(name: str) -> Bundle:
    return Bundle(bucket="deploys", key=f"web/{name}.tar.zst", region=None, size=1, sha256="0" * 64)


def revision(name: str) -> Revision:
    return Revision(f"sha256:{name}", label=name, origin=f"s3://deploys/web/{name}.tar.zst", content=bundle(name))


def record(state: ReleaseState, made_of: str) -> ReleaseRecord:
    return ReleaseRecord(state, f"sha256:{made_of}", made_of, "2026-11-11T12:00:00Z")


def good(made_of: str) -> ReleaseRecord:
    return record("good", made_of)


def bad(made_of: str) -> ReleaseRecord:
    return record("bad", made_of)


def pending(release: str, made_of: str, *, boot: str = BOOT, staged: bool = False) -> Pending:
    return Pending(release, f"sha256:{made_of}", made_of, boot, staged)


def remembered(last: str | None = None, *, killed: Pending | None = None, **releases: ReleaseRecord) -> AppState:
    """A state whose releases are given as ``r20261111120000=good("a")``."""
    named = {name.removeprefix("r"): one for name, one in releases.items()}
    return AppState("/srv/web", f"sha256:{last}" if last else None, killed, named)


def facts(
    source: str | AwsError,
    state: AppState | None = None,
    *,
    releases: tuple[str, ...] = (),
    current: str | None = None,
    elsewhere: str | None = None,
) -> Known:
    held = revision(source) if isinstance(source, str) else source
    return Known(Layout(current, elsewhere, releases), held, state or remembered())


def made(known: Known, *, app: App = WEB, retry: bool = False, boot: str = BOOT, now: datetime = NOW) -> Lane:
    (lane,) = plan.make(config(app), {app.name: known}, (), Moment(now, boot, "eu-west-1", retry)).lanes
    return lane


UNREADABLE = AwsError("cannot read s3://deploys/web.json: SlowDown", code="SlowDown")

# The steps of WEB, as they should be.
DIRECTORIES = Directories("/srv/web", ("log",), ("config/db.yml", ".env"), "deploy", "web")
ENV_FILE = SharedFile("/srv/web", ".env", "s3://secrets/env", "eu-west-1", "deploy", "web")
SPEC = ServiceSpec(
    name="puma",
    command=("bundle", "exec", "puma"),
    user="deploy",
    group="web",
    env=(("A", "b"),),
    log="/var/log/puma",
    stable_for=1.0,
    stop_within=5.0,
    within=20.0,
    http="http://127.0.0.1:9292/up",
)
ANY_SPEC = ServiceSpec("*", None, "deploy", "web", (), "/var/log/bootagent/web.*", 2.0, 10.0, 30.0)

ROSTER = Roster(
    app="web",
    current="/srv/web/current",
    specs=(SPEC,),
    unnamed=ANY_SPEC,
    only=None,
    release_services="config/service",
    service_dir="/etc/service",
    definitions="/etc/sv",
)


def pruned(*names: str) -> Prune:
    return Prune("/srv/web", names, tuple(f"/var/lib/bootagent/prepared/web.{name}" for name in names))


def links(name: str, *, fresh: bool | None = None, volume: str | None = None) -> LinkedPaths:
    """Fresh by default only in a release made now: what one that serves holds may be somebody's data."""
    new = name == NEW if fresh is None else fresh
    return LinkedPaths("/srv/web", name, ("config/db.yml", ".env"), ("log",), "deploy", "web", new, volume)


def switched(name: str, log: str | None, demoted: str | None = None) -> Current:
    return Current("/srv/web", name, log, demoted, "deploy", "web")


def activated(name: str, log: str) -> tuple[Step, ...]:
    """The switch to a release made now, which is looked at before."""
    return (Startable(replace(ROSTER, current=f"/srv/web/releases/{name}")), switched(name, log))


def services(mark: str | None) -> Services:
    return Services(ROSTER, mark, watched=("/srv/web/shared/.env",))


def deployed(name: str, what: str, *prune: str, fresh: bool | None = None) -> dict[Phase, tuple[Step, ...]]:
    """All steps that put revision ``what`` into release ``name``."""
    path = f"/srv/web/releases/{name}"
    environment = (
        ("BOOTAGENT_APP", "web"),
        ("BOOTAGENT_ENVIRONMENT", "staging"),
        ("BOOTAGENT_REVISION", what),
        ("BOOTAGENT_ROLE", "web"),
    )
    marker = f"/var/lib/bootagent/prepared/web.{name}"
    log = f"Branch s3://deploys/web/{what}.tar.zst (at {what}) deployed as release {name} by bootagent"
    return {
        "stage": (
            DIRECTORIES,
            ENV_FILE,
            pruned(*prune),
            StagedBundle(path, bundle(what), Limits(1000, 10, 100), 300.0, "deploy", "web"),
            links(name, fresh=fresh),
            RevisionFile("/srv/web", name, what, "deploy", "web"),
            Prepared(path, ("bin/prepare",), 60.0, environment, "deploy", "web", marker),
        ),
        "activate": activated(name, log),
        "serve": (services(name),),
    }


def kept(name: str, *prune: str, switch: bool = False) -> dict[Phase, tuple[Step, ...]]:
    """All steps that keep a release of ours."""
    return {
        "stage": (DIRECTORIES, ENV_FILE, pruned(*prune), links(name)),
        "activate": (switched(name, None),) if switch else (),
        "serve": (services(name),),
    }


# --- a new revision ----------------------------------------------------------------------------------------------


def test_an_empty_disk_gets_the_whole_list() -> None:
    assert made(facts("a")) == Lane(
        app="web",
        intent="deploy",
        steps=deployed(NEW, "a"),
        release=NEW,
        revision="sha256:a",
        label="a",
        fallback=None,
        reason="a is new",
    )


def test_a_new_revision_is_deployed_and_could_fall_back_to_what_stands() -> None:
    lane = made(facts("b", remembered("a", r20261111120000=good("a")), releases=(R1,), current=R1))
    assert (lane.intent, lane.release, lane.fallback, lane.reason) == ("deploy", NEW, R1, "b is new")
    assert lane.steps == deployed(NEW, "b")


def test_the_phases_are_in_the_order_of_things() -> None:
    assert plan.PHASES == ("attach", "stage", "activate", "serve", "announce", "retire")


def test_the_switch_comes_after_all_staging_and_a_look_at_what_is_to_be_started() -> None:
    lane = made(facts("a"))
    assert [type(step) for step in lane.steps["activate"]] == [Startable, Current]
    assert not any(isinstance(step, (Current, Services)) for step in lane.steps["stage"])


def test_a_release_is_named_after_every_other_whatever_the_clock_says() -> None:
    past = NOW - timedelta(days=3650)
    state = remembered("a", killed=pending("20261120093005", "x", boot="other"), r20261120093003=bad("z"))
    lane = made(facts("b", state, releases=(R1,), current=R1), now=past)
    assert lane.release == "20261120093006"
    assert made(facts("b", releases=(R1,), current=R1), now=past).release == "20261111120001"


def test_an_app_without_links_or_hook_has_no_steps_for_them() -> None:
    bare = replace(WEB, linked_files=(), linked_dirs=(), prepare=None)
    assert [type(step) for step in made(facts("a"), app=bare).steps["stage"]] == [
        Directories,
        Prune,
        StagedBundle,
        RevisionFile,
    ]


def test_the_sources_own_region_wins_for_its_files() -> None:
    app = replace(WEB, source=S3Source("deploys", "web.json", "us-east-1"))
    assert replace(ENV_FILE, region="us-east-1") in made(facts("a"), app=app).steps["stage"]


def test_a_role_without_environment_gives_the_hook_an_empty_one() -> None:
    (lane,) = plan.make(replace(config(), environment=None), {"web": facts("a")}, (), Moment(NOW, BOOT, None)).lanes
    (hook,) = [step for step in lane.steps["stage"] if isinstance(step, Prepared)]
    assert ("BOOTAGENT_ENVIRONMENT", "") in hook.env


def test_what_cap_deployed_is_the_fallback_of_a_newer_revision() -> None:
    lane = made(facts("b", remembered("a", r20261111120000=good("a")), releases=(R1, R2), current=R2))
    assert (lane.intent, lane.fallback) == ("deploy", R2)


# --- nothing new -------------------------------------------------------------------------------------------------


def test_the_same_revision_is_kept() -> None:
    lane = made(facts("a", remembered("a", r20261111120000=good("a")), releases=(R1,), current=R1))
    assert lane == Lane(
        app="web",
        intent="keep",
        steps=kept(R1),
        release=R1,
        revision="sha256:a",
        label="a",
        reason="a is what was deployed last",
    )


@pytest.mark.parametrize("retry", [False, True])
def test_a_retry_of_what_works_keeps_it(retry: bool) -> None:
    known = facts("a", remembered("a", r20261111120000=good("a")), releases=(R1,), current=R1)
    assert made(known, retry=retry).intent == "keep"


def test_a_hotfix_by_cap_is_kept_and_its_processes_left_to_cap() -> None:
    lane = made(facts("a", remembered("a", r20261111120000=good("a")), releases=(R1, R2), current=R2))
    assert (lane.intent, lane.release, lane.revision, lane.label) == ("hotfix", R2, None, None)
    assert lane.steps == {"stage": (pruned(),), "activate": (), "serve": (services(None),)}
    assert f"release {R2} was put there by someone else" in lane.reason
    assert not lane.degraded


def test_what_was_rolled_back_from_is_not_pulled_again() -> None:
    """After ``rollback`` b is still the revision last dealt with, and an older release is current."""
    state = remembered("b", r20261111120000=good("a"), r20261112120000=good("b"))
    lane = made(facts("b", state, releases=(R1, R2), current=R1))
    assert (lane.intent, lane.release, lane.degraded) == ("keep", R1, False)
    assert lane.steps == kept(R1)


def test_what_was_rolled_back_from_comes_back_when_asked() -> None:
    state = remembered("b", r20261111120000=good("a"), r20261112120000=good("b"))
    lane = made(facts("b", state, releases=(R1, R2), current=R1), retry=True)
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", NEW, R1)


def test_a_rollback_by_cap_is_kept_as_well() -> None:
    state = remembered("b", r20261112120000=good("b"))
    lane = made(facts("b", state, releases=(R1, R2), current=R1))
    assert (lane.intent, lane.release) == ("hotfix", R1)


@pytest.mark.parametrize("elsewhere", [None, "/opt/other", "releases/gone"])
def test_a_lost_current_is_pointed_at_the_last_good_release_again(elsewhere: str | None) -> None:
    state = remembered("b", r20261111120000=good("a"), r20261112120000=good("b"))
    lane = made(facts("b", state, releases=(R1, R2), current=None, elsewhere=elsewhere))
    assert (lane.intent, lane.release) == ("keep", R2)
    assert lane.steps == kept(R2, switch=True)


def test_a_wiped_disk_is_deployed_anew_though_the_revision_is_known() -> None:
    lane = made(facts("a", remembered("a", r20261111120000=good("a"))))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", NEW, None)


# --- a run that was killed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("current", [R1, R2])
def test_a_killed_run_of_this_boot_is_finished(current: str) -> None:
    state = remembered("a", killed=pending(R2, "b"), r20261111120000=good("a"), r20261112120000=record("staged", "b"))
    lane = made(facts("b", state, releases=(R1, R2), current=current))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", R2, R1)
    assert lane.reason == "finish what an earlier run began"
    assert lane.steps == deployed(R2, "b", fresh=current != R2)


def test_a_power_cut_while_staging_makes_a_fresh_release_and_removes_the_doubtful_one() -> None:
    """Its files may be there by name only: nothing had been synced."""
    state = remembered("a", killed=pending(R2, "b", boot="before"), r20261111120000=good("a"))
    lane = made(facts("b", state, releases=(R1, R2), current=R1))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", NEW, R1)
    assert lane.steps == deployed(NEW, "b", R2)


def test_a_power_cut_before_the_release_had_its_name_leaves_nothing_to_remove() -> None:
    state = remembered("a", killed=pending(R2, "b", boot="before"), r20261111120000=good("a"))
    assert made(facts("b", state, releases=(R1,), current=R1)).steps == deployed(NEW, "b")


def test_a_power_cut_after_the_switch_is_finished_since_the_switch_syncs_first() -> None:
    state = remembered("a", killed=pending(R2, "b", boot="before", staged=True), r20261111120000=good("a"))
    lane = made(facts("b", state, releases=(R1, R2), current=R2))
    assert (lane.release, lane.fallback) == (R2, R1)
    assert lane.steps == deployed(R2, "b")


def test_a_killed_first_deployment_is_finished_without_a_fallback() -> None:
    state = remembered(killed=pending(R1, "a"), r20261111120000=record("active", "a"))
    lane = made(facts("a", state, releases=(R1,), current=R1))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", R1, None)


def test_a_pointer_that_moved_meanwhile_leaves_the_killed_run_behind() -> None:
    state = remembered("a", killed=pending(R2, "b"), r20261111120000=good("a"), r20261112120000=record("staged", "b"))
    lane = made(facts("c", state, releases=(R1, R2), current=R1))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", NEW, R1)
    assert lane.steps == deployed(NEW, "c", R2)


def test_a_pointer_that_moved_after_the_switch_falls_back_past_the_unproven_release() -> None:
    state = remembered("a", killed=pending(R2, "b"), r20261111120000=good("a"), r20261112120000=record("active", "b"))
    lane = made(facts("c", state, releases=(R1, R2), current=R2))
    assert (lane.release, lane.fallback) == (NEW, R1)
    assert lane.steps == deployed(NEW, "c")  # the current one is not pulled away from under its processes


def test_a_pointer_moved_back_to_what_was_there_before_the_killed_run_goes_back_to_it() -> None:
    state = remembered("a", killed=pending(R2, "b"), r20261111120000=good("a"), r20261112120000=record("active", "b"))
    lane = made(facts("a", state, releases=(R1, R2), current=R2))
    assert (lane.intent, lane.release) == ("keep", R1)
    assert lane.steps == kept(R1, switch=True)


def test_a_source_that_cannot_be_read_keeps_what_a_later_run_may_finish() -> None:
    state = remembered("a", killed=pending(R2, "b"), r20261111120000=good("a"), r20261112120000=record("staged", "b"))
    lane = made(facts(UNREADABLE, state, releases=(R1, R2), current=R1), app=replace(WEB, keep_releases=1))
    assert lane.steps == kept(R1)


def test_a_retry_that_lost_its_power_does_not_go_on_by_itself() -> None:
    state = remembered("b", killed=pending(R3, "b", boot="before"), r20261111120000=good("a"), r20261112120000=bad("b"))
    lane = made(facts("b", state, releases=(R1, R2, R3), current=R1))
    assert (lane.intent, lane.release, lane.degraded) == ("keep", R1, True)
    assert lane.steps == kept(R1, R3)


# --- bad revisions -----------------------------------------------------------------------------------------------

FAILED = remembered("b", r20261111120000=good("a"), r20261112120000=bad("b"))


def test_a_bad_revision_is_not_tried_again() -> None:
    lane = made(facts("b", FAILED, releases=(R1, R2), current=R1))
    assert (lane.intent, lane.release, lane.degraded) == ("keep", R1, True)
    assert lane.steps == kept(R1)
    assert lane.reason == "b failed before; publish another, or give it a try with --retry"


def test_that_it_was_bad_outlives_its_release() -> None:
    assert made(facts("b", FAILED, releases=(R1,), current=R1)).degraded


def test_a_bad_revision_is_tried_again_when_asked() -> None:
    lane = made(facts("b", FAILED, releases=(R1, R2), current=R1), retry=True)
    assert (lane.intent, lane.release, lane.fallback, lane.degraded) == ("deploy", NEW, R1, False)


def test_another_revision_is_tried_without_asking() -> None:
    lane = made(facts("c", FAILED, releases=(R1, R2), current=R1))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", NEW, R1)


def test_after_a_successful_retry_it_is_simply_kept() -> None:
    state = remembered("b", r20261111120000=good("a"), r20261112120000=bad("b"), r20261113120000=good("b"))
    lane = made(facts("b", state, releases=(R1, R2, R3), current=R3))
    assert (lane.intent, lane.release, lane.degraded) == ("keep", R3, False)


def test_a_bad_current_is_left_for_the_last_good_one() -> None:
    lane = made(facts("b", FAILED, releases=(R1, R2), current=R2))
    assert (lane.intent, lane.release, lane.degraded) == ("keep", R1, True)
    assert lane.steps == kept(R1, switch=True)


def test_a_bad_only_release_is_looked_at_again_in_its_place() -> None:
    """Nothing else could serve, so a database that is back by now is worth a look; nothing is pulled anew."""
    lane = made(facts("a", remembered("a", r20261111120000=bad("a")), releases=(R1,), current=R1))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", R1, None)
    assert lane.steps == deployed(R1, "a")


def test_a_bad_only_release_is_made_anew_when_asked() -> None:
    lane = made(facts("a", remembered("a", r20261111120000=bad("a")), releases=(R1,), current=R1), retry=True)
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", NEW, None)


# --- a source that cannot be read --------------------------------------------------------------------------------


def test_without_a_source_what_stands_goes_on() -> None:
    lane = made(facts(UNREADABLE, remembered("a", r20261111120000=good("a")), releases=(R1,), current=R1))
    assert (lane.intent, lane.release, lane.degraded) == ("keep", R1, True)
    assert lane.reason == "cannot read s3://deploys/web.json: SlowDown"
    assert lane.steps == kept(R1)


def test_without_a_source_a_hotfix_goes_on() -> None:
    lane = made(facts(UNREADABLE, releases=(R1,), current=R1))
    assert (lane.intent, lane.release, lane.degraded) == ("hotfix", R1, True)


def test_without_a_source_even_a_bad_release_is_better_than_none() -> None:
    lane = made(facts(UNREADABLE, remembered("a", r20261111120000=bad("a")), releases=(R1,), current=R1))
    assert (lane.intent, lane.release, lane.degraded) == ("keep", R1, True)


def test_without_a_source_and_with_nothing_standing_there_is_nothing_to_do() -> None:
    said = "cannot read s3://deploys/web.json: SlowDown"
    assert made(facts(UNREADABLE)) == Lane("web", "nothing", {}, reason=said, unread=True)


def test_a_current_that_is_no_release_is_named_when_there_is_nothing_to_do() -> None:
    lane = made(facts(UNREADABLE, elsewhere="/opt/old"))
    assert lane.intent == "nothing"
    assert lane.reason.startswith("current points at /opt/old, which is no release; ")


def test_reasons_shorten_a_commit_and_the_steps_do_not() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    lane = made(facts(commit))
    assert (lane.reason, lane.label) == ("0123456789ab is new", commit)
    assert RevisionFile("/srv/web", NEW, commit, "deploy", "web") in lane.steps["stage"]


# --- several apps ------------------------------------------------------------------------------------------------

API = replace(WEB, name="api", deploy_to="/srv/api")


def test_each_app_has_its_own_lane() -> None:
    known = {"web": facts(UNREADABLE), "api": facts("a")}
    lanes = plan.make(config(WEB, API), known, (), Moment(NOW, BOOT, None)).lanes
    assert [(lane.app, lane.intent) for lane in lanes] == [("web", "nothing"), ("api", "deploy")]


def test_what_the_role_does_not_run_is_stopped_first() -> None:
    old = ToStop("old", "/etc/sv", (("old.job", 60.0),), (("old.job", ()),), after=("older",))
    retired = (old, ToStop("older", "/etc/sv", ()))
    lanes = plan.make(config(), {"web": facts("a")}, retired, Moment(NOW, BOOT, None)).lanes
    assert [(lane.app, lane.intent) for lane in lanes] == [("old", "retire"), ("older", "retire"), ("web", "deploy")]
    kept = (
        "/var/lib/bootagent/environment/old",
        "/run/bootagent/environment/old",
        "/run/bootagent/scripts/old",
    )
    assert lanes[0].steps == {
        "stage": (
            Stopped("old", "/etc/sv", (("old.job", 60.0),), (("old.job", ()),)),
            NoOrphans("old", "/etc/sv", (("old.job", 60.0),)),
            RemovedServices("old", "/etc/sv", "/etc/service", (("old.job", 60.0),)),
            Forgotten("old", kept),
            RetiredVolumes("app.old.", (), None, delete=True),
        )
    }
    assert [type(step) for step in lanes[1].steps["stage"]] == [RemovedServices, Forgotten, RetiredVolumes]
    turns = [[lane.app for lane in turn] for turn in plan.turns_of("stage", lanes)]
    assert turns == [["old", "web"], ["older"]], "in the reverse of the order in which they were started"
    assert [[lane.app for lane in turn] for turn in plan.turns_of("retire", lanes)] == [["old", "older", "web"]]


def test_a_role_of_no_apps_retires_everything() -> None:
    empty, web = Config("none", None, (), (), RUNIT), ToStop("web", "/etc/sv", ())
    assert [lane.intent for lane in plan.make(empty, {}, (web,), Moment(NOW, BOOT, None)).lanes] == ["retire"]


# --- going back --------------------------------------------------------------------------------------------------


def test_going_back_after_a_failure_demotes_what_failed() -> None:
    state = remembered("b", r20261111120000=good("a"), r20261112120000=bad("b"))
    lane = plan.put_back(config(), WEB, state, R1, left=R2, reason="the activation failed")
    assert lane == Lane(
        app="web",
        intent="rollback",
        steps={
            "activate": (switched(R1, f"bootagent rolled back to release {R1}", demoted=R2),),
            "serve": (services(R1),),
        },
        release=R1,
        label="a",
        reason="the activation failed",
    )


def test_going_back_to_a_release_of_cap_leaves_its_processes_to_whoever_put_it_there() -> None:
    lane = plan.put_back(config(), WEB, remembered("b"), R1, left=None, reason="somebody asked")
    assert lane.steps["serve"] == (services(None),)
    assert lane.label is None


@pytest.mark.parametrize(
    ("releases", "current", "state", "previous"),
    [
        ((), None, remembered(), None),
        ((R1,), R1, remembered(), None),
        ((R1, R2, R3), R3, remembered(), R2),
        ((R1, R2, R3), R2, remembered(), R1),
        ((R1, R2, R3), R3, remembered(r20261112120000=bad("b")), R1),
        ((R1, R2, R3), R3, remembered(killed=pending(R2, "b")), R1),
        ((R1, R2), None, remembered(), R2),
        ((R1,), R2, remembered(r20261111120000=bad("a")), None),
    ],
)
def test_the_previous_release(
    releases: tuple[str, ...], current: str | None, state: AppState, previous: str | None
) -> None:
    assert plan.staged.previous(Layout(current, None, releases), state) == previous


# --- keep_releases -----------------------------------------------------------------------------------------------


def doomed(lane: Lane) -> tuple[str, ...]:
    (step,) = [step for step in lane.steps["stage"] if isinstance(step, Prune)]
    assert step.markers == tuple(f"/var/lib/bootagent/prepared/web.{name}" for name in step.names)
    return step.names


@pytest.mark.parametrize(
    ("keep", "names"),
    [(1, (R1, R2, R3)), (2, (R1, R2, R3)), (3, (R1, R2)), (4, (R1,)), (5, ()), (6, ())],
)
def test_a_deployment_makes_room_for_itself(keep: int, names: tuple[str, ...]) -> None:
    """Four releases and the new one; the current one stays whatever ``keep_releases`` says."""
    known = facts("new", remembered("d", r20261114120000=good("d")), releases=(R1, R2, R3, R4), current=R4)
    assert doomed(made(known, app=replace(WEB, keep_releases=keep))) == names


@pytest.mark.parametrize(("keep", "names"), [(1, (R1, R2, R3)), (3, (R1,)), (4, ())])
def test_keeping_prunes_too(keep: int, names: tuple[str, ...]) -> None:
    known = facts("d", remembered("d", r20261114120000=good("d")), releases=(R1, R2, R3, R4), current=R4)
    assert doomed(made(known, app=replace(WEB, keep_releases=keep))) == names


def test_bad_releases_go_before_older_good_ones() -> None:
    state = remembered("d", r20261111120000=good("a"), r20261113120000=bad("c"), r20261114120000=good("d"))
    known = facts("new", state, releases=(R1, R2, R3, R4), current=R4)
    assert doomed(made(known, app=replace(WEB, keep_releases=4))) == (R3,)
    assert doomed(made(known, app=replace(WEB, keep_releases=3))) == (R1, R3)


def test_the_last_good_one_stays_though_it_is_oldest() -> None:
    state = remembered("a", r20261111120000=good("a"))
    known = facts("a", state, releases=(R1, R2, R3), current=R3)  # two hotfixes since
    assert doomed(made(known, app=replace(WEB, keep_releases=1))) == (R2,)


def test_the_current_one_stays_though_it_is_bad() -> None:
    state = remembered("b", r20261111120000=good("a"), r20261112120000=bad("b"))
    known = facts("c", state, releases=(R1, R2), current=R2)
    assert doomed(made(known, app=replace(WEB, keep_releases=1))) == ()


def test_what_a_killed_run_left_falls_back_to_the_release_last_seen_to_serve() -> None:
    """Rolled back from R3 to R2, then killed after the switch to R4: R2 is what worked, not the newest good one."""
    state = replace(
        remembered(
            "c", killed=pending(R4, "d", staged=True), **{f"r{R2}": good("b"), f"r{R3}": good("c"), f"r{R4}": good("d")}
        ),
        proven=R2,
    )
    state = state.with_release(R4, record("active", "d"))
    lane = made(facts("d", state, releases=(R2, R3, R4), current=R4))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", R4, R2)


NAMES = [f"202611{day:02}120000" for day in range(1, 13)]
RECORDS = st.one_of(
    st.none(), st.builds(record, st.sampled_from(["good", "bad", "staged", "active"]), st.sampled_from("abc"))
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Known, App, bool]:
    present = tuple(sorted(draw(st.sets(st.sampled_from(NAMES), max_size=9))))
    records = {name: one for name in NAMES if (one := draw(RECORDS)) and (name in present or draw(st.booleans()))}
    current = draw(st.sampled_from([None, *present]))
    killed = None
    if draw(st.booleans()):
        killed = pending(
            draw(st.sampled_from(NAMES)),
            draw(st.sampled_from("abc")),
            boot=draw(st.sampled_from([BOOT, "before"])),
            staged=draw(st.booleans()),
        )
    last = draw(st.sampled_from([None, "sha256:a", "sha256:b"]))
    sources: list[Revision | BootagentError] = [UNREADABLE, revision("a"), revision("b"), revision("c")]
    source = draw(st.sampled_from(sources))
    app = replace(WEB, keep_releases=draw(st.integers(1, 8)))
    known = Known(Layout(current, None, present), source, AppState("/srv/web", last, killed, records))
    return known, app, draw(st.booleans())


@settings(max_examples=400, deadline=None)
@given(situations())
def test_pruning_keeps_what_matters_and_no_more_than_it_may(situation: tuple[Known, App, bool]) -> None:
    known, app, retry = situation
    lane = made(known, app=app, retry=retry)
    if lane.intent == "nothing":
        assert known.layout.current is None
        return
    layout, state = known.layout, known.state
    gone = set(doomed(lane))
    assert gone <= set(layout.releases)

    killed = {state.pending.release} if state.pending else set()
    last_good = state.last_good(layout.releases)
    protected = {layout.current, last_good, lane.release, lane.fallback} - {None}
    if not isinstance(known.revision, Revision):
        protected |= killed  # a later run may finish it
    assert not gone & protected

    left = (set(layout.releases) - gone) | ({lane.release} if lane.release else set())
    assert len(left) <= app.keep_releases or left <= protected

    def is_older(one: str) -> bool:
        return one in gone and one not in killed

    spared = left - protected
    for name in spared:
        if state.is_bad(name):
            assert not any(is_older(one) and not state.is_bad(one) for one in gone), "a bad one outlived a better one"
        assert not any(is_older(one) and state.is_bad(one) == state.is_bad(name) and one > name for one in gone)
    if gone - killed:
        assert len(left) >= app.keep_releases, "more went than had to"


@settings(max_examples=400, deadline=None)
@given(situations())
def test_every_lane_makes_sense(situation: tuple[Known, App, bool]) -> None:
    known, app, retry = situation
    lane = made(known, app=app, retry=retry)
    assert lane == made(known, app=app, retry=retry)
    assert lane.fallback != lane.release or lane.release is None
    assert lane.fallback is None or lane.fallback in known.layout.releases
    assert lane.fallback is None or not known.state.is_bad(lane.fallback)
    assert lane.reason
    assert set(lane.steps) <= set(plan.PHASES)
    if lane.intent == "deploy":
        assert isinstance(known.revision, Revision)
        assert (lane.revision, lane.label) == (known.revision.id, known.revision.label)
    elif lane.intent in ("keep", "hotfix"):
        assert lane.release in known.layout.releases
        assert (lane.intent == "keep") == (lane.release in known.state.releases)
        assert bool(lane.steps["activate"]) == (lane.release != known.layout.current)
    if not isinstance(known.revision, Revision):
        assert lane.degraded or lane.intent == "nothing"
