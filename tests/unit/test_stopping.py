"""What the plan of a stop is made of, by how far it goes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bootagent import plan
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
        SERVICES, Around(extent, Leaving("/etc/service", (HOOK,)), ("/etc/sv",), {"web": APP}), "why"
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
    assert machine.steps["unmount"] == (Unmounted(plan.stopping.BUSY_SECONDS, keep_fstab=True),)


def test_a_reset_removes_what_was_released() -> None:
    _, machine = lanes("reset")
    assert kinds(machine)[1:] == [("sweep", Swept), ("sweep", NoReleases), ("sweep", AsBefore)]
    released = machine.steps["sweep"][1]
    assert isinstance(released, NoReleases)
    assert (released.names, released.deploy_to) == ((R1,), "/srv/web")
    assert f"/var/lib/bootagent/prepared/web.{R1}" in released.own
    assert machine.steps["sweep"][-1] == AsBefore("reset", ())


@pytest.mark.parametrize(("extent", "within"), [("stop", 600.0), ("shutdown", 120.0)])
def test_the_hook_knows_its_app_and_gets_no_longer_than_there_is(extent: Extent, within: float) -> None:
    hook = lanes(extent)[0].steps["stop"][2]
    assert isinstance(hook, StopHook)
    assert (hook.current, hook.user, hook.within) == ("/srv/web/current", "deploy", within)
    assert dict(hook.env) == {"BOOTAGENT_APP": "web", "BOOTAGENT_REVISION": "rev"}
    assert hook.services == ("/etc/sv/web.puma/service",)
