"""Waiting for what comes about by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: More than anything takes here, on a machine that is busy with other tests.
PATIENCE = 60.0


def until(condition: Callable[[], T | None], what: str = "it", within: float = PATIENCE, pause: float = 0.02) -> T:
    """The first true value of ``condition``, looked for every ``pause`` seconds; the test fails after ``within``."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(pause)
    return found
