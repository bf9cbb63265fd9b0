"""The query protocol of both kinds of Elastic Load Balancing for the simulated ones: forms come in, XML goes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from xml.sax.saxutils import escape

from bootagent.sandbox.balancer_model import Balancer, Member
from bootagent.sandbox.balancers import Balancers
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.ebs_model import Refusal
from bootagent.sandbox.query_form import Form

SERVICE = "elasticloadbalancing"
#: The versions of the two APIs, which share a service name and tell each other apart by this alone.
_V2, _CLASSIC = "2015-12-01", "2012-06-01"
_FAILING = "Instance has failed at least the UnhealthyThreshold number of health checks consecutively."
_DRAINING = "Instance deregistration currently in progress."
_ABSENT = "Instance is not currently registered with the LoadBalancer."
_REGISTERING = "Instance registration is still in progress."

#: A status and a body.
Answer = tuple[int, bytes]


class LoadBalancing:
    """Load balancers in a cloud, which answer its calls while this runs; a context manager."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._balancers = Balancers(cloud.region, self._is_running)

    def __enter__(self) -> Balancers:
        self._balancers.__enter__()
        self._cloud.api.override(SERVICE, BalancerApi(self._balancers))
        return self._balancers

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cloud.api.override(SERVICE, None)
        self._balancers.__exit__(kind, error, trace)

    def _is_running(self, instance_id: str) -> bool:
        ec2 = self._cloud.api.ec2(self._cloud.region)
        asked = [{"Name": "instance-id", "Values": [instance_id]}]
        found = ec2.describe_instances(Filters=asked)["Reservations"]  # type: ignore[arg-type]
        return any(one["State"]["Name"] == "running" for each in found for one in each["Instances"])


class BalancerApi:
    """Answers the calls that register, deregister and describe; None for any other."""

    def __init__(self, balancers: Balancers) -> None:
        self._balancers = balancers
        self._actions: Mapping[tuple[str, str], Callable[[Form], object]] = {
            (_V2, "DescribeTargetGroups"): self._describe_groups,
            (_V2, "RegisterTargets"): self._register_targets,
            (_V2, "DeregisterTargets"): self._deregister_targets,
            (_V2, "DescribeTargetHealth"): self._describe_target_health,
            (_CLASSIC, "DescribeLoadBalancers"): self._describe_load_balancers,
            (_CLASSIC, "RegisterInstancesWithLoadBalancer"): self._register_instances,
            (_CLASSIC, "DeregisterInstancesFromLoadBalancer"): self._deregister_instances,
            (_CLASSIC, "DescribeInstanceHealth"): self._describe_instance_health,
        }

    def __call__(self, fields: Mapping[str, str]) -> Answer | None:
        """The answer to a call; None when it is none of these."""
        version, action = fields.get("Version", ""), fields.get("Action", "")
        handler = self._actions.get((version, action))
        if handler is None:
            return None
        try:
            with self._balancers.lock:
                found = _xml(handler(Form(fields)))
        except Refusal as refusal:
            content = {"Type": "Sender", "Code": refusal.code, "Message": refusal.message}
            error = f"<ErrorResponse><Error>{_xml(content)}</Error><RequestId>sandbox</RequestId></ErrorResponse>"
            return refusal.status, error.encode()
        namespace = f"http://elasticloadbalancing.amazonaws.com/doc/{version}/"
        body = (
            f'<{action}Response xmlns="{namespace}"><{action}Result>{found}</{action}Result>'
            f"<ResponseMetadata><RequestId>sandbox</RequestId></ResponseMetadata></{action}Response>"
        )
        return 200, body.encode()

    # --- target groups ---------------------------------------------------------------------------------------

    def _describe_groups(self, form: Form) -> object:
        names, arns = form.words("Names.member"), form.words("TargetGroupArns.member")
        groups = [one for one in self._balancers.balancers.values() if not one.classic]
        missing = {*names} - {one.name for one in groups} or {*arns} - {one.arn for one in groups}
        if missing:
            raise Refusal("TargetGroupNotFound", "One or more target groups not found")
        found = [one for one in groups if one.name in names or one.arn in arns or not (names or arns)]
        return {"TargetGroups": [_group(one) for one in found]}

    def _register_targets(self, form: Form) -> object:
        group = self._balancers.group(form.required("TargetGroupArn"))
        for instance_id, port in _targets(form, group):
            self._balancers.register(group, instance_id, port)
        return {}

    def _deregister_targets(self, form: Form) -> object:
        group = self._balancers.group(form.required("TargetGroupArn"))
        for instance_id, port in _targets(form, group):
            self._balancers.deregister(group, instance_id, port)
        return {}

    def _describe_target_health(self, form: Form) -> object:
        group = self._balancers.group(form.required("TargetGroupArn"))
        asked = _targets(form, group) or list(group.members)
        return {
            "TargetHealthDescriptions": [
                {
                    "Target": {"Id": instance_id, "Port": port},
                    "HealthCheckPort": group.check.port or port,
                    "TargetHealth": _target_health(group, group.member(instance_id, port)),
                }
                for instance_id, port in asked
            ]
        }

    # --- classic load balancers ------------------------------------------------------------------------------

    def _describe_load_balancers(self, form: Form) -> object:
        balancers = self._balancers
        names = form.words("LoadBalancerNames.member") or [one.name for one in balancers.balancers.values()]
        return {
            "LoadBalancerDescriptions": [
                {"LoadBalancerName": name, "Instances": _instances(balancers.load_balancer(name))} for name in names
            ]
        }

    def _register_instances(self, form: Form) -> object:
        found = self._balancers.load_balancer(form.required("LoadBalancerName"))
        for instance in form.items("Instances.member"):
            self._balancers.register(found, instance.required("InstanceId"), found.port)
        return {"Instances": _instances(found)}

    def _deregister_instances(self, form: Form) -> object:
        found = self._balancers.load_balancer(form.required("LoadBalancerName"))
        for instance_id in _known(form, found):
            self._balancers.deregister(found, instance_id, found.port)
        return {"Instances": _instances(found)}

    def _describe_instance_health(self, form: Form) -> object:
        found = self._balancers.load_balancer(form.required("LoadBalancerName"))
        asked = _known(form, found) or [instance_id for instance_id, _ in found.members]
        return {"InstanceStates": [_instance_state(one, found.member(one, found.port)) for one in asked]}


