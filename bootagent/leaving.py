"""What a stop must know and cannot ask for: noted by each run that starts services, so that a stop needs no metadata.

It tells what runs, not what the configuration says by now.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from bootagent.environment.directories import Tree
from bootagent.errors import MachineError
from bootagent.hooks import Given
from bootagent.machine import Machine

PATH = "/var/lib/bootagent/leaving.json"
VERSION = 1
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
        return _from_json(json.loads(machine.real(PATH).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save(machine: Machine, leaving: Leaving) -> None:
    """Note it, and that no hook has been run for it yet. Raises MachineError."""
    path = machine.real(PATH)
    content = json.dumps({"version": VERSION, **asdict(leaving)}, indent=1).encode() + b"\n"
    try:
        machine.remove_tree(machine.real(MARKERS))
        if not path.exists() or path.read_bytes() != content:
            machine.make_directory(path.parent, mode=0o700)
            machine.write(path, content, mode=0o600)
    except OSError as error:
        raise MachineError(f"cannot write {PATH}: {error.strerror}") from None


def _from_json(found: Any) -> Leaving:
    if found["version"] != VERSION:
        raise ValueError(found["version"])
    return Leaving(found["service_dir"], tuple(_hook(one) for one in found["hooks"]))


def _hook(found: Any) -> Hook:
    env = tuple((name, value) for name, value in found["env"])
    given = _given(found["given"]) if found.get("given") else None
    return Hook(**{**found, "command": tuple(found["command"]), "env": env, "given": given})


def _given(found: Any) -> Given:
    tree = found["tree"] and Tree(**{**found["tree"], "layers": tuple(found["tree"]["layers"])})
    return Given(found["app"], tree, found["secrets"])
