"""What Auto Scaling is asked and told of this instance (Amazon EC2 Auto Scaling API Reference).

The instance's id is enough to answer a hook; the token of a notification is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bootagent import aws
from bootagent.errors import AwsError

Result = Literal["CONTINUE", "ABANDON"]
#: What the message says when the hook waits for nothing: answered already, or its time is over.
_NOT_ACTIVE = "No active Lifecycle Action"


@dataclass(frozen=True)
class Member:
    """An instance as its group has it. ``state`` is the lifecycle state now, not the one it is meant to reach."""

    region: str | None
    instance_id: str
    group: str
    state: str

    @property
    def launch_waits(self) -> bool:
        """Whether hooks hold the instance at launch, into service or into the warm pool."""
        return self.state in ("Pending:Wait", "Warmed:Pending:Wait")

    @property
    def launch_begins(self) -> bool:
        """Whether hooks may yet hold it."""
        return self.state in ("Pending", "Warmed:Pending")

    @property
    def is_pooled(self) -> bool:
        """Whether it is on its way into the warm pool, or in it."""
        return self.state.startswith("Warmed:")

    @property
    def end_waits(self) -> bool:
        """Whether hooks hold the instance before it is terminated."""
        return self.state.endswith("Terminating:Wait")

    @property
    def is_ending(self) -> bool:
        """Whether no hook can hold it any more."""
        return self.state.endswith(("Terminating:Proceed", "Terminating:Retained", "Terminated"))


@dataclass(frozen=True)
class Hook:
    """A hook of the group. ``timeout`` is what each heartbeat gives, ``limit`` how long it may hold an instance in all.

    Both in seconds; ``limit`` is the GlobalTimeout: 48 hours or a hundred timeouts, whichever is less.
    """

    name: str
    timeout: float
    limit: float


def member(region: str | None, instance_id: str) -> Member | None:
    """The instance; None when no group has it. Raises AwsError."""
    with aws.call(f"ask for the lifecycle state of {instance_id}", "autoscaling:DescribeAutoScalingInstances"):
        answer = aws.autoscaling(region).describe_auto_scaling_instances(InstanceIds=[instance_id])
    for found in answer["AutoScalingInstances"]:
        return Member(region, instance_id, found["AutoScalingGroupName"], found["LifecycleState"])
    return None


def is_behind(one: Member | None, target: str) -> bool:
    """Whether the group is yet to say of the instance what its metadata does: that it has it, or wants it elsewhere.

    ``target`` is the state that it is to reach, which is told first: out of the warm pool, say, or back in it.
    """
    if one is None:
        return target not in ("", "Detached")
    pooled = target.startswith("Warmed:") and target != "Warmed:Terminated"
    return (pooled or target == "InService") and one.is_pooled != pooled


def hook(one: Member, name: str) -> Hook | None:
    """The group's hook of a name; None when it has none. Raises AwsError."""
    with aws.call(f"ask for hook {name} of {one.group}", "autoscaling:DescribeLifecycleHooks"):
        # All of them: whether a name that is not there is an error, the API does not say.
        answer = aws.autoscaling(one.region).describe_lifecycle_hooks(AutoScalingGroupName=one.group)
    for found in answer["LifecycleHooks"]:
        if found["LifecycleHookName"] == name:
            return Hook(name, float(found["HeartbeatTimeout"]), float(found["GlobalTimeout"]))
    return None


def beat(one: Member, name: str) -> bool:
    """Have the hook wait for its timeout once more; False when it waits no longer. Raises AwsError."""
    try:
        with aws.call(f"send a heartbeat to hook {name} of {one.group}", "autoscaling:RecordLifecycleActionHeartbeat"):
            aws.autoscaling(one.region).record_lifecycle_action_heartbeat(
                LifecycleHookName=name, AutoScalingGroupName=one.group, InstanceId=one.instance_id
            )
    except AwsError as error:
        return _raised_unless_over(error)
    return True


def complete(one: Member, name: str, result: Result) -> bool:
    """Answer the hook; False when it waits no longer. Raises AwsError."""
    try:
        with aws.call(f"answer {result} to hook {name} of {one.group}", "autoscaling:CompleteLifecycleAction"):
            aws.autoscaling(one.region).complete_lifecycle_action(
                LifecycleHookName=name,
                AutoScalingGroupName=one.group,
                InstanceId=one.instance_id,
                LifecycleActionResult=result,
            )
    except AwsError as error:
        return _raised_unless_over(error)
    return True


def may_pass(error: AwsError) -> bool:
    """Whether the same call may do better later. ResourceContention: another change of the group is under way."""
    return aws.may_pass(error) or error.code in ("ResourceContention", "ResourceContentionFault")


def _raised_unless_over(error: AwsError) -> bool:
    if error.code == "ValidationError" and _NOT_ACTIVE in str(error):
        return False
    raise error
