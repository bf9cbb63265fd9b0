"""What a stop must know and cannot ask for: noted by each run that starts services, so that a stop needs no metadata.

It tells what runs, not what the configuration says by now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bootagent import own_file
from bootagent.environment.directories import Tree
from bootagent.errors import MachineError
from bootagent.hooks import Given
from bootagent.machine import Machine

PATH = "/var/lib/bootagent/leaving.json"
#: Which hooks have been run since the services went down; gone with the boot.
MARKERS = "/run/bootagent/hooks"


@dataclass(frozen=True)
class Hook:
    """The stop hook of an app that runs in ``current``; ``given`` is its environment. ``within`` is in seconds."""

    app: str
    current: str
    command: tuple[str, ...]
    within: float
    env: tuple[tuple[str, str], ...]
    user: str
    group: str | None
    given: Given | None = None


@dataclass(frozen=True)
class Leaving:
    """The directory that runsvdir watches, and the hooks."""

    service_dir: str
    hooks: tuple[Hook, ...] = ()


def load(machine: Machine) -> Leaving | None:
    """What was noted last; None when nothing was, or it cannot be read."""
    try:
        return own_file.load(machine, PATH, _from_json)
    except MachineError:
        return None


def save(machine: Machine, leaving: Leaving) -> None:
    """Note it, and that no hook has been run for it yet. Raises MachineError."""
    _forget_markers(machine)
    own_file.save(machine, PATH, leaving)


def forget(machine: Machine) -> None:
    """Nothing is to be run at a stop, and nothing is known of what was. Raises MachineError."""
    own_file.forget(machine, PATH)  # first: a hook without its marker is run again
    _forget_markers(machine)


def _from_json(found: Any) -> Leaving:
    return Leaving(found["service_dir"], tuple(_hook(one) for one in found["hooks"]))


def _hook(found: Any) -> Hook:
    env = tuple((name, value) for name, value in found["env"])
    given = _given(found["given"]) if found.get("given") else None
    return Hook(**{**found, "command": tuple(found["command"]), "env": env, "given": given})


def _given(found: Any) -> Given:
    tree = found["tree"] and Tree(**{**found["tree"], "layers": tuple(found["tree"]["layers"])})
    return Given(found["app"], tree, found["secrets"])


def _forget_markers(machine: Machine) -> None:
    try:
        machine.remove_tree(machine.real(MARKERS))
    except OSError as error:
        raise MachineError(f"cannot remove {MARKERS}: {error.strerror}") from None
