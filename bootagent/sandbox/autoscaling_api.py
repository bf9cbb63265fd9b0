"""The query protocol of Amazon EC2 Auto Scaling for a simulated group: forms come in, XML goes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from bootagent.sandbox.ebs_model import Refusal
from bootagent.sandbox.query_form import Form

if TYPE_CHECKING:
    from bootagent.sandbox.autoscaling import AutoScaling, Hook

_NAMESPACE = "http://autoscaling.amazonaws.com/doc/2011-01-01/"


class AutoScalingApi:
    """Answers the calls about instances and their lifecycle; None for any other."""

    def __init__(self, group: AutoScaling) -> None:
        self._group = group
        self._actions: Mapping[str, Callable[[Form], object]] = {
            "DescribeAutoScalingInstances": self._describe_instances,
            "DescribeLifecycleHooks": self._describe_hooks,
            "RecordLifecycleActionHeartbeat": self._beat,
            "CompleteLifecycleAction": self._complete,
        }

    def __call__(self, fields: Mapping[str, str]) -> tuple[int, bytes] | None:
        """The answer to a call; None when it is about something else."""
        action = fields.get("Action", "")
        handler = self._actions.get(action)
        if handler is None:
            return None
        try:
            with self._group.lock:
                found = handler(Form(fields))
        except Refusal as refusal:
            return refusal.status, _document("ErrorResponse", f"<Error>{_xml(_error(refusal))}</Error>")
        return 200, _document(f"{action}Response", f"<{action}Result>{_xml(found)}</{action}Result>")

    def _describe_instances(self, form: Form) -> object:
        group, wanted = self._group, form.words("InstanceIds.member")
        there = group.state not in (None, "Terminated") and (not wanted or group.instance_id in wanted)
        found = {
            "InstanceId": group.instance_id,
            "AutoScalingGroupName": group.name,
            "AvailabilityZone": group.zone,
            "LifecycleState": group.state,
            "HealthStatus": "HEALTHY",
            "ProtectedFromScaleIn": "false",
        }
        return {"AutoScalingInstances": [found] if there else []}

    def _describe_hooks(self, form: Form) -> object:
        self._check_group(form)
        wanted = form.words("LifecycleHookNames.member")
        return {
            "LifecycleHooks": [self._shape(hook) for hook in self._group.hooks if not wanted or hook.name in wanted]
        }

    def _shape(self, hook: Hook) -> object:
        return {
            "LifecycleHookName": hook.name,
            "AutoScalingGroupName": self._group.name,
            "LifecycleTransition": f"autoscaling:EC2_INSTANCE_{hook.transition.upper()}",
            "HeartbeatTimeout": hook.timeout,
            "GlobalTimeout": hook.limit,
            "DefaultResult": hook.default,
        }

    def _beat(self, form: Form) -> object:
        self._check_group(form)
        self._group.beat(form.required("LifecycleHookName"), form.required("InstanceId"))
        return {}

    def _complete(self, form: Form) -> object:
        self._check_group(form)
        result = form.required("LifecycleActionResult")
        self._group.complete(form.required("LifecycleHookName"), form.required("InstanceId"), result)
        return {}

    def _check_group(self, form: Form) -> None:
        if (name := form.required("AutoScalingGroupName")) != self._group.name:
            raise Refusal("ValidationError", f"AutoScalingGroup name not found - AutoScalingGroup {name} not found")


def _error(refusal: Refusal) -> object:
    return {"Type": "Sender", "Code": refusal.code, "Message": refusal.message}


def _document(name: str, content: str) -> bytes:
    metadata = "<ResponseMetadata><RequestId>sandbox</RequestId></ResponseMetadata>"
    identity = "<RequestId>sandbox</RequestId>" if name == "ErrorResponse" else metadata
    return f'<{name} xmlns="{_NAMESPACE}">{content}{identity}</{name}>'.encode()


def _xml(value: object) -> str:
    if isinstance(value, Mapping):
        return "".join(f"<{name}>{_xml(below)}</{name}>" for name, below in value.items())
    if isinstance(value, list):
        return "".join(f"<member>{_xml(below)}</member>" for below in value)
    return escape(str(value))
