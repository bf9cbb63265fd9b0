"""Whether, and by what, traffic is to reach this instance: steps for the node as a whole, once all its apps serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bootagent.config.model import Config
from bootagent.plan.lane import Lane, Moment, Plan
from bootagent.steps.base import Step
from bootagent.steps.deregistered import Deregistered
from bootagent.steps.registered import Registered
from bootagent.traffic.registrations import Balancer

#: The name of the lane, beside those of apps.
TRAFFIC = "traffic"
#: How long a stop waits at most for requests under way, in seconds: the service manager gives a machine that goes down
#: five minutes for all of it.
DRAIN_SECONDS = 150.0
#: The same when the instance was told to die: spot gives two minutes ("Spot Instance interruption notices").
DOOMED_DRAIN_SECONDS = 60.0


def with_traffic(made: Plan, config: Config, told: Sequence[str], moment: Moment) -> Plan:
    """The same plan, with what is to be done for the node as a whole; ``told`` are the balancers that know of it."""
    return replace(made, announce=_announce(config, told, moment), withdraw=_withdraw(config, told, moment))


def former_traffic(config: Config, moment: Moment) -> Step:
    """No balancer but those of the role sends requests: to be so before anything of the former role is stopped."""
    return Deregistered(_balancers(config, moment), moment.instance_id)


def off(told: Sequence[str], reason: str, *, doomed: bool) -> Lane:
    """The lane of a stop that has every balancer let go before a service is stopped. It asks no metadata."""
    most = DOOMED_DRAIN_SECONDS if doomed else DRAIN_SECONDS
    step = Deregistered((), None, drain_most=most, hurried=True)
    return Lane(TRAFFIC, "withdraw", {"drain": (step,)}, reason=f"{_gone(told)}; {reason}")


def _balancers(config: Config, moment: Moment) -> tuple[Balancer, ...]:
    traffic = config.traffic
    if traffic is None or not moment.serving:
        return ()
    return (
        *(Balancer("target group", one.group, one.port) for one in traffic.target_groups),
        *(Balancer("load balancer", name) for name in traffic.load_balancers),
    )


def _announce(config: Config, told: Sequence[str], moment: Moment) -> Lane | None:
    balancers = _balancers(config, moment)
    if not balancers and not told:
        return None
    name = _name(config)
    steps: list[Step] = [Deregistered(balancers, moment.instance_id)] if told else []
    if not balancers or config.traffic is None:
        return Lane(name, "withdraw", {"announce": tuple(steps)}, reason=_gone(told))
    if moment.instance_id is None:
        reason = "it is not known which instance this is, to register it; allow instance metadata"
        return Lane(name, "nothing", {}, reason=reason)
    registered = Registered(
        balancers, moment.instance_id, moment.region, config.traffic.within, config.traffic.drain_within
    )
    names = ", ".join(map(str, balancers))
    reason = f"gets requests from {names}"
    return Lane(name, "announce", {"announce": (*steps, registered)}, reason=reason)


def _withdraw(config: Config, told: Sequence[str], moment: Moment) -> Lane | None:
    """For a node that does not serve: nothing is under way there that could be waited for."""
    if not told:
        return None
    step = Deregistered((), moment.instance_id, drain_most=0.0)
    reason = f"{_gone(told)}: not every app of the role serves"
    return Lane(_name(config), "withdraw", {"announce": (step,)}, reason=reason)


def _gone(told: Sequence[str]) -> str:
    return f"gets no more requests from {', '.join(told)}"


def _name(config: Config) -> str:
    # An app may have this name; it is no app's that has a space in it.
    return f"{TRAFFIC} of the role" if any(app.name == TRAFFIC for app in config.apps) else TRAFFIC
