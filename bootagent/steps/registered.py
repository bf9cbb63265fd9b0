"""Balancers send this instance requests."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent import traffic
from bootagent.machine import Machine
from bootagent.traffic.registrations import Balancer


@dataclass(frozen=True)
class Registered:
    """Every balancer was told of this instance and finds it healthy, by its own checks; times in seconds.

    ``drain_within`` is how long each may take to let it go, one day.
    """

    balancers: tuple[Balancer, ...]
    instance_id: str
    region: str | None
    within: float
    drain_within: float

    def __str__(self) -> str:
        return f"register with {', '.join(str(one) for one in self.balancers)}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether they say so now: one call for each. Nothing is asked of one that was not told in this boot."""
        return traffic.is_admitted(machine, self.balancers, self.instance_id, self.region, self.drain_within)

    def apply(self, machine: Machine) -> None:
        """Register, and wait for their verdict."""
        traffic.admit(machine, self.balancers, self.instance_id, self.region, self.within, self.drain_within)
