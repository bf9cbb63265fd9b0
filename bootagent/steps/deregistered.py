"""Balancers send this instance no more requests."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent import traffic
from bootagent.deadline import NO_HURRY, Deadline
from bootagent.machine import Machine
from bootagent.traffic.registrations import Balancer, Registration, Registrations, load


@dataclass(frozen=True)
class Deregistered:
    """No balancer that this instance has told of itself sends it requests, but those in ``keep``.

    ``instance_id`` None: whichever this is, as far as that is known without asking. ``drain_most`` limits in seconds
    how long the balancers may take to let go; None: as long as was configured when they were told, 0: they are not
    waited for. ``hurried``: the machine goes down, and one that does not answer at once is given up. Where ``until``
    leaves less time, they get less.
    """

    keep: tuple[Balancer, ...]
    instance_id: str | None
    drain_most: float | None = None
    hurried: bool = False
    until: Deadline = NO_HURRY

    def __str__(self) -> str:
        kept = f" but {', '.join(str(one) for one in self.keep)}" if self.keep else ""
        return f"deregister from every balancer{kept}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether none other was told. AWS is not asked."""
        return not self._doomed(load(machine, self.instance_id))

    def apply(self, machine: Machine) -> None:
        """Deregister, and wait until requests under way are done. Raises AwsError."""
        known = load(machine, self.instance_id)
        if known:
            traffic.dismiss(
                machine, known, self._doomed(known), self.drain_most, hurried=self.hurried, until=self.until
            )

    def _doomed(self, known: Registrations | None) -> list[Registration]:
        return [one for one in (known.all if known else ()) if not any(one.is_of(kept) for kept in self.keep)]