def _known(form: Form, found: Balancer) -> list[str]:
    """The instances that are named: a classic balancer refuses one that it has never had, not one that it had."""
    asked = [instance.required("InstanceId") for instance in form.items("Instances.member")]
    for instance_id in asked:
        if instance_id not in found.known:
            raise Refusal("InvalidInstance", f"Could not find EC2 instance {instance_id}.")
    return asked


def _targets(form: Form, group: Balancer) -> list[tuple[str, int]]:
    return [(one.required("Id"), one.number("Port") or group.port) for one in form.items("Targets.member")]


def _group(found: Balancer) -> object:
    return {
        "TargetGroupArn": found.arn,
        "TargetGroupName": found.name,
        "Protocol": "HTTP" if found.check.path else "TCP",
        "Port": found.port,
        "TargetType": found.target_type,
        "HealthCheckEnabled": "true",
    }


def _target_health(group: Balancer, member: Member | None) -> object:
    if member is None:
        words = "Target is not registered to the target group"
        return {"State": "unused", "Reason": "Target.NotRegistered", "Description": words}
    if not group.listening:
        words = "Target group is not configured to receive traffic from the load balancer"
        return {"State": "unused", "Reason": "Target.NotInUse", "Description": words}
    if member.state == "healthy":
        return {"State": "healthy"}
    return {"State": member.state, "Reason": member.reason, "Description": member.description}


def _instance_state(instance_id: str, member: Member | None) -> object:
    # While its last requests are served, an instance that is let go is still InService.
    states = {
        "initial": ("OutOfService", "ELB", _REGISTERING),
        "healthy": ("InService", "N/A", "N/A"),
        "unhealthy": ("OutOfService", "Instance", _FAILING),
        "draining": ("InService", "N/A", _DRAINING),
        "gone": ("OutOfService", "Instance", _ABSENT),
    }
    state, reason, description = states[member.state if member else "gone"]
    return {"InstanceId": instance_id, "State": state, "ReasonCode": reason, "Description": description}


def _instances(found: Balancer) -> object:
    return [{"InstanceId": one.instance_id} for one in found.members.values() if one.state != "draining"]


def _xml(value: object) -> str:
    if isinstance(value, Mapping):
        return "".join(f"<{name}>{_xml(below)}</{name}>" for name, below in value.items())
    if isinstance(value, list):
        return "".join(f"<member>{_xml(below)}</member>" for below in value)
    return escape(str(value))
