"""Simulated target groups and classic load balancers, which really probe the ports of this machine."""

from __future__ import annotations

import http.client
import math
import secrets
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

from bootagent.sandbox.balancer_model import Balancer, Faults, HealthCheck, Member
from bootagent.sandbox.ebs_model import ACCOUNT, Refusal

#: How often it is looked which members are to be probed.
TICK_SECONDS = 0.02
#: How long a registration takes before the first probe. AWS needs some seconds.
REGISTERING_SECONDS = 0.1


class Balancers:
    """Target groups and classic load balancers of one region, and whoever probes for them; a context manager.

    ``is_running`` says whether an instance is there to be registered. ``history`` holds what became of members:
    (monotonic time, name of the balancer, instance, state), state being as :class:`Member` has it, or "gone".
    """

    def __init__(self, region: str, is_running: Callable[[str], bool]) -> None:
        self.region = region
        self.faults = Faults()
        self.lock = threading.RLock()
        self.balancers: dict[str, Balancer] = {}
        self.history: list[tuple[float, str, str, str]] = []
        self._is_running = is_running
        self._ended = threading.Event()
        self._prober = threading.Thread(target=self._probe_all, name="balancers", daemon=True)

    def __enter__(self) -> Balancers:
        self._prober.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._prober.join()

    # --- what an operator sets up ----------------------------------------------------------------------------

    def add_group(
        self,
        name: str,
        port: int,
        *,
        check: HealthCheck | None = None,
        delay: float = 0.3,
        listening: bool = True,
        target_type: str = "instance",
        arn: str | None = None,
    ) -> str:
        """A target group; its ARN. ``delay`` is its deregistration delay, for which AWS has 300 s unless told."""
        arn = arn or f"arn:aws:elasticloadbalancing:{self.region}:{ACCOUNT}:targetgroup/{name}/{secrets.token_hex(8)}"
        group = Balancer(name, arn, port, check or HealthCheck(), delay, listening=listening, target_type=target_type)
        with self.lock:
            self.balancers[arn] = group
        return arn

    def add_load_balancer(self, name: str, port: int, *, check: HealthCheck | None = None, delay: float = 0.3) -> None:
        """A classic load balancer whose listeners send requests to ``port`` of its instances."""
        with self.lock:
            self.balancers[name] = Balancer(name, "", port, check or HealthCheck(), delay, classic=True)

    def remove(self, name: str) -> None:
        """Delete a group or load balancer."""
        with self.lock:
            self.balancers = {key: one for key, one in self.balancers.items() if one.name != name}

    def route(self, name: str, instance_id: str, port: int | None = None) -> bool:
        """Whether requests to this balancer may come to an instance (and port) now."""
        with self.lock:
            return any(one.routes_to(instance_id, port) for one in self.balancers.values() if one.name == name)

    def state(self, name: str, instance_id: str) -> str:
        """What the state of an instance's one registration is; "gone" when there is none."""
        with self.lock:
            one = next(one for one in self.balancers.values() if one.name == name)
            members = [one.member(*key) for key in list(one.members) if key[0] == instance_id]
            return next((member.state for member in members if member), "gone")

    # --- what the API asks for -------------------------------------------------------------------------------

    def group(self, arn: str) -> Balancer:
        """A target group. Raises Refusal."""
        found = self.balancers.get(arn)
        if found is None or found.classic:
            raise Refusal("TargetGroupNotFound", "One or more target groups not found")
        return found

    def load_balancer(self, name: str) -> Balancer:
        """A classic load balancer. Raises Refusal."""
        found = self.balancers.get(name)
        if found is None or not found.classic:
            raise Refusal("LoadBalancerNotFound", f"There is no ACTIVE Load Balancer named '{name}'")
        return found

    def register(self, balancer: Balancer, instance_id: str, port: int) -> None:
        """Take an instance in. One that is there stays as it is; one on its way out begins anew. Raises Refusal."""
        if not self._is_running(instance_id):
            code = "InvalidInstance" if balancer.classic else "InvalidTarget"
            raise Refusal(code, f"The following targets are not in a running state: '{instance_id}'")
        known = balancer.member(instance_id, port)
        if known is None or known.state == "draining":
            member = Member(instance_id, port, registering=time.monotonic() + REGISTERING_SECONDS)
            balancer.members[instance_id, port] = member
            balancer.known.add(instance_id)
            self._tell(balancer, member, "initial")

    def deregister(self, balancer: Balancer, instance_id: str, port: int) -> None:
        """Let an instance go: it gets no new requests, and those under way have the delay to end."""
        member = balancer.member(instance_id, port)
        if member and member.state != "draining":
            delay = math.inf if self.faults.never_drained else balancer.delay
            member.state, member.reason = "draining", "Target.DeregistrationInProgress"
            member.description = "Target deregistration is in progress"
            member.drained = time.monotonic() + delay
            self._tell(balancer, member, "draining")

    # --- probing ---------------------------------------------------------------------------------------------

    def _probe_all(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            now = time.monotonic()
            with self.lock:
                pairs = [(one, member) for one in self.balancers.values() for member in one.members.values()]
                due = [
                    (one, member)
                    for one, member in pairs
                    if member.state != "draining"
                    and now >= member.registering
                    and now - member.probed >= one.check.interval
                ]
            for one, member in due:
                failure = _probe(one.check, one.check.port or member.port)
                with self.lock:
                    self._count(one, member, failure)

    def _count(self, one: Balancer, member: Member, failure: tuple[str, str] | None) -> None:
        """A new member needs one success; later, as many in a row as the thresholds say, either way."""
        if self.faults.never_healthy and not failure:
            failure = "Target.Timeout", "Request timed out"
        member.probed = time.monotonic()
        if member.state == "draining" or one.members.get((member.instance_id, member.port)) is not member:
            return
        if failure:
            member.successes, member.failures = 0, member.failures + 1
            if member.failures >= one.check.unhealthy:
                self._become(one, member, "unhealthy", *failure)
            elif member.state == "initial":
                member.reason, member.description = "Elb.InitialHealthChecking", "Initial health checks in progress"
            return
        member.successes, member.failures = member.successes + 1, 0
        enough = 1 if member.state == "initial" and not one.classic else one.check.healthy
        if member.successes >= enough:
            self._become(one, member, "healthy", "", "")

    def _become(self, one: Balancer, member: Member, state: str, reason: str, description: str) -> None:
        if member.state != state:
            self._tell(one, member, state)
        member.state, member.reason, member.description = state, reason, description

    def _tell(self, one: Balancer, member: Member, state: str) -> None:
        self.history.append((time.monotonic(), one.name, member.instance_id, state))


def _probe(check: HealthCheck, port: int) -> tuple[str, str] | None:
    """Probe a port of this machine; the reason code and description when that fails."""
    try:
        if check.path is None:
            socket.create_connection(("127.0.0.1", port), timeout=check.timeout).close()
            return None
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=check.timeout)
        try:
            connection.request("GET", check.path, headers={"User-Agent": "ELB-HealthChecker/2.0"})
            status = connection.getresponse().status
        finally:
            connection.close()
    except TimeoutError:
        return "Target.Timeout", "Request timed out"
    except (OSError, http.client.HTTPException):
        return "Target.FailedHealthChecks", "Health checks failed"
    return (
        None if status == 200 else ("Target.ResponseCodeMismatch", f"Health checks failed with these codes: [{status}]")
    )
