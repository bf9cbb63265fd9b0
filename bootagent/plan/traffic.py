"""By what traffic is to reach this instance: steps for the node as a whole, once all of its apps serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bootagent.config.model import Config
from bootagent.deadline import Deadline
from bootagent.plan.lane import Lane, Moment, Phase, Plan
from bootagent.steps.base import Step
from bootagent.steps.deregistered import Deregistered
from bootagent.steps.elastic_ip import ElasticIpGivenBack, ElasticIpHeld
from bootagent.steps.registered import Registered
from bootagent.traffic.elastic_ip import Claim
from bootagent.traffic.registrations import Balancer

#: The name of the lane, beside those of apps.
TRAFFIC = "traffic"
#: How long it may take to give an elastic IP back, in seconds.
GIVE_BACK_SECONDS = 30.0
#: What is then kept of a stop's time for what is mounted.
UNMOUNT_SECONDS = 10.0


@dataclass(frozen=True)
class Told:
    """What an instance remembers of the way traffic reaches it: the balancers that know of it, and its elastic IP."""

    balancers: tuple[str, ...] = ()
    address: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All of it, for people."""
        return (*self.balancers, *((f"elastic IP {self.address}",) if self.address else ()))


def with_traffic(made: Plan, config: Config, told: Told, moment: Moment) -> Plan:
    """The same plan, with what is to be done for the node as a whole."""
    return replace(made, announce=_announce(config, told, moment), withdraw=_withdraw(config, told, moment))


def former_traffic(config: Config, moment: Moment) -> Step:
    """No balancer but those of the role sends requests: to be so before anything of the former role is stopped."""
    return Deregistered(_balancers(config, moment), moment.instance_id)


def off(told: Told, reason: str, until: Deadline) -> Lane:
    """The lane of a stop that has every balancer let go before a service is stopped. It asks no metadata.

    An elastic IP goes last: requests that came by it end with it, and the way to AWS may, too. ``until`` knows how long
    the services may take to stop.
    """
    steps: dict[Phase, tuple[Step, ...]] = {}
    if told.balancers:
        steps["drain"] = (Deregistered((), None, hurried=True, until=until),)
    if told.address:
        last = replace(until, later=0.0, reserve=UNMOUNT_SECONDS)
        steps["remove"] = (ElasticIpGivenBack(None, GIVE_BACK_SECONDS, hurried=True, until=last),)
    return Lane(TRAFFIC, "withdraw", steps, reason=f"{_gone(told.names)}; {reason}")


def _balancers(config: Config, moment: Moment) -> tuple[Balancer, ...]:
    traffic = config.traffic
    if traffic is None or not moment.serving:
        return ()
    return (
        *(Balancer("target group", one.group, one.port) for one in traffic.target_groups),
        *(Balancer("load balancer", name) for name in traffic.load_balancers),
    )


def _announce(config: Config, told: Told, moment: Moment) -> Lane | None:
    name, traffic, balancers = _name(config), config.traffic, _balancers(config, moment)
    ip = traffic.elastic_ip if traffic and moment.serving else None
    steps: list[Step] = [Deregistered(balancers, moment.instance_id)] if told.balancers else []
    given_back = [ElasticIpGivenBack(moment.instance_id, GIVE_BACK_SECONDS)] if told.address and not ip else []
    if traffic is None or not (balancers or ip):
        reason = _gone(told.names)
        return Lane(name, "withdraw", {"announce": (*steps, *given_back)}, reason=reason) if told.names else None
    if moment.instance_id is None:
        reason = "it is not known which instance this is, to send requests to; allow instance metadata"
        return Lane(name, "nothing", {}, reason=reason)
    ways = [str(one) for one in balancers]
    if ip:
        claim = Claim(ip.allocation, ip.tags, moment.instance_id, moment.region)
        steps.append(ElasticIpHeld(claim, traffic.within))
        ways.append(str(claim))
    if balancers:
        here = moment.instance_id, moment.region
        steps.append(Registered(balancers, *here, traffic.within, traffic.drain_within))
    return Lane(name, "announce", {"announce": (*steps, *given_back)}, reason=f"gets requests from {', '.join(ways)}")


def _withdraw(config: Config, told: Told, moment: Moment) -> Lane | None:
    """For a node that does not serve: nothing is under way there that could be waited for."""
    if not told.names:
        return None
    steps: list[Step] = [Deregistered((), moment.instance_id, drain_most=0.0)] if told.balancers else []
    if told.address:
        steps.append(ElasticIpGivenBack(moment.instance_id, GIVE_BACK_SECONDS))
    reason = f"{_gone(told.names)}: not every app of the role serves"
    return Lane(_name(config), "withdraw", {"announce": tuple(steps)}, reason=reason)


def _gone(names: Sequence[str]) -> str:
    return f"gets no more requests from {', '.join(names)}"


def _name(config: Config) -> str:
    # An app may have this name; it is no app's that has a space in it.
    return f"{TRAFFIC} of the role" if any(app.name == TRAFFIC for app in config.apps) else TRAFFIC
