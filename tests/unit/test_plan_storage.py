"""The plan of what is mounted and attached, and of what stands in for a source that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone

import pytest

from bootagent import plan
from bootagent.config.model import App, Config, DataVolume, EbsSource, GitSource, ImageSource, NfsSource, S3Source
from bootagent.ebs.kind import VolumeKind
from bootagent.ebs.snapshots import Snapshot
from bootagent.ebs.wanted import Wanted
from bootagent.errors import AwsError, BootagentError, MachineError
from bootagent.git_repository import Commit
from bootagent.plan import Attachment, Known, Lane, Moment, Phase, ToStop, going_back
from bootagent.release import Layout
from bootagent.sources import Baked, InPlace, Revision, Tree
from bootagent.state import AppState, ReleaseRecord, ReleaseState
from bootagent.steps.attached_volume import AttachedVolume
from bootagent.steps.base import Step
from bootagent.steps.copied_scripts import CopiedScripts
from bootagent.steps.linked_paths import RevisionFile
from bootagent.steps.made_release import MadeBefore, MadeRelease
from bootagent.steps.mounted_nfs import MountedNfs
from bootagent.steps.mounted_volume import MountedVolume
from bootagent.steps.prepared import Prepared
from bootagent.steps.removed_services import RemovedServices
from bootagent.steps.retired_volumes import RetiredVolumes
from bootagent.steps.services import Services
from bootagent.steps.staged_bundle import StagedBundle
from bootagent.steps.staged_commit import StagedCommit
from bootagent.steps.staged_copy import StagedCopy
from bootagent.steps.stopped import Stopped
from bootagent.steps.uncovered import Uncovered
from tests.unit.test_plan import (
    BOOT,
    DIRECTORIES,
    ENV_FILE,
    NEW,
    NOW,
    R1,
    R2,
    ROSTER,
    RUNIT,
    WEB,
    activated,
    deployed,
    good,
    kept,
    links,
    pending,
    pruned,
    remembered,
    revision,
    services,
    switched,
)

Steps = dict[Phase, tuple[Step, ...]]
#: Where root mounts releases, the directories are root's.
ROOTS = replace(DIRECTORIES, roots=True)

ME, ZONE, REGION = "i-0123456789abcdef0", "eu-west-1b", "eu-west-1"
MOMENT = Moment(NOW, BOOT, REGION, instance_id=ME, zone=ZONE)
RETRY = replace(MOMENT, retry=True)
S1, S2, S3 = "snap-0000000000000001", "snap-0000000000000002", "snap-0000000000000003"
GP3 = VolumeKind(size_gib=20)
LOST = AwsError("cannot describe snapshots: RequestLimitExceeded", code="RequestLimitExceeded")
SILENT = MachineError("the NFS server does not answer")

WHOLE = EbsSource(
    snapshot=(("Name", "web"),),
    owner="self",
    holds="deploy_to",
    mountpoint="/cp",
    bind=True,
    options=("noatime",),
    device="/dev/sdg",
    volume=GP3,
    within=600.0,
)
RELEASE = replace(WHOLE, holds="release", mountpoint="/srv/web", bind=False)
NFS = NfsSource("build", "/apps", "/srv", ("ro",), copy=False, path="current", within=120.0)
COPY = replace(NFS, mountpoint="/mnt/build", copy=True, path="web/current")

#: WEB without what cannot be in a release that is read in place.
PLAIN = replace(WEB, linked_files=(), linked_dirs=(), prepare=None)
ON_VOLUME = replace(PLAIN, source=WHOLE)
ON_NFS = replace(PLAIN, source=NFS)
BY_RELEASE = replace(WEB, source=RELEASE)


def config(*apps: App, volumes: Sequence[DataVolume] = ()) -> Config:
    return Config(role="web", environment="staging", apps=apps, volumes=tuple(volumes), runit=RUNIT)


def made(app: App, known: Known, moment: Moment = MOMENT) -> Lane:
    (lane,) = plan.make(config(app), {app.name: known}, (), moment).lanes
    return lane


def snapshot(name: str) -> Revision:
    return Revision(name, name, str(WHOLE), Snapshot(name, 20, datetime(2026, 11, 20, tzinfo=timezone.utc), {}))


def shown(name: str, made_of: str = "1") -> Revision:
    """What an NFS server's current is."""
    return Revision(f"nfs:build:/apps:{name}:{made_of}", name, "build:/apps/current", InPlace())


def served(release: str, made_of: str | None = None, state: ReleaseState = "good") -> AppState:
    """An app that has served one release in place."""
    one = ReleaseRecord(state, made_of or release, release, "2026-11-11T12:00:00Z")
    proven = release if state == "good" else None
    return AppState("/srv/web", one.revision, None, {release: one}, proven, in_place=True)


def bad(state: AppState, *names: str) -> AppState:
    for name in names:
        state = state.with_release(name, ReleaseRecord("bad", name, name, "2026-11-12T12:00:00Z", "it crashed"))
    return state


def in_place(source: Revision | BootagentError, state: AppState | None = None, *, present: bool = True) -> Known:
    return Known(Layout(), source, state or AppState("/srv/web"), present=present)


# The steps, as they should be.


def attached(release: str, made_of: str, *, marker: str | None = None) -> AttachedVolume:
    wanted = Wanted(
        name=f"app.web.{release}",
        purpose="app web",
        instance_id=ME,
        region=REGION,
        zone=ZONE,
        snapshot=made_of,
        kind=GP3,
        device="/dev/sdg",
        within=600.0,
        marker=marker,
    )
    return AttachedVolume(wanted)


