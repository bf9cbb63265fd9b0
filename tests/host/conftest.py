"""Fixtures of the tests that run on a whole simulated machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.supervisor import Supervisor
from tests.host.stage import App, Stage


@pytest.fixture
def stage(cloud: Cloud, machine_root: Path, runsvdir: Supervisor) -> Stage:
    """A machine with a running runsvdir and an empty bucket."""
    return Stage(cloud, machine_root)


@pytest.fixture
def web(stage: Stage) -> App:
    """An app ``web`` configured for the role ``web``, with nothing published yet."""
    app = stage.app()
    stage.configure(app.config())
    return app
