"""Whether this instance is to serve at all yet, and whether what serves stays healthy.

An autoscaling group may keep instances in a warm pool: prepared, and not serving ("Use lifecycle hooks with a warm
pool", Amazon EC2 Auto Scaling User Guide).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from bootagent.errors import MetadataError
from bootagent.imds import Metadata, is_disabled
from bootagent.machine import Machine
from bootagent.services import runit, servicedir
from bootagent.steps.base import Step

#: The daemon keeps this file while a launch may wait for what the runs find; it says since when, in seconds of uptime.
LAUNCHING = "/run/bootagent/launching"
TARGET_STATE = "meta-data/autoscaling/target-lifecycle-state"
METADATA_SECONDS = 10.0
POLL_SECONDS = 1.0

#: The services of each app that serve, as the steps that saw to them.
Serving = Mapping[str, Sequence[Step]]


def target_state() -> str:
    """The state that the group wants this instance in; empty when no group has it. Raises MetadataError."""
    if is_disabled():
        return ""
    return (Metadata(METADATA_SECONDS).get(TARGET_STATE) or "").strip()


def is_pooled() -> bool:
    """Whether the group wants this instance in its warm pool. Raises MetadataError."""
    return target_state().startswith("Warmed:")


def is_kept_back(*, hooked: bool) -> bool:
    """Whether this instance is to be prepared and not to serve, because it is in a warm pool.

    With ``hooked``, lifecycle hooks are answered for what is found, so it raises MetadataError; otherwise an instance
    whose metadata has just stopped answering serves.
    """
    try:
        return is_pooled()
    except MetadataError:
        if hooked:
            raise
        return False


def is_launching(machine: Machine) -> bool:
    """Whether a launch may wait for this run; only the daemon knows, and looks into it meanwhile."""
    return machine.real(LAUNCHING).exists()


def launching_since(machine: Machine) -> float | None:
    """The uptime when the launch began to wait, in seconds; None when none does."""
    try:
        return float(machine.real(LAUNCHING).read_text())
    except (OSError, ValueError):
        return None


def lasting_problem(machine: Machine, serving: Serving, definitions: str, seconds: float) -> str | None:
    """Watch the services for so many seconds: None when each keeps its process and passes its check, else why not.

    It ends early when no launch waits any more.
    """
    ends, before = time.monotonic() + seconds, _pids(machine, serving, definitions)
    while is_launching(machine):
        for app, steps in serving.items():
            if not all(step.is_satisfied(machine) for step in steps):
                return f"{app}: its services did not stay healthy for {seconds:g} s"
        now = _pids(machine, serving, definitions)
        if changed := sorted(name for name in {*before, *now} if before.get(name) != now.get(name)):
            return f"{', '.join(changed)} did not keep one process for {seconds:g} s"
        if (left := ends - time.monotonic()) <= 0:
            break
        time.sleep(min(left, POLL_SECONDS))
    return None


def down(machine: Machine, definitions: str, apps: Sequence[str], seconds: float) -> list[str]:
    """The services of some apps that are not up, or not for so many seconds."""
    found = {
        name: runit.status(machine.real(definitions) / name / "service")
        for app in apps
        for name in servicedir.installed(machine, definitions, app)
    }
    return [name for name, one in found.items() if one is None or one.state != "run" or one.uptime() < seconds]


def _pids(machine: Machine, serving: Serving, definitions: str) -> dict[str, int]:
    found = {
        name: runit.status(machine.real(definitions) / name / "service")
        for app in serving
        for name in servicedir.installed(machine, definitions, app)
    }
    return {name: one.pid if one and one.state == "run" else 0 for name, one in found.items()}