def mounted(release: str, place: str, bind: str | None = None) -> MountedVolume:
    return MountedVolume(
        record=f"app.web.{release}",
        mountpoint=place,
        filesystem="xfs",
        options=("noatime",),
        bind=bind,
        format=False,
        user=None,
        group=None,
        fstab=True,
        within=600.0,
    )


def retired(*keep: str) -> RetiredVolumes:
    return RetiredVolumes("app.web.", tuple(f"app.web.{release}" for release in keep), ME, delete=True)


def run(mark: str, *needs: str, scripts: str | None = None) -> Services:
    """The services of an app that is read in place: nothing of shared/ is filled, and so watched."""
    return Services(replace(ROSTER, scripts=scripts, needs=needs), mark)


def on_volume(name: str) -> Steps:
    """All steps that bring a whole deploy_to."""
    return {
        "stage": (attached(name, name),),
        "activate": (mounted(name, "/cp", "/srv/web"),),
        "serve": (run(name, "/cp", "/srv/web"),),
        "retire": (retired(name),),
    }


def on_nfs(mark: str) -> Steps:
    """All steps that run what a mount shows."""
    scripts = CopiedScripts("/srv/web/current/config/service", "/run/bootagent/scripts/web", "deploy", "web")
    return {"stage": (scripts,), "serve": (run(mark, "/srv", scripts="/run/bootagent/scripts/web"),)}


# --- a whole deploy_to on a volume -------------------------------------------------------------------------------


def test_a_first_boot_brings_the_newest_snapshot() -> None:
    assert made(ON_VOLUME, in_place(snapshot(S1))) == Lane(
        app="web",
        intent="deploy",
        steps=on_volume(S1),
        release=S1,
        revision=S1,
        label=S1,
        fallback=None,
        reason=f"{S1} is new",
    )


def test_a_volume_may_be_mounted_at_deploy_to_alone() -> None:
    app = replace(ON_VOLUME, source=replace(WHOLE, mountpoint="/srv/web", bind=False))
    steps = made(app, in_place(snapshot(S1))).steps
    assert steps["activate"] == (mounted(S1, "/srv/web"),)
    assert steps["serve"] == (run(S1, "/srv/web"),)


def test_a_newer_snapshot_takes_the_place_of_the_one_that_stands_which_it_may_go_back_to() -> None:
    lane = made(ON_VOLUME, in_place(snapshot(S2), served(S1)))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", S2, S1)
    assert lane.steps == on_volume(S2)


@pytest.mark.parametrize("moment", [MOMENT, RETRY])
def test_the_same_snapshot_is_kept(moment: Moment) -> None:
    assert made(ON_VOLUME, in_place(snapshot(S1), served(S1)), moment) == Lane(
        app="web",
        intent="keep",
        steps=on_volume(S1),
        release=S1,
        revision=S1,
        label=S1,
        reason=f"{S1} is what was deployed last",
    )


def test_a_snapshot_that_failed_is_not_tried_again_while_another_stands() -> None:
    lane = made(ON_VOLUME, in_place(snapshot(S2), bad(served(S1), S2)))
    assert (lane.intent, lane.release, lane.degraded, lane.unread) == ("keep", S1, True, False)
    assert lane.reason == f"{S2} failed before; make another snapshot, or give it a try with --retry"
    assert lane.steps == on_volume(S1)


def test_a_snapshot_that_failed_is_tried_again_when_asked() -> None:
    lane = made(ON_VOLUME, in_place(snapshot(S2), bad(served(S1), S2)), RETRY)
    assert (lane.intent, lane.release, lane.fallback, lane.degraded) == ("deploy", S2, S1, False)
    assert lane.reason == f"{S2} failed before: see whether it works by now"
    assert lane.steps == on_volume(S2)


def test_a_snapshot_that_failed_is_tried_again_when_there_is_no_other() -> None:
    lane = made(ON_VOLUME, in_place(snapshot(S1), served(S1, state="bad")))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", S1, None)
    assert lane.steps == on_volume(S1)


def test_a_run_that_was_killed_is_finished_by_the_same_steps() -> None:
    state = served(S1).with_release(S2, ReleaseRecord("staged", S2, S2, "2026-11-12T12:00:00Z"))
    lane = made(ON_VOLUME, in_place(snapshot(S2), state))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", S2, S1)
    assert lane.steps == on_volume(S2)


def test_without_ec2_what_stands_goes_on_and_its_volume_is_brought_back() -> None:
    """After a reboot, say: the record tells which volume it is, and the steps ask EC2 for nothing they know."""
    for present in (True, False):
        lane = made(ON_VOLUME, in_place(LOST, served(S1), present=present))
        assert (lane.intent, lane.release, lane.degraded, lane.unread) == ("keep", S1, True, True)
        assert lane.reason == str(LOST)
        assert lane.steps == on_volume(S1)


def test_without_ec2_and_with_nothing_standing_there_is_nothing_to_do() -> None:
    assert made(ON_VOLUME, in_place(LOST)) == Lane("web", "nothing", {}, reason=str(LOST), unread=True)


@pytest.mark.parametrize("app", [ON_VOLUME, BY_RELEASE])
@pytest.mark.parametrize("unknown", ["instance_id", "zone"])
def test_a_machine_that_does_not_know_itself_makes_no_volume_and_says_so(app: App, unknown: str) -> None:
    lane = made(app, in_place(snapshot(S1)), Moment(**{**vars(MOMENT), unknown: None}))
    assert (lane.intent, lane.steps) == ("nothing", {})
    assert lane.reason.startswith("app web needs a volume, and it is not known which instance this is")


