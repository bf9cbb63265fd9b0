"""The calls of both kinds of Elastic Load Balancing, and what they say of this instance, in one form.

Sources: Elastic Load Balancing API References, versions 2015-12-01 (target groups) and 2012-06-01 (classic).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from bootagent import aws
from bootagent.ebs.patience import Patience
from bootagent.errors import AwsError, BootagentError
from bootagent.traffic.registrations import Balancer, Kind, Registration

if TYPE_CHECKING:
    from mypy_boto3_elb import ElasticLoadBalancingClient
    from mypy_boto3_elb.type_defs import InstanceTypeDef
    from mypy_boto3_elbv2 import ElasticLoadBalancingv2Client
    from mypy_boto3_elbv2.type_defs import TargetDescriptionTypeDef, TargetGroupTypeDef

WHOM = "Elastic Load Balancing"
_GROUP_ABSENT, _CLASSIC_ABSENT = "TargetGroupNotFound", "LoadBalancerNotFound"
_TARGET_ABSENT, _INSTANCE_ABSENT = "InvalidTarget", "InvalidInstance"
#: InstanceState in the classic reference: descriptions are all that tells these apart.
_NOT_REGISTERED, _DEREGISTERING = "not currently registered", "deregistration currently in progress"

_REMEDIES = {
    "Target.NotInUse": "have a listener forward to the group, and enable this instance's zone in its load balancer",
    "Target.ResponseCodeMismatch": "see which path and which codes the group's health check asks for",
    "Target.Timeout": "see that the instance's security group lets the load balancer in",
    "Target.FailedHealthChecks": "see that the services listen on the group's port, on more than 127.0.0.1",
}
#: The same by words of what a classic one says: its reason codes tell only whose affair it is.
_CLASSIC_REMEDIES = {
    "health checks": "see which port and path the health check asks for, and that the security group lets it in",
    "Availability Zone": "enable this instance's zone, or its subnet, in the load balancer",
}

_T = TypeVar("_T")
_Answer = Literal["healthy", "not yet", "draining", "unused", "absent"]


@dataclass(frozen=True)
class Verdict:
    """What a balancer says of this instance: in short, and in its own words.

    "unused": it is registered, and yet no request can come to it.
    """

    answer: _Answer
    said: str
    remedy: str | None = None


class Calls(Protocol):
    """The calls of one kind, about one instance. All raise AwsError."""

    def find(self, balancer: Balancer, drain_within: float, boot_id: str) -> Registration:
        """What a balancer is to be told. Raises BootagentError when it does not take instances."""

    def register(self, registration: Registration) -> None:
        """Tell it; telling it again is fine, also while it lets the instance go."""

    def deregister(self, registration: Registration) -> None:
        """Have it send no more requests; one that is gone, or knows nothing of this instance, is fine."""

    def verdict(self, registration: Registration) -> Verdict:
        """What it says of this instance now."""


def calls(kind: Kind, patience: Patience, instance_id: str, region: str | None, *, hurried: bool = False) -> Calls:
    """The calls of a kind, each under the deadline of ``patience``; ``hurried``: none of them is tried for long."""
    if kind == "target group":
        return TargetGroups(patience, instance_id, aws.elbv2(region, hurried=hurried))
    return LoadBalancers(patience, instance_id, aws.elb(region, hurried=hurried))


class TargetGroups:
    """Target groups of application and network load balancers."""

    def __init__(self, patience: Patience, instance_id: str, client: ElasticLoadBalancingv2Client) -> None:
        self._patience = patience
        self._instance_id = instance_id
        self._client = client

    def find(self, balancer: Balancer, drain_within: float, boot_id: str) -> Registration:
        """Look the group up by its name or ARN."""
        client, name = self._client, balancer.name

        def ask() -> list[TargetGroupTypeDef]:
            if name.startswith("arn:"):
                return client.describe_target_groups(TargetGroupArns=[name])["TargetGroups"]
            return client.describe_target_groups(Names=[name])["TargetGroups"]

        try:
            found = self._patience.call(f"find {balancer}", "elasticloadbalancing:DescribeTargetGroups", ask)
        except AwsError as error:
            if error.code == _GROUP_ABSENT:
                error.remedy = "make it, or name another"
            raise
        if not found:
            raise BootagentError(f"there is no {balancer}", remedy="make it, or name another")
        group = found[0]
        kind, own = group.get("TargetType", "instance"), group.get("Port")
        if kind != "instance":
            raise BootagentError(f"{balancer} takes targets of type {kind}", remedy="name one that takes instances")
        port = balancer.port or own
        return Registration("target group", group["TargetGroupArn"], port, port == own, drain_within, boot_id)

    def register(self, registration: Registration) -> None:
        """RegisterTargets: an instance and port that are registered stay so."""
        self._patience.call(
            f"register {self._instance_id} with {registration}",
            "elasticloadbalancing:RegisterTargets",
            lambda: self._client.register_targets(TargetGroupArn=registration.id, Targets=[self._target(registration)]),
        )

    def deregister(self, registration: Registration) -> None:
        """DeregisterTargets, which succeeds for what is not registered."""
        _unless(
            {_GROUP_ABSENT, _TARGET_ABSENT},
            lambda: self._patience.call(
                f"deregister {self._instance_id} from {registration}",
                "elasticloadbalancing:DeregisterTargets",
                lambda: self._client.deregister_targets(
                    TargetGroupArn=registration.id, Targets=[self._target(registration)]
                ),
            ),
        )

    def verdict(self, registration: Registration) -> Verdict:
        """DescribeTargetHealth: states and reasons as TargetHealth in the reference has them."""
        found = _unless(
            {_GROUP_ABSENT, _TARGET_ABSENT},
            lambda: self._patience.call(
                f"ask {registration} for the health of {self._instance_id}",
                "elasticloadbalancing:DescribeTargetHealth",
                lambda: self._client.describe_target_health(
                    TargetGroupArn=registration.id, Targets=[self._target(registration)]
                )["TargetHealthDescriptions"],
            ),
        )
        if not found:
            return Verdict("absent", "not registered")
        health = found[0].get("TargetHealth", {})
        state, reason = str(health.get("State", "unknown")), str(health.get("Reason", ""))
        said = f"{state} {reason}".strip() + (f": {health['Description']}" if health.get("Description") else "")
        if state == "healthy":
            return Verdict("healthy", said)
        if state == "draining" or reason == "Target.DeregistrationInProgress":
            return Verdict("draining", said)
        if reason == "Target.NotRegistered":
            return Verdict("absent", said)
        return Verdict("unused" if state == "unused" else "not yet", said, _REMEDIES.get(reason))

    def _target(self, registration: Registration) -> TargetDescriptionTypeDef:
        if registration.port is None:
            return {"Id": self._instance_id}
        return {"Id": self._instance_id, "Port": registration.port}


class LoadBalancers:
    """Classic load balancers."""

    def __init__(self, patience: Patience, instance_id: str, client: ElasticLoadBalancingClient) -> None:
        self._patience = patience
        self._instance_id = instance_id
        self._client = client

    def find(self, balancer: Balancer, drain_within: float, boot_id: str) -> Registration:
        """A classic one is known by its name; whether it is there, it says when it is told."""
        return Registration("load balancer", balancer.name, None, True, drain_within, boot_id)

    def register(self, registration: Registration) -> None:
        """RegisterInstancesWithLoadBalancer: an instance that is registered stays so."""
        self._patience.call(
            f"register {self._instance_id} with {registration}",
            "elasticloadbalancing:RegisterInstancesWithLoadBalancer",
            lambda: self._client.register_instances_with_load_balancer(
                LoadBalancerName=registration.id, Instances=self._instances
            ),
        )

    def deregister(self, registration: Registration) -> None:
        """DeregisterInstancesFromLoadBalancer."""
        _unless(
            {_CLASSIC_ABSENT, _INSTANCE_ABSENT},
            lambda: self._patience.call(
                f"deregister {self._instance_id} from {registration}",
                "elasticloadbalancing:DeregisterInstancesFromLoadBalancer",
                lambda: self._client.deregister_instances_from_load_balancer(
                    LoadBalancerName=registration.id, Instances=self._instances
                ),
            ),
        )

    def verdict(self, registration: Registration) -> Verdict:
        """DescribeInstanceHealth. An instance that is being let go is InService until its requests are done.

        Then it is OutOfService and said not to be registered; one that never was is InvalidInstance ("Configure
        connection draining for your Classic Load Balancer").
        """
        found = _unless(
            {_CLASSIC_ABSENT, _INSTANCE_ABSENT},
            lambda: self._patience.call(
                f"ask {registration} for the health of {self._instance_id}",
                "elasticloadbalancing:DescribeInstanceHealth",
                lambda: self._client.describe_instance_health(
                    LoadBalancerName=registration.id, Instances=self._instances
                )["InstanceStates"],
            ),
        )
        if not found:
            return Verdict("absent", "not registered")
        state, reason = str(found[0].get("State", "Unknown")), str(found[0].get("ReasonCode", ""))
        description = str(found[0].get("Description", ""))
        said = " ".join(word for word in (state, reason) if word not in ("", "N/A"))
        said += f": {description}" if description not in ("", "N/A") else ""
        if _DEREGISTERING in description:
            return Verdict("draining", said)
        if _NOT_REGISTERED in description:
            return Verdict("absent", said)
        if state == "InService":
            return Verdict("healthy", said)
        remedy = next((remedy for words, remedy in _CLASSIC_REMEDIES.items() if words in description), None)
        return Verdict("not yet", said, remedy)

    @property
    def _instances(self) -> list[InstanceTypeDef]:
        return [{"InstanceId": self._instance_id}]


def _unless(fine: set[str], ask: Callable[[], _T]) -> _T | None:
    """What ``ask`` returns; None when AWS answers with one of the codes that are fine."""
    try:
        return ask()
    except AwsError as error:
        if error.code not in fine:
            raise
        return None
