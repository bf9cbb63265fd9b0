"""What is kept for an app goes with it, and what is another's stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootagent.machine import Machine
from bootagent.steps.forgotten import Forgotten

OWN = "/var/lib/bootagent/environment/web"


@pytest.mark.spawns
def test_secrets_and_the_environment_of_an_app_go(tmp_path: Path) -> None:
    machine, step = Machine(tmp_path), Forgotten("web", (OWN, "/run/bootagent/scripts/web"))
    assert step.is_satisfied(machine)
    own = [OWN, "/run/bootagent/secrets/web", "/run/bootagent/secrets/web.puma"]
    others = ["/var/lib/bootagent/environment/website", "/run/bootagent/secrets/website.puma"]
    for place in (*own, *others):
        (machine.real(place) / "deep").mkdir(parents=True)
    assert not step.is_satisfied(machine)
    step.apply(machine)
    assert step.is_satisfied(machine)
    assert not any(machine.real(place).exists() for place in own)
    assert all(machine.real(place).exists() for place in others)