def test_going_back_shows_the_old_volume_again() -> None:
    lane = plan.put_back(config(ON_VOLUME), ON_VOLUME, bad(served(S1), S2), S1, left=S2, reason="it failed")
    assert lane == Lane(
        app="web",
        intent="rollback",
        steps={"activate": (mounted(S1, "/cp", "/srv/web"),), "serve": (run(S1, "/cp", "/srv/web"),)},
        release=S1,
        label=S1,
        reason="it failed",
    )


def in_turn(*names: str, proven: str, last: str) -> AppState:
    """An app that has served one snapshot after the other, and dealt with ``last`` last."""
    releases = {
        name: ReleaseRecord("good", name, name, f"2026-11-1{day}T12:00:00Z") for day, name in enumerate(names, 1)
    }
    return AppState("/srv/web", last, None, releases, proven, in_place=True)


def test_a_snapshot_that_was_rolled_back_is_deployed_again_only_when_asked() -> None:
    state = in_turn(S1, S2, proven=S1, last=S2)
    lane = made(ON_VOLUME, in_place(snapshot(S2), state))
    assert (lane.intent, lane.release, lane.degraded) == ("keep", S1, False)
    assert lane.reason == f"{S2} was rolled back; --retry deploys it again"
    assert lane.steps == on_volume(S1)
    lane = made(ON_VOLUME, in_place(snapshot(S2), state), RETRY)
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", S2, S1)
    lane = made(ON_VOLUME, in_place(snapshot(S3), state))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", S3, S1)


def test_going_back_brings_a_snapshot_again_and_lets_the_other_volume_go_last() -> None:
    known = in_place(LOST, in_turn(S1, S2, proven=S2, last=S2))
    lane = going_back.lane(config(ON_VOLUME), ON_VOLUME, known, S1, MOMENT)
    assert lane == Lane(
        app="web",
        intent="rollback",
        steps=on_volume(S1),
        release=S1,
        label=S1,
        fallback=S2,
        reason="asked by bootagent rollback",
    )
    assert going_back.lane(config(ON_VOLUME), ON_VOLUME, known, S2, MOMENT).fallback is None


@pytest.mark.parametrize(
    ("state", "back"),
    [
        (in_turn(S1, S2, S3, proven=S3, last=S3), S2),
        (in_turn(S1, S2, S3, proven=S2, last=S3), S1),  # gone back before: never forward
        (bad(in_turn(S1, S3, proven=S3, last=S3), S2), S1),
        (in_turn(S1, proven=S1, last=S1), None),
        (AppState("/srv/web"), None),
        # From when deploy_to was made of releases, or stood in for by the image's tree.
        (in_turn(S1, proven=S1, last=S1).with_release(R1, ReleaseRecord("good", S2, S2, "2026-11-10T12:00:00Z")), None),
    ],
)
def test_the_snapshot_to_go_back_to_is_the_good_one_before(state: AppState, back: str | None) -> None:
    assert going_back.previous(ON_VOLUME, Layout(), state) == back
    assert R1 not in going_back.choices(ON_VOLUME, Layout(), state)


def test_where_releases_are_somebody_elses_there_is_no_way_back() -> None:
    apps = (ON_VOLUME, BY_RELEASE, WEB, ON_NFS, replace(ON_NFS, source=COPY))
    assert [going_back.can_go_back(app) for app in apps] == [True, True, True, False, True]


# --- a release on a volume ---------------------------------------------------------------------------------------


def marker(name: str) -> str:
    return f"/var/lib/bootagent/prepared/web.{name}"


def by_release(
    name: str, made_of: str, *, keep: tuple[str, ...], doomed: tuple[str, ...] = (), fresh: bool = True
) -> Steps:
    """All steps that put a snapshot into a release; ``doomed`` are the ones that only the release before it needed."""
    environment = (
        ("BOOTAGENT_APP", "web"),
        ("BOOTAGENT_ENVIRONMENT", "staging"),
        ("BOOTAGENT_REVISION", made_of),
        ("BOOTAGENT_ROLE", "web"),
    )
    place = f"/srv/web/releases/{name}"
    return {
        "stage": (
            ROOTS,
            ENV_FILE,
            retired(*keep),
            pruned(),
            attached(name, made_of, marker=marker(name)),
            mounted(name, place),
            links(name, fresh=fresh, volume=f"app.web.{name}"),
            RevisionFile("/srv/web", name, made_of, "deploy", "web"),
            Prepared(place, ("bin/prepare",), 60.0, environment, "deploy", "web", marker(name)),
            MadeRelease(f"app.web.{name}"),
        ),
        "activate": activated(name, f"Branch {WHOLE} (at {made_of}) deployed as release {name} by bootagent"),
        "serve": (services(name),),
        "retire": (retired(name), pruned(*doomed)),
    }


def restored(made_of: str) -> ReleaseRecord:
    return ReleaseRecord("good", made_of, made_of, "2026-11-11T12:00:00Z")


ONE = AppState("/srv/web", S1, None, {R1: restored(S1)}, R1)


def test_a_first_release_on_a_volume() -> None:
    lane = made(BY_RELEASE, Known(Layout(), snapshot(S1), AppState("/srv/web")))
    assert (lane.intent, lane.release, lane.revision, lane.fallback) == ("deploy", NEW, S1, None)
    assert lane.steps == by_release(NEW, S1, keep=(NEW,))


def test_the_old_release_and_its_volume_stay_until_the_new_one_serves() -> None:
    lane = made(BY_RELEASE, Known(Layout(R1, None, (R1,)), snapshot(S2), ONE))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", NEW, R1)
    assert lane.steps == by_release(NEW, S2, keep=(R1, NEW), doomed=(R1,))


