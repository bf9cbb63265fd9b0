"""The elastic IP this instance was given: one JSON file, ``/var/lib/bootagent/elastic_ip.json``.

It is written before EC2 is asked for the address, so that one which a killed run got can be given back; and it says
all that is needed for that without metadata or a configuration. EC2 is the truth about who has it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from bootagent.errors import MachineError
from bootagent.journal import boot_id
from bootagent.machine import Machine, sync_directory
from bootagent.traffic.registrations import HARDWARE_ID

PATH = "/var/lib/bootagent/elastic_ip.json"
VERSION = 1


@dataclass(frozen=True)
class HeldAddress:
    """The allocation that the instance ``instance_id`` has, or has asked for; ``boot_id``: last seen in that boot."""

    instance_id: str
    region: str | None
    allocation: str
    boot_id: str


def load(machine: Machine, instance_id: str | None) -> HeldAddress | None:
    """What this instance was given; None when there is nothing, or when it was another instance, of an image's origin.

    Without ``instance_id``, as when there is no time to ask for it, only what was seen in this boot counts, or what
    belongs to the instance that the hardware says this is. Raises MachineError.
    """
    path = machine.real(PATH)
    try:
        found = _from_json(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        path.replace(path.with_name(f"{path.name}.damaged"))
        return None
    except OSError as error:
        raise MachineError(f"cannot read {PATH}: {error.strerror}") from None
    if instance_id is None:
        return found if found.boot_id == boot_id() or found.instance_id == _hardware_id(machine) else None
    return found if found.instance_id == instance_id else None


def save(machine: Machine, held: HeldAddress) -> None:
    """Write it down atomically and durably. Raises MachineError."""
    path = machine.real(PATH)
    content = json.dumps({"version": VERSION, **asdict(held)}, indent=1).encode() + b"\n"
    try:
        machine.make_directory(path.parent, mode=0o700)
        machine.write(path, content, mode=0o600)
    except OSError as error:
        raise MachineError(f"cannot write {PATH}: {error.strerror}") from None


def forget(machine: Machine) -> None:
    """Remove it, if it is there, durably. Raises MachineError."""
    path = machine.real(PATH)
    try:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_directory(path.parent)
    except OSError as error:
        raise MachineError(f"cannot remove {PATH}: {error.strerror}") from None


def _from_json(found: Any) -> HeldAddress:
    if found.pop("version") != VERSION:
        raise ValueError("of another version")
    held = HeldAddress(**found)
    if not isinstance(held.instance_id, str) or not isinstance(held.allocation, str):
        raise TypeError("instance_id and allocation are text")
    return held


def _hardware_id(machine: Machine) -> str | None:
    try:
        return machine.real(HARDWARE_ID).read_text(errors="replace").strip()
    except OSError:
        return None
