"""What this instance has told balancers of itself: one JSON file, ``/var/lib/bootagent/traffic.json``.

It is written before a balancer is told, so that whatever a killed run began can be taken back; and it says all that a
machine needs to take itself out without metadata or a configuration. The balancers are the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from bootagent import own_file
from bootagent.journal import boot_id
from bootagent.machine import Machine
from bootagent.services.runscript import hardware_id

PATH = "/var/lib/bootagent/traffic.json"

Kind = Literal["target group", "load balancer"]


@dataclass(frozen=True)
class Balancer:
    """A balancer that is to send this instance requests, as a configuration names it. Load balancers are classic ones.

    ``name`` is a target group's ARN or name, or a load balancer's name. ``port`` None: the balancer's own.
    """

    kind: Kind
    name: str
    port: int | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name.partition(':targetgroup/')[2].partition('/')[0] or self.name}" + (
            f" (port {self.port})" if self.port else ""
        )


@dataclass(frozen=True)
class Registration:
    """What a balancer was told: ``id`` is a target group's ARN, or a classic load balancer's name.

    ``port`` None: a classic one, which has listeners instead; ``own_port``: it is the target group's own.
    ``drain_within`` is in seconds; ``boot_id`` the boot in which a run has last stood by it.
    """

    kind: Kind
    id: str
    port: int | None
    own_port: bool
    drain_within: float
    boot_id: str

    def __str__(self) -> str:
        return str(Balancer(self.kind, self.id, None if self.own_port else self.port))

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What makes it one and the same for the balancer."""
        return self.kind, self.id, self.port

    def is_of(self, balancer: Balancer) -> bool:
        """Whether it is what was configured so."""
        if self.kind != balancer.kind:
            return False
        named = self.id == balancer.name or f":targetgroup/{balancer.name}/" in self.id
        return named and (self.own_port if balancer.port is None else self.port == balancer.port)


@dataclass(frozen=True)
class Registrations:
    """All that the instance ``instance_id`` has told balancers in ``region``."""

    instance_id: str
    region: str | None
    all: tuple[Registration, ...] = ()

    def of(self, balancer: Balancer) -> Registration | None:
        """The one for a balancer."""
        return next((one for one in self.all if one.is_of(balancer)), None)


def load(machine: Machine, instance_id: str | None) -> Registrations | None:
    """What this instance has told; None when it has told nothing.

    An image of a running instance brings along what that one told, which does not count. Without ``instance_id``, as
    when there is no time to ask for it, that counts only what was told or confirmed in this boot, or by the instance
    that the hardware says this is.
    """
    found = own_file.load(machine, PATH, _parsed)
    if found is None:
        return None
    if instance_id is None and hardware_id(machine) != found.instance_id:
        found = replace(found, all=tuple(one for one in found.all if one.boot_id == boot_id()))
    return found if found.all and instance_id in (None, found.instance_id) else None


def add(machine: Machine, instance_id: str, region: str | None, registration: Registration) -> None:
    """Write down what a balancer is about to be told. Raises MachineError."""
    known = load(machine, instance_id)
    others = tuple(one for one in (known.all if known else ()) if not _takes_the_place_of(registration, one))
    _save(machine, Registrations(instance_id, region, (*others, registration)))


def remove(machine: Machine, instance_id: str, registration: Registration) -> None:
    """Write down that a balancer has let this instance go. Raises MachineError."""
    if known := load(machine, instance_id):
        _save(machine, replace(known, all=tuple(one for one in known.all if one.key != registration.key)))


def _takes_the_place_of(new: Registration, old: Registration) -> bool:
    """Whether it is the same one, or of a group made anew: a name is one group's at a time, an ARN for ever."""
    anew = new.kind == "target group" and new.id != old.id and new.id.rpartition("/")[0] == old.id.rpartition("/")[0]
    return new.key == old.key or anew


def _save(machine: Machine, found: Registrations) -> None:
    if found.all:
        own_file.save(machine, PATH, found)
    else:
        own_file.forget(machine, PATH)


def _parsed(found: Any) -> Registrations:
    if not isinstance(found["instance_id"], str):
        raise TypeError("instance_id is text")
    return Registrations(found["instance_id"], found["region"], tuple(Registration(**one) for one in found["all"]))