@pytest.mark.parametrize("source", [snapshot(S1), LOST])
def test_a_release_on_a_volume_is_kept_with_its_volume(source: Revision | BootagentError) -> None:
    lane = made(BY_RELEASE, Known(Layout(R1, None, (R1,)), source, ONE, volumes=(R1,), whole=(R1,)))
    assert (lane.intent, lane.release, lane.revision, lane.unread) == ("keep", R1, S1, source is LOST)
    assert lane.steps == {
        "stage": (
            ROOTS,
            ENV_FILE,
            retired(R1),
            pruned(),
            attached(R1, S1, marker=marker(R1)),
            mounted(R1, f"/srv/web/releases/{R1}"),
            links(R1),
        ),
        "activate": (),
        "serve": (services(R1),),
    }


@pytest.mark.parametrize("volumes", [(), (R1,)])
def test_a_release_that_is_kept_is_made_again_where_it_has_no_volume_it_was_made_on(volumes: tuple[str, ...]) -> None:
    """In an image of another instance, say: the snapshot's content comes as it is, and nothing was made of it."""
    lane = made(BY_RELEASE, Known(Layout(R1, None, (R1,)), snapshot(S1), ONE, volumes=volumes))
    assert (lane.intent, lane.release) == ("keep", R1)
    assert lane.steps["stage"] == by_release(R1, S1, keep=(R1,), fresh=False)["stage"]


def test_a_release_on_a_volume_that_was_not_made_is_not_put_back() -> None:
    lane = plan.put_back(config(BY_RELEASE), BY_RELEASE, ONE, R1, left=None, reason="")
    assert lane.steps["activate"] == (
        MadeBefore(f"app.web.{R1}"),
        switched(R1, f"bootagent rolled back to release {R1}"),
    )


def test_a_release_that_failed_is_given_back_with_its_volume() -> None:
    """It costs money, whatever keep_releases says."""
    state = ONE.with_release(R2, replace(restored(S2), state="bad"))
    lane = made(BY_RELEASE, Known(Layout(R1, None, (R1, R2)), snapshot(S2), state))
    assert (lane.intent, lane.release, lane.degraded) == ("keep", R1, True)
    assert lane.steps["stage"][2:4] == (retired(R1), pruned(R2))


def test_going_back_makes_the_old_release_of_its_snapshot_again() -> None:
    state = ONE.with_release(R2, restored(S2))
    known = Known(Layout(R2, None, (R2,)), LOST, replace(state, proven=R2, revision=S2))
    assert going_back.choices(BY_RELEASE, known.layout, known.state) == (R1, R2)
    assert going_back.previous(BY_RELEASE, known.layout, known.state) == R1
    lane = going_back.lane(config(BY_RELEASE), BY_RELEASE, known, R1, MOMENT)
    steps = by_release(R1, S1, keep=(R1, R2), doomed=(R2,))
    assert (lane.intent, lane.release, lane.fallback) == ("rollback", R1, R2)
    switch = (MadeBefore(f"app.web.{R1}"), switched(R1, f"bootagent rolled back to release {R1}"))
    assert lane.steps == {**steps, "activate": switch}
    assert list(lane.steps) == ["stage", "activate", "serve", "retire"]


def test_going_back_to_somebody_elses_release_restores_nothing() -> None:
    known = Known(Layout(R2, None, (R1, R2)), LOST, AppState("/srv/web", S2, None, {R2: restored(S2)}, R2))
    assert going_back.previous(BY_RELEASE, known.layout, known.state) == R1
    lane = going_back.lane(config(BY_RELEASE), BY_RELEASE, known, R1, MOMENT)
    assert (lane.intent, lane.release, lane.fallback) == ("rollback", R1, R2)
    assert lane == replace(
        plan.put_back(config(BY_RELEASE), BY_RELEASE, known.state, R1, left=R2, reason=""),
        fallback=R2,
        reason="asked by bootagent rollback",
    )


def test_a_hotfix_beside_releases_on_volumes_has_none_and_keeps_theirs() -> None:
    lane = made(BY_RELEASE, Known(Layout(R2, None, (R1, R2)), snapshot(S1), ONE))
    assert (lane.intent, lane.release) == ("hotfix", R2)
    assert lane.steps == {"stage": (retired(R1, R2), pruned()), "activate": (), "serve": (services(None),)}


# --- read in place from NFS --------------------------------------------------------------------------------------


def test_a_first_boot_runs_what_the_mount_shows() -> None:
    assert made(ON_NFS, in_place(shown(R1))) == Lane(
        app="web",
        intent="deploy",
        steps=on_nfs(f"nfs:build:/apps:{R1}:1"),
        release=R1,
        revision=f"nfs:build:/apps:{R1}:1",
        label=R1,
        reason=f"{R1} is new",
    )


@pytest.mark.parametrize(("name", "made_of"), [(R2, "1"), (R1, "2")])
def test_another_release_on_the_server_restarts_the_services_and_there_is_no_way_back(name: str, made_of: str) -> None:
    lane = made(ON_NFS, in_place(shown(name, made_of), served(R1, f"nfs:build:/apps:{R1}:1")))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", name, None)
    assert lane.steps == on_nfs(f"nfs:build:/apps:{name}:{made_of}")


def test_the_same_release_is_kept() -> None:
    lane = made(ON_NFS, in_place(shown(R1), served(R1, f"nfs:build:/apps:{R1}:1")))
    assert (lane.intent, lane.release, lane.degraded) == ("keep", R1, False)
    assert lane.steps == on_nfs(f"nfs:build:/apps:{R1}:1")


