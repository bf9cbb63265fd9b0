"""The elastic IP this instance was given: one JSON file, ``/var/lib/bootagent/elastic_ip.json``.

It is written before EC2 is asked for the address, so that one which a killed run got can be given back; and it says
all that is needed for that without metadata or a configuration. EC2 is the truth about who has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bootagent import own_file
from bootagent.journal import boot_id
from bootagent.machine import Machine
from bootagent.services.runscript import hardware_id

PATH = "/var/lib/bootagent/elastic_ip.json"


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
    found = own_file.load(machine, PATH, _parsed)
    if found is None:
        return None
    if instance_id is None:
        return found if found.boot_id == boot_id() or found.instance_id == hardware_id(machine) else None
    return found if found.instance_id == instance_id else None


def save(machine: Machine, held: HeldAddress) -> None:
    """Write it down atomically and durably. Raises MachineError."""
    own_file.save(machine, PATH, held)


def forget(machine: Machine) -> None:
    """Remove it, if it is there, durably. Raises MachineError."""
    own_file.forget(machine, PATH)


def _parsed(found: Any) -> HeldAddress:
    held = HeldAddress(**found)
    if not isinstance(held.instance_id, str) or not isinstance(held.allocation, str):
        raise TypeError("instance_id and allocation are text")
    return held
