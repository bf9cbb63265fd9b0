"""What this instance knows of a volume it made or took: one JSON file each, ``/var/lib/bootagent/volumes/NAME.json``.

A record is written before the call it is about, so that a killed run is found out by the next. EC2 and the disk are
the truth; a record that is lost costs a look at EC2, never a volume.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bootagent import own_file
from bootagent.errors import BootagentError
from bootagent.machine import Machine

DIRECTORY = "/var/lib/bootagent/volumes"
#: How many of those that are no more are remembered.
MOST_BURIED = 20

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@:-]{0,199}")


@dataclass(frozen=True)
class Record:
    """One volume, as the instance ``instance_id`` knows it; ``name`` says what for, as in "app.web.20261121101500".

    ``volume_id`` is None until EC2 has answered, ``snapshot`` what it was made from (None: blank, or found).
    ``attempt`` counts the tries to make it. ``blank``: never formatted yet, as far as its tags say. ``attached``: EC2
    has attached it here for good, under the name ``device``, which says nothing about the device the kernel shows.
    ``size_bytes`` is the size its filesystem was last grown to; None: not looked at. ``mountpoints`` are the logical
    paths where it is mounted, the bind last. ``buried``: it is no more, and only the attempts are to be remembered.
    ``pristine``: it was made here from a snapshot, and no release of that yet.
    """

    name: str
    instance_id: str
    region: str | None = None
    volume_id: str | None = None
    snapshot: str | None = None
    attempt: int = 1
    blank: bool = False
    attached: bool = False
    device: str | None = None
    size_bytes: int | None = None
    mountpoints: tuple[str, ...] = ()
    buried: bool = False
    pristine: bool = False


def load(machine: Machine, name: str, instance_id: str | None = None) -> Record | None:
    """The record of that name; None when there is none that can be read.

    With ``instance_id``, one of another instance does not count: an image of a running instance brings it along.
    Raises BootagentError for a name that is none.
    """
    found = own_file.load(machine, _logical(name), _from_json)
    return found if found and instance_id in (None, found.instance_id) and found.name == name else None


def is_pristine(machine: Machine, name: str) -> bool:
    """Whether the record of that name says that its volume is as the snapshot has it."""
    found = load(machine, name)
    return found is not None and found.pristine


def save(machine: Machine, record: Record) -> None:
    """Write a record atomically and durably; only root may read it. Raises MachineError."""
    machine.make_directory(machine.real(DIRECTORY).parent, mode=0o700)
    own_file.save(machine, _logical(record.name), record)


def forget(machine: Machine, name: str) -> None:
    """Remove a record, if it is there, durably. Raises MachineError."""
    own_file.forget(machine, _logical(name))


def all(machine: Machine, instance_id: str | None = None) -> tuple[Record, ...]:
    """Every record of a volume, by name; with ``instance_id`` those of this instance only."""
    return tuple(one for one in _loaded(machine, instance_id) if not one.buried)


def bury(machine: Machine, record: Record) -> None:
    """Remember of a volume that was deleted how often one was made; of the newest ones that is enough.

    The next one of that name must not be asked for as this one was. Raises MachineError.
    """
    names = [one.name for one in _loaded(machine, None) if one.buried and one.name != record.name]
    names.sort(key=lambda name: machine.real(_logical(name)).stat().st_mtime_ns)
    for name in names[: -MOST_BURIED + 1]:
        forget(machine, name)
    save(machine, Record(record.name, record.instance_id, record.region, attempt=record.attempt + 1, buried=True))


def _loaded(machine: Machine, instance_id: str | None) -> Iterator[Record]:
    return (found for name in _names(machine) if (found := load(machine, name, instance_id)))


def _names(machine: Machine) -> Iterator[str]:
    directory = machine.real(DIRECTORY)
    if directory.is_dir():
        # A file that is being written begins with a dot, and so is no name.
        yield from sorted(path.stem for path in directory.glob("*.json") if _NAME.fullmatch(path.stem))


def _logical(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BootagentError(f"{name!r} cannot be the name of a volume's record")
    return f"{DIRECTORY}/{name}.json"


def _from_json(found: Any) -> Record:
    record = Record(**{**found, "mountpoints": tuple(found["mountpoints"])})
    if not isinstance(record.name, str) or not isinstance(record.instance_id, str):
        raise TypeError("name and instance_id are text")
    return record