def test_a_release_that_failed_is_started_again_since_it_is_the_only_one() -> None:
    state = served(R1, f"nfs:build:/apps:{R1}:1", "bad")
    lane = made(ON_NFS, in_place(shown(R1), state))
    assert (lane.intent, lane.release, lane.reason) == (
        "deploy",
        R1,
        f"{R1} failed before: see whether it works by now",
    )


def test_a_silent_server_is_left_alone_with_what_runs() -> None:
    """Whoever touches the mount may hang."""
    lane = made(ON_NFS, in_place(SILENT, served(R1, f"nfs:build:/apps:{R1}:1")))
    assert lane == Lane("web", "keep", {}, release=R1, reason=str(SILENT), degraded=True, unread=True)


def test_a_mount_that_is_not_there_has_nothing_to_run() -> None:
    for known in (in_place(SILENT, served(R1, f"nfs:build:/apps:{R1}:1"), present=False), in_place(SILENT)):
        assert made(ON_NFS, known) == Lane("web", "nothing", {}, reason=str(SILENT), unread=True)


def test_a_release_copied_from_nfs_is_a_release_like_any_other() -> None:
    app = replace(WEB, source=COPY)
    source = Revision(f"nfs:build:/apps:{R1}:1", R1, "build:/apps/web/current", Tree("/mnt/build/web/releases/1"))
    lane = made(app, Known(Layout(), source, remembered()))
    expected = deployed(NEW, "a")["stage"]
    assert (lane.intent, lane.release, lane.label) == ("deploy", NEW, R1)
    assert lane.steps["stage"][:3] == expected[:3]
    assert lane.steps["stage"][3] == StagedCopy(
        f"/srv/web/releases/{NEW}", "/mnt/build/web/releases/1", 300.0, "deploy", "web"
    )
    assert lane.steps["stage"][4] == links(NEW)
    assert "retire" not in lane.steps
    assert lane.steps["serve"] == (services(NEW),)


# --- an app that has moved ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [served(S1), served("v2", "nfs:build:/apps:v2:1")])
def test_an_app_that_was_read_in_place_can_have_releases_of_its_own(before: AppState) -> None:
    """What it was read from has names that are no times."""
    lane = made(WEB, Known(Layout(), revision("a"), before))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", NEW, None)


@pytest.mark.parametrize("app", [ON_VOLUME, ON_NFS])
@pytest.mark.parametrize("before", [good("a"), restored(S1)])
def test_releases_of_its_own_are_nothing_to_keep_in_place(app: App, before: ReleaseRecord) -> None:
    """They have no volume there, and no place on the mount."""
    state = replace(remembered("a"), releases={R1: before}, proven=R1)
    lane = made(app, in_place(snapshot(S2) if app is ON_VOLUME else shown(R2), state))
    assert (lane.intent, lane.fallback) == ("deploy", None)
    assert made(app, in_place(LOST, state)) == Lane("web", "nothing", {}, reason=str(LOST), unread=True)


def test_a_release_that_was_on_no_volume_is_kept_without_one() -> None:
    state = replace(remembered("a"), releases={R1: good("a")}, proven=R1)
    lane = made(BY_RELEASE, Known(Layout(R1, None, (R1,)), LOST, state))
    assert (lane.intent, lane.release) == ("keep", R1)
    assert lane.steps["stage"] == (ROOTS, ENV_FILE, retired(R1), pruned(), links(R1))


# --- git and the image -------------------------------------------------------------------------------------------

SHA = "0123456789abcdef0123456789abcdef01234567"
COMMIT = Commit("https://git.example.com/web.git", SHA, submodules=True, key="/etc/key")
GIT = replace(WEB, source=GitSource(COMMIT.url, "main", COMMIT.key, COMMIT.known_hosts, submodules=True))
TREE = Revision("image:v1", "v1", "the image's /opt/web", Tree("/opt/web"))
BAKED = Revision("image", "image", "the image", Baked())
HELD = replace(WEB, source=ImageSource(None))


def test_a_commit_is_checked_out_and_all_else_is_as_with_a_bundle() -> None:
    lane = made(GIT, Known(Layout(), Revision(f"git:{SHA}", SHA, COMMIT.url, COMMIT), remembered()))
    other = deployed(NEW, SHA)
    assert (lane.intent, lane.revision, lane.label, lane.reason) == ("deploy", f"git:{SHA}", SHA, f"{SHA[:12]} is new")
    step = StagedCommit(f"/srv/web/releases/{NEW}", "/srv/web", COMMIT, 300.0, "deploy", "web")
    assert lane.steps["stage"] == tuple(step if isinstance(one, StagedBundle) else one for one in other["stage"])
    log = f"Branch {COMMIT.url} (at {SHA}) deployed as release {NEW} by bootagent"
    assert lane.steps["activate"] == activated(NEW, log)
    assert lane.steps["serve"] == (services(NEW),)


@pytest.mark.parametrize(
    ("layout", "release", "switch"),
    [
        (Layout(R1, None, (R1, R2)), R1, None),
        (Layout(None, None, (R1, R2)), R2, R2),
        (Layout(None, "/gone", (R1,)), R1, R1),
    ],
)
def test_what_the_image_holds_is_the_current_release_or_the_newest(
    layout: Layout, release: str, switch: str | None
) -> None:
    lane = made(HELD, Known(layout, BAKED, AppState("/srv/web")))
    assert (lane.intent, lane.release, lane.degraded, lane.unread) == ("hotfix", release, False, False)
    assert lane.steps == {
        "stage": (pruned(),),
        "activate": (switched(switch, None),) if switch else (),
        "serve": (services(None),),
    }


