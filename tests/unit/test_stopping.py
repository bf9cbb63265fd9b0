"""What the plan of a stop is made of, by how far it goes."""

from __future__ import annotations

from collections.abc import Sequence

from bootagent import plan
from bootagent.deadline import Deadline
from bootagent.leaving import Hook, Leaving
from bootagent.plan import Around, Extent, ToStop
from bootagent.state import AppState, ReleaseRecord
from bootagent.steps.as_before import AsBefore
from bootagent.steps.no_orphans import NoOrphans
from bootagent.steps.no_releases import NoReleases
from bootagent.steps.removed_services import RemovedServices
from bootagent.steps.stop_hook import StopHook
from bootagent.steps.stopped import Stopped
from bootagent.steps.swept import Swept
from bootagent.steps.unmounted import Unmounted

R1 = "20260101000000"
RECORD = ReleaseRecord("good", "rev", "rev", "2026-01-01T00:00:00Z")
APP = AppState("/srv/web", releases={R1: RECORD}, proven=R1)
HOOK = Hook("web", "/srv/web/current", ("bin/stop",), 600.0, (("BOOTAGENT_APP", "web"),), "deploy", None)
SERVICES = [ToStop("web", "/etc/sv", (("web.puma", 10.0),))]


def lanes(extent: Extent) -> Sequence[plan.Lane]:
    return plan.stop(
        SERVICES, Around(extent, Leaving("/etc/service", (HOOK,)), ("/etc/sv",), (("web", APP),)), "why"
    ).lanes


def kinds(lane: plan.Lane) -> list[tuple[str, type]]:
    return [(phase, type(step)) for phase in plan.STOPPING for step in lane.steps.get(phase, ())]


def test_services_go_down_before_the_hook_and_mounts_come_last() -> None:
    web, machine = lanes("stop")
    down = [("stop", Stopped), ("stop", NoOrphans), ("stop", StopHook)]
    assert kinds(web) == [*down, ("remove", RemovedServices)]
    assert kinds(machine) == [("unmount", Unmounted), ("sweep", Swept), ("sweep", AsBefore)]
    assert plan.STOPPING.index("stop") < plan.STOPPING.index("remove") < plan.STOPPING.index("unmount")
    assert machine.steps["sweep"][-1] == AsBefore("stop", ("/srv/web/releases",))


def test_a_shutdown_removes_nothing_and_keeps_fstab() -> None:
    web, machine = lanes("shutdown")
    assert "remove" not in web.steps
    assert kinds(machine) == [("unmount", Unmounted)]
    assert machine.steps["unmount"] == (Unmounted(plan.stopping.BUSY_SECONDS, keep_fstab=True),), "and all there is"


def test_a_reset_removes_what_was_released() -> None:
    _, machine = lanes("reset")
    assert kinds(machine)[1:] == [("sweep", Swept), ("sweep", NoReleases), ("sweep", AsBefore)]
    released = machine.steps["sweep"][1]
    assert isinstance(released, NoReleases)
    assert (released.names, released.deploy_to) == ((R1,), "/srv/web")
    assert f"/var/lib/bootagent/prepared/web.{R1}" in released.own
    assert machine.steps["sweep"][-1] == AsBefore("reset", ())


def test_a_reset_goes_through_each_directory_once_whatever_its_app_was_called() -> None:
    former = AppState("/srv/web", releases={"20250101000000": RECORD})
    moved = AppState("/srv/old", releases={R1: RECORD})
    apps = (("web", APP), ("site", former), ("web", moved))
    made = plan.stop([], Around("reset", Leaving("/etc/service"), ("/etc/sv",), apps), "why")
    found = [step for step in made.lanes[-1].steps["sweep"] if isinstance(step, NoReleases)]
    assert [(one.app, one.deploy_to, one.names) for one in found] == [
        ("web", "/srv/old", (R1,)),
        ("web, site", "/srv/web", ("20250101000000", R1)),
    ]
    assert f"/var/lib/bootagent/prepared/web.{R1}" in found[1].own
    assert "/var/lib/bootagent/environment/site" in found[1].own


def test_the_hook_knows_its_app() -> None:
    hook = lanes("stop")[0].steps["stop"][2]
    assert isinstance(hook, StopHook)
    assert (hook.hook, hook.revision, hook.services) == (HOOK, "rev", ("/etc/sv/web.puma/service",))


def test_a_hook_is_run_of_an_app_without_services_too() -> None:
    around = Around("stop", Leaving("/etc/service", (HOOK,)), ("/etc/sv",), (("web", APP),))
    web, machine = plan.stop([], around, "why").lanes
    assert kinds(web) == [("stop", StopHook)] and machine.app == plan.MACHINE
    hook = web.steps["stop"][0]
    assert isinstance(hook, StopHook) and (hook.hook, hook.services) == (HOOK, ())
    assert plan.before_services([], around).later == HOOK.within


def test_a_removal_has_no_more_time_than_the_stop() -> None:
    around = Around("stop", Leaving("/etc/service", ()), ("/etc/sv",), (), Deadline(at=1000.0))
    [removed] = plan.stop(SERVICES, around, "why").lanes[0].steps["remove"]
    assert isinstance(removed, RemovedServices) and removed.until.at == 1000.0


def test_where_services_go_down_nothing_of_them_is_left() -> None:
    assert [type(step) for step in plan.services_down(SERVICES)] == [Stopped, NoOrphans]


def test_each_knows_what_comes_after_it() -> None:
    db = ToStop("db", "/etc/sv", (("db.redis", 20.0), ("db.pg", 30.0)), (("db.redis", ("db.pg",)),))
    web = ToStop("web", "/etc/sv", (("web.puma", 10.0), ("web.jobs", 5.0)), after=("db",))
    mail = ToStop("mail", "/etc/sv", (("mail.smtp", 40.0),))
    around = Around("shutdown", Leaving("/etc/service", (HOOK,)), ("/etc/sv",), (), Deadline(at=1000.0))
    found = {lane.app: lane.steps["stop"] for lane in plan.stop([web, db, mail], around, "why").lanes[:-1]}

    def later(app: str) -> list[tuple[type, float]]:
        return [(type(step), step.until.later) for step in found[app]]  # type: ignore[attr-defined]

    assert later("web") == [(Stopped, 650.0), (NoOrphans, 650.0), (StopHook, 50.0)]
    assert later("db") == [(Stopped, 0.0), (NoOrphans, 0.0)]
    assert later("mail") == [(Stopped, 0.0), (NoOrphans, 0.0)]
    assert plan.before_services([web, db, mail], around).later == 610.0 + 50.0
    assert all(step.until.reserve > 0 for steps in found.values() for step in steps)  # type: ignore[attr-defined]
