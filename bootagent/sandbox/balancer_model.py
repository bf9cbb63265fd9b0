"""What the simulated load balancers keep of groups, classic balancers and those registered with them.

Rules: "Target groups for your Application Load Balancers" and "Configure health checks" in the user guides of Elastic
Load Balancing, and its API references.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HealthCheck:
    """How a member is probed. AWS takes 5 s for the shortest interval; here it may be shorter. Times in seconds.

    ``port`` None: the port that requests go to. ``path`` None: it is enough that the port takes a TCP connection.
    """

    path: str | None = "/"
    port: int | None = None
    interval: float = 0.1
    timeout: float = 1.0
    healthy: int = 2
    unhealthy: int = 2


@dataclass
class Faults:
    """What is wrong at the moment."""

    #: Probes that should find a member healthy do not.
    never_healthy: bool = False
    #: Whoever is let go drains for ever.
    never_drained: bool = False


@dataclass
class Member:
    """An instance and port that a balancer was told of.

    ``state`` is initial, healthy, unhealthy or draining; ``reason`` the code and ``description`` the words for it.
    ``registering``: until when registration itself takes, on the monotonic clock, as is ``drained``.
    """

    instance_id: str
    port: int
    registering: float
    state: str = "initial"
    reason: str = "Elb.RegistrationInProgress"
    description: str = "Target registration is in progress"
    successes: int = 0
    failures: int = 0
    probed: float = 0.0
    drained: float = 0.0


@dataclass
class Balancer:
    """A target group, or a classic load balancer, which has ``classic`` set; ``port`` is where requests go.

    ``delay`` is the deregistration delay, or the time of connection draining, in seconds; ``listening``: some listener
    forwards to the group. ``target_type`` is a group's.
    """

    name: str
    arn: str
    port: int
    check: HealthCheck
    delay: float
    classic: bool = False
    listening: bool = True
    target_type: str = "instance"
    members: dict[tuple[str, int], Member] = field(default_factory=dict)
    #: Every instance that has ever been a member.
    known: set[str] = field(default_factory=set)

    def routes_to(self, instance_id: str, port: int | None = None) -> bool:
        """Whether requests may come to an instance now.

        A group whose members are all unhealthy sends requests to all of them ("Health checks for target groups").
        """
        if not self.listening:
            return False
        alive = [one for one in self.members.values() if one.state != "draining"]
        healthy = [one for one in alive if one.state == "healthy"]
        open_to = healthy or ([] if self.classic else [one for one in alive if one.state == "unhealthy"])
        return any(one.instance_id == instance_id and port in (None, one.port) for one in open_to)

    def member(self, instance_id: str, port: int) -> Member | None:
        """A member as it is now: one whose draining is over is none any more."""
        found = self.members.get((instance_id, port))
        if found and found.state == "draining" and time.monotonic() >= found.drained:
            del self.members[instance_id, port]
            return None
        return found