def test_an_image_without_a_release_has_nothing_to_run() -> None:
    lane = made(HELD, Known(Layout(), BAKED, AppState("/srv/web")))
    said = "/srv/web holds no release: bake one into the image, or name a tree with source.path"
    assert lane == Lane("web", "nothing", {}, reason=said)


def test_what_a_killed_run_left_in_an_image_is_not_what_it_holds() -> None:
    """The image was made of a machine that had another source."""
    state = remembered("b", killed=pending(R2, "b"), r20261112120000=replace(good("b"), state="staged"))
    lane = made(HELD, Known(Layout(None, None, (R1, R2)), BAKED, state))
    assert (lane.intent, lane.release) == ("hotfix", R1)
    assert made(HELD, Known(Layout(None, None, (R2,)), BAKED, state)).intent == "nothing"


# --- the image in a source's place -------------------------------------------------------------------------------

WITH_TREE = replace(WEB, fallback=ImageSource("/opt/web"))
WITH_HELD = replace(WEB, fallback=ImageSource(None))


def unread(state: AppState | None = None, *, baked: Revision | None = TREE, layout: Layout | None = None) -> Known:
    return Known(layout or Layout(), LOST, state or remembered(), fallback=baked)


def from_image(name: str, *prune: str, fresh: bool = True) -> Steps:
    """All steps that put the image's tree into a release."""
    steps = deployed(name, "v1", *prune, fresh=fresh)
    copy = StagedCopy(f"/srv/web/releases/{name}", "/opt/web", 300.0, "deploy", "web")
    log = f"Branch the image's /opt/web (at v1) deployed as release {name} by bootagent"
    return {
        "stage": tuple(copy if isinstance(one, StagedBundle) else one for one in steps["stage"]),
        "activate": activated(name, log),
        "serve": steps["serve"],
    }


def test_what_the_image_holds_serves_until_the_source_can_be_read() -> None:
    assert made(WITH_TREE, unread()) == Lane(
        app="web",
        intent="deploy",
        steps=from_image(NEW),
        release=NEW,
        revision="image:v1",
        label="v1",
        reason=f"{LOST}; until it can be read, what the image holds serves",
        degraded=True,
        unread=True,
    )


def test_a_source_that_can_be_read_has_no_need_of_the_image() -> None:
    known = replace(unread(), revision=revision("a"))
    assert made(WITH_TREE, known).steps == deployed(NEW, "a")


@pytest.mark.parametrize("app", [WITH_TREE, WITH_HELD])
def test_what_stands_has_no_need_of_the_image_either(app: App) -> None:
    lane = made(app, unread(remembered("a", r20261111120000=good("a")), layout=Layout(R1, None, (R1,))))
    assert (lane.intent, lane.release, lane.degraded, lane.unread) == ("keep", R1, True, True)
    assert lane.steps == kept(R1)
    assert lane.reason == str(LOST)


@pytest.mark.parametrize("current", [None, R2])
def test_a_killed_run_of_it_is_finished_under_its_name(current: str | None) -> None:
    """After the switch, too: it has not been seen to work."""
    begun = replace(pending(R2, "x"), revision="image:v1", label="v1")
    lane = made(WITH_TREE, unread(remembered(killed=begun), layout=Layout(current, None, (R2,))))
    assert (lane.intent, lane.release, lane.fallback) == ("deploy", R2, None)
    assert lane.steps == from_image(R2, fresh=current is None)


def test_a_power_cut_while_it_was_copied_makes_a_fresh_one_and_removes_the_doubtful_one() -> None:
    """Its files may be there by name only: nothing had been synced."""
    begun = replace(pending(R2, "x", boot="before"), revision="image:v1", label="v1")
    lane = made(WITH_TREE, unread(remembered(killed=begun), layout=Layout(None, None, (R2,))))
    assert (lane.intent, lane.release) == ("deploy", NEW)
    assert lane.steps == from_image(NEW, R2)


def test_a_tree_that_failed_is_not_tried_again() -> None:
    failed = replace(good("v1"), state="bad", revision="image:v1")
    state = replace(remembered(r20261111120000=failed), revision="image:v1")
    lane = made(WITH_TREE, unread(state, layout=Layout(R1, None, (R1,))))
    assert (lane.intent, lane.release, lane.degraded, lane.unread) == ("keep", R1, True, True)
    assert lane.steps == kept(R1)
    lane = made(WITH_TREE, unread(state))  # and its release is gone
    said = f"{LOST}; and what the image holds failed before"
    assert lane == Lane("web", "nothing", {}, reason=said, unread=True)


def test_the_release_that_the_image_has_serves_until_the_source_can_be_read() -> None:
    lane = made(WITH_HELD, unread(baked=None, layout=Layout(None, None, (R1, R2))))
    assert (lane.intent, lane.release, lane.degraded, lane.unread) == ("hotfix", R2, True, True)
    assert lane.steps == {"stage": (pruned(),), "activate": (switched(R2, None),), "serve": (services(None),)}


def test_what_a_killed_run_began_is_no_release_that_the_image_has() -> None:
    """It may lack its files, and its hook has not run."""
    state = remembered(killed=pending(R2, "b"), r20261112120000=replace(good("b"), state="staged"))
    lane = made(WITH_HELD, unread(state, baked=None, layout=Layout(None, None, (R1, R2))))
    assert (lane.intent, lane.release) == ("hotfix", R1)
    lane = made(WITH_HELD, unread(state, baked=None, layout=Layout(None, None, (R2,))))
    assert lane == Lane("web", "nothing", {}, reason=str(LOST), unread=True)


