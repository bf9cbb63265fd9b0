"""The directories that hold services' secrets: in memory, root's alone, one for each service, for ``chpst -e``.

    /run/bootagent/secrets/          0700
        APP.NAME/                    0700, a service's; it has its name only when it is whole
            DATABASE_URL             0600
            .origins                 where each value came from, for ``bootagent env``
        APP/                         those of the services that a release brings by itself: the app's secrets

At a boot none of them is there, and the services wait for theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bootagent import mounts
from bootagent.environment import values
from bootagent.environment.concealed import Concealed
from bootagent.errors import BootagentError, MachineError
from bootagent.machine import Machine

PLACE = "/run/bootagent/secrets"
#: chpst passes over what begins with a dot.
ORIGINS = ".origins"
_IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class Secret:
    """A variable's value, and where it came from."""

    value: Concealed
    origin: str


def place(app: str, service: str | None) -> str:
    """Where a service's secrets are; None: those of the services that a release brings by itself."""
    return f"{PLACE}/{app}.{service}" if service else f"{PLACE}/{app}"


def places(machine: Machine, app: str) -> list[str]:
    """The directories that are there of an app."""
    root = machine.real(PLACE)
    if not root.is_dir():
        return []
    return sorted(f"{PLACE}/{entry.name}" for entry in root.iterdir() if entry.name.partition(".")[0] == app)


def read(machine: Machine, where: str) -> dict[str, Concealed] | None:
    """The values in a service's directory; None when it is not there, or others could read it."""
    directory = machine.real(where)
    try:
        if directory.stat().st_mode & 0o077:
            return None
        found = {}
        for entry in sorted(directory.iterdir()):
            if not entry.name.startswith("."):
                value = values.decode(entry.read_bytes())
                if value is None or entry.stat().st_mode & 0o077:
                    return None
                found[entry.name] = Concealed(value)
        return found
    except FileNotFoundError:
        return None


def origins(machine: Machine, where: str) -> dict[str, str]:
    """Where the values in a service's directory came from, by variable; their values are not looked at."""
    directory = machine.real(where)
    try:
        names = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
        said = json.loads((directory / ORIGINS).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return {name: str(said.get(name, "?")) for name in names}


def write(machine: Machine, where: str, wanted: Mapping[str, Secret]) -> None:
    """Put the values into a service's directory, all of them and no other, at once."""
    directory = machine.real(where)
    require_memory(machine)
    machine.make_directory(directory.parent, mode=0o700)
    fresh, old = (directory.with_name(f".{directory.name}.{suffix}") for suffix in ("new", "old"))
    for left in (fresh, old):  # by a run that was killed here
        machine.remove_tree(left)
    fresh.mkdir(0o700)
    for name, secret in wanted.items():
        machine.write(fresh / name, values.encode(secret.value.reveal()), mode=0o600)
    said = {name: secret.origin for name, secret in wanted.items()}
    machine.write(fresh / ORIGINS, json.dumps(said).encode() + b"\n", mode=0o600)
    if directory.exists():
        directory.rename(old)
    fresh.rename(directory)  # whoever starts in between waits for it
    machine.remove_tree(old)


def remove(machine: Machine, where: str) -> None:
    """Remove a service's directory, if it is there."""
    machine.remove_tree(machine.real(where))


def digest(found: Mapping[str, Concealed]) -> str:
    """Equal exactly when the secrets are. For files that root alone can read: a short value could be guessed."""
    pairs = sorted((name, value.reveal()) for name, value in found.items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def require(machine: Machine, where: str) -> dict[str, Concealed]:
    """The values in a service's directory. Raises MachineError when they have not been fetched in this boot."""
    found = read(machine, where)
    if found is None:
        name = PurePosixPath(where).name
        raise MachineError(f"the secrets of {name} have not been fetched: {where} is not there")
    return found


def require_memory(machine: Machine) -> None:
    """Raise BootagentError when the directories would be on a disk. Below another root it is not asked: a test's."""
    if machine.root != Path("/"):
        return
    table = mounts.table()
    # They are copied to a sibling of this place, too: what counts is what is mounted above both.
    for point in map(str, PurePosixPath(PLACE).parents):
        if found := mounts.topmost(table, mounts.place(machine, point)):
            if found.filesystem in _IN_MEMORY:
                return
            raise BootagentError(
                f"secrets are kept in memory only, and {PLACE} would be on {found.filesystem}",
                remedy="mount a tmpfs at /run",
            )
