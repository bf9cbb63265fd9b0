"""The elastic IP of this instance: had, and given back."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent.deadline import NO_HURRY, Deadline
from bootagent.machine import Machine, Note
from bootagent.traffic import elastic_ip, held_address
from bootagent.traffic.elastic_ip import Claim


@dataclass(frozen=True)
class ElasticIpHeld:
    """This instance has what is claimed. ``within`` is in seconds."""

    claim: Claim
    within: float

    def __str__(self) -> str:
        return f"have {self.claim}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether EC2 says so. Without an address that is remembered, it is not asked."""
        return elastic_ip.is_held(machine, self.claim, self.within)

    def apply(self, machine: Machine) -> None:
        """Associate it, while nobody else has it."""
        ip = elastic_ip.hold(machine, self.claim, self.within)
        machine.tell(Note("elastic IP", {"address": ip}))


@dataclass(frozen=True)
class ElasticIpGivenBack:
    """This instance has none that it was given. It may have no way to AWS for minutes then: to be done last.

    ``instance_id`` None: the one that remembers it, if that is this machine. ``hurried``: no call is tried for long.
    ``within`` is in seconds; where ``until`` leaves less, it gets less.
    """

    instance_id: str | None
    within: float
    hurried: bool = False
    until: Deadline = NO_HURRY

    def __str__(self) -> str:
        return "give the elastic IP back"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether none is remembered. EC2 is not asked."""
        return held_address.load(machine, self.instance_id) is None

    def apply(self, machine: Machine) -> None:
        """Disassociate it, unless somebody else has it by now."""
        elastic_ip.give_back(machine, self.instance_id, self.until.grant(self.within), hurried=self.hurried)