def test_without_the_words_what_the_image_has_does_not_serve() -> None:
    lane = made(WEB, unread(baked=None, layout=Layout(None, None, (R1, R2))))
    assert lane == Lane("web", "nothing", {}, reason=str(LOST), unread=True)


def test_a_tree_in_the_place_of_a_volume_stays_without_one() -> None:
    app = replace(BY_RELEASE, fallback=ImageSource("/opt/web"))
    lane = made(app, unread())
    assert StagedCopy(f"/srv/web/releases/{NEW}", "/opt/web", 300.0, "deploy", "web") in lane.steps["stage"]
    state = replace(remembered(r20261111120000=replace(good("v1"), revision="image:v1")), revision="image:v1")
    lane = made(app, unread(state, layout=Layout(R1, None, (R1,))))
    assert (lane.intent, lane.release) == ("keep", R1)
    assert lane.steps["stage"] == (ROOTS, ENV_FILE, retired(R1), pruned(), links(R1))


@pytest.mark.parametrize("app", [ON_VOLUME, ON_NFS])
def test_a_tree_runs_where_it_is_in_the_place_of_what_is_read_in_place(app: App) -> None:
    app = replace(app, fallback=ImageSource("/opt/web"))
    lane = made(app, replace(in_place(LOST, present=False), fallback=TREE))
    assert lane == Lane(
        app="web",
        intent="keep",
        steps={"serve": (Services(replace(ROSTER, current="/opt/web"), "image:v1"),)},
        release="v1",
        label="v1",
        reason=f"{LOST}; until it can be read, what the image holds serves",
        degraded=True,
        unread=True,
    )


@pytest.mark.parametrize(("app", "steps"), [(ON_VOLUME, on_volume(S1)), (ON_NFS, {})])
def test_what_stands_in_place_has_no_need_of_the_tree(app: App, steps: Steps) -> None:
    state = served(S1) if app is ON_VOLUME else served(R1, f"nfs:build:/apps:{R1}:1")
    lane = made(replace(app, fallback=ImageSource("/opt/web")), replace(in_place(LOST, state), fallback=TREE))
    assert (lane.intent, lane.release, lane.degraded, lane.unread) == ("keep", state.proven, True, True)
    assert lane.steps == steps


def test_a_tree_serves_when_the_mount_has_gone_with_the_last_boot() -> None:
    state = served(R1, f"nfs:build:/apps:{R1}:1")
    app = replace(ON_NFS, fallback=ImageSource("/opt/web"))
    lane = made(app, replace(in_place(SILENT, state, present=False), fallback=TREE))
    assert (lane.intent, lane.release, lane.degraded) == ("keep", "v1", True)


# --- mounts and data volumes -------------------------------------------------------------------------------------

DATA = DataVolume(
    name="data",
    mountpoint="/var/lib/postgresql",
    tags=(),
    snapshot=(),
    owner="self",
    filesystem="ext4",
    options=("noatime", "nodev"),
    user="postgres",
    group="postgres",
    device="/dev/sdf",
    volume=GP3,
    delete_on_termination=True,
    within=300.0,
)


#: Of the tags Name=db: volumes with other tags are others.
BY_TAGS = "role.web.data.a09bfdc1"


def recorded(volume: DataVolume) -> str:
    return BY_TAGS if volume.tags else "role.web.data"


def attach(volume: DataVolume, made_of: str | None, *, create: bool) -> AttachedVolume:
    wanted = Wanted(
        name=recorded(volume),
        purpose="volume web/data",
        instance_id=ME,
        region=REGION,
        zone=ZONE,
        snapshot=made_of,
        find=volume.tags,
        kind=volume.volume,
        device="/dev/sdf",
        delete_on_termination=volume.delete_on_termination,
        create=create,
        by_snapshot=False,
        within=300.0,
    )
    return AttachedVolume(wanted)


def mount(*, blank: bool, name: str = "role.web.data") -> MountedVolume:
    return MountedVolume(
        record=name,
        mountpoint="/var/lib/postgresql",
        filesystem="ext4",
        options=("noatime", "nodev"),
        bind=None,
        format=blank,
        user="postgres",
        group="postgres",
        fstab=True,
        within=300.0,
    )


def of_role(volume: DataVolume, made_of: str | None = None) -> Attachment:
    (one,) = plan.attachments(config(volumes=[volume]), {"data": made_of}, MOMENT)
    return one


def test_a_volume_of_a_size_is_made_blank_and_may_be_formatted() -> None:
    assert of_role(DATA) == Attachment("volume data", (), (attach(DATA, None, create=True), mount(blank=True)))


def test_a_volume_that_outlives_instances_is_found_by_its_tags_and_made_once() -> None:
    volume = replace(DATA, tags=(("Name", "db"),), delete_on_termination=False)
    assert of_role(volume).steps == (attach(volume, None, create=True), mount(blank=True, name=BY_TAGS))


def test_a_volume_without_a_size_is_only_found_and_never_formatted() -> None:
    volume = replace(DATA, tags=(("Name", "db"),), volume=VolumeKind())
    assert of_role(volume).steps == (attach(volume, None, create=False), mount(blank=False, name=BY_TAGS))


def test_a_volume_from_a_snapshot_is_never_formatted_whatever_its_size() -> None:
    volume = replace(DATA, snapshot=(("Name", "db"),))
    assert of_role(volume, S1).steps == (attach(volume, S1, create=True), mount(blank=False))
    # It has been made, or there is none to make it from: nothing blank takes its place.
    assert of_role(volume).steps == (attach(volume, None, create=False), mount(blank=False))


