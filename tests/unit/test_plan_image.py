"""The plan of what runs in the image itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bootagent import sources
from bootagent.config.model import ImageSource
from bootagent.errors import BootagentError
from bootagent.machine import Machine
from bootagent.sources import InPlace, Revision
from bootagent.state import AppState
from bootagent.steps.services import Services
from tests.unit.test_plan import ROSTER
from tests.unit.test_plan_storage import MOMENT, PLAIN, in_place, made, served

BAKED = replace(PLAIN, source=ImageSource(None, copy=False))
HERE = Revision("image:in-place", "image", "the image itself", InPlace())
RUN = Services(replace(ROSTER, current="/srv/web"), "image:in-place")


def test_the_first_run_starts_the_services_and_stages_nothing() -> None:
    lane = made(BAKED, in_place(HERE, present=False))
    assert (lane.intent, lane.release, lane.revision, lane.fallback) == ("deploy", "image", "image:in-place", None)
    assert {phase: steps for phase, steps in lane.steps.items() if steps} == {"serve": (RUN,)}


def test_what_has_served_is_kept() -> None:
    lane = made(BAKED, in_place(HERE, served("image", "image:in-place"), present=False))
    assert (lane.intent, lane.degraded, lane.reason) == ("keep", False, "image is what was deployed last")
    assert {phase: steps for phase, steps in lane.steps.items() if steps} == {"serve": (RUN,)}


@pytest.mark.parametrize("before", [served("r1", "nfs:build:/apps:r1:1"), served("snap-1"), AppState("/srv/web")])
def test_what_another_source_showed_is_not_what_the_image_has(before: AppState) -> None:
    assert made(BAKED, in_place(HERE, before)).intent == "deploy"


def test_what_failed_is_tried_again_as_it_is() -> None:
    lane = made(BAKED, in_place(HERE, served("image", "image:in-place", "bad")), MOMENT)
    assert (lane.intent, lane.fallback) == ("deploy", None)
    assert "failed before" in lane.reason


def test_a_directory_that_is_not_there_is_not_waited_for(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    with pytest.raises(BootagentError, match="the image has no directory /srv/web") as caught:
        sources.resolve(machine, BAKED, None)
    (tmp_path / "srv").mkdir()
    (tmp_path / "srv/web").write_text("no directory")
    with pytest.raises(BootagentError, match="the image has no directory /srv/web"):
        sources.resolve(machine, BAKED, None)
    lane = made(BAKED, in_place(caught.value, served("image", "image:in-place"), present=False))
    assert (lane.intent, lane.unread) == ("nothing", False)
    (tmp_path / "srv/web").unlink()
    (tmp_path / "srv/web").mkdir()
    assert sources.resolve(machine, BAKED, None) == HERE