def test_a_volume_of_a_machine_that_does_not_know_itself_is_an_error() -> None:
    with pytest.raises(BootagentError, match="volume data needs a volume, and it is not known which instance"):
        plan.attachments(config(volumes=[DATA]), {}, replace(MOMENT, zone=None))


def test_apps_that_read_from_one_export_share_its_mount() -> None:
    web, api = ON_NFS, replace(ON_NFS, name="api", deploy_to="/srv/api")
    other = replace(ON_NFS, name="other", source=replace(NFS, export="/other", mountpoint="/mnt/other"))
    bundled = replace(WEB, name="bundled", source=S3Source("deploys", "web.json", None))
    copied = replace(WEB, name="copied", source=COPY)
    found = plan.attachments(config(web, bundled, other, api, ON_VOLUME, copied, volumes=[DATA]), {}, MOMENT)
    assert found == (
        of_role(DATA),
        Attachment("web api", ("web", "api"), (MountedNfs("build", "/apps", "/srv", ("ro",), 120.0),)),
        Attachment("other", ("other",), (MountedNfs("build", "/other", "/mnt/other", ("ro",), 120.0),)),
        Attachment("copied", ("copied",), (MountedNfs("build", "/apps", "/mnt/build", ("ro",), 120.0),)),
    )


@pytest.mark.parametrize("patience", [30.0, 600.0])
def test_a_shared_mount_gets_the_time_of_the_most_patient_app(patience: float) -> None:
    other = replace(ON_NFS, name="api", deploy_to="/srv/api", source=replace(NFS, within=patience))
    (one,) = plan.attachments(config(ON_NFS, other), {}, MOMENT)
    assert one.apps == ("web", "api")
    assert one.steps == (MountedNfs("build", "/apps", "/srv", ("ro",), max(patience, NFS.within)),)


def test_services_need_the_volumes_of_their_role() -> None:
    known = {"web": Known(Layout(), revision("a"), remembered()), "api": in_place(shown(R1))}
    lanes = plan.make(config(WEB, replace(ON_NFS, name="api"), volumes=[DATA]), known, (), MOMENT).lanes
    needs = {lane.app: one.roster.needs for lane in lanes for one in lane.steps["serve"] if isinstance(one, Services)}
    assert needs == {"web": ("/var/lib/postgresql",), "api": ("/var/lib/postgresql", "/srv")}


def test_a_role_without_storage_attaches_nothing() -> None:
    assert plan.attachments(config(WEB, GIT, HELD), {}, Moment(NOW, BOOT, None)) == ()


def test_volumes_of_other_roles_and_with_other_tags_are_let_go() -> None:
    lasting = replace(DATA, name="orders", tags=(("Name", "db"),))
    step = plan.former(config(volumes=[DATA, lasting]), MOMENT)
    keep = ("role.web.data", "role.web.orders.a09bfdc1")
    assert step == RetiredVolumes("role.", keep, ME, delete=False)


@pytest.mark.parametrize(
    ("app", "volumes", "kept", "seen"),
    [
        (WEB, (S1, R1), (), ()),
        (ON_VOLUME, (S1, R1), (S1,), (Uncovered("/srv/web"),)),
        (replace(ON_VOLUME, source=replace(WHOLE, mountpoint="/srv/web", bind=False)), (S1, R1), (S1,), ()),
        (replace(ON_VOLUME, source=RELEASE), (S1, R1), (R1,), ()),
    ],
)
def test_volumes_of_another_kind_of_source_go_first_and_what_runs_from_them(
    app: App, volumes: tuple[str, ...], kept: tuple[str, ...], seen: tuple[Step, ...]
) -> None:
    found = revision("a") if app is WEB else snapshot(S2)
    known = Known(Layout(R1, None, (R1,)), found, remembered(), volumes=volumes)
    (lane,) = plan.make(config(app), {"web": known}, (), MOMENT).lanes
    stage = lane.steps["stage"]
    assert stage[: len(seen)] == seen, "what would stop the lane later is seen before anything goes"
    first, _, second, third, *_ = stage[len(seen) :]
    assert isinstance(first, Stopped) and first.services == tuple(
        (f"web.{s.name}", s.stop_within) for s in app.services
    )
    assert isinstance(second, RemovedServices) and second.services == first.services
    assert third == retired(*kept)
    assert lane.fallback is None


# --- what the role does not run ----------------------------------------------------------------------------------


def test_what_the_role_does_not_run_is_stopped_and_its_volumes_given_back() -> None:
    old = ToStop("old", "/etc/sv", (("old.job", 60.0),))
    lane, _ = plan.make(config(ON_VOLUME), {"web": in_place(snapshot(S1))}, (old,), MOMENT).lanes
    *_, volumes = lane.steps["stage"]
    assert (lane.app, lane.intent, set(lane.steps)) == ("old", "retire", {"stage"})
    assert volumes == RetiredVolumes("app.old.", (), ME, delete=True)


def test_an_app_that_cannot_be_planned_does_not_keep_the_others_from_their_turn() -> None:
    lost = replace(MOMENT, instance_id=None)
    other = replace(WEB, name="other")
    known = {"web": in_place(snapshot(S1)), "other": Known(Layout(), revision("a"), remembered())}
    lanes = plan.make(config(ON_VOLUME, other), known, (), lost).lanes
    assert [(lane.app, lane.intent) for lane in lanes] == [("web", "nothing"), ("other", "deploy")]
