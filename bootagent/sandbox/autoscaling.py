"""A simulated autoscaling group of one instance: lifecycle hooks, a warm pool, spot interruptions, with the real rules.

    with AutoScaling(cloud, hooks=[Hook("ready", "launching")]) as group:
        group.launch()

States and rules: "Amazon EC2 Auto Scaling lifecycle hooks" and "Use lifecycle hooks with a warm pool", Amazon EC2 Auto
Scaling User Guide, and the API reference. The instance's metadata shows the target state meanwhile, as there.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import Literal

from bootagent.errors import UsageError
from bootagent.sandbox.agenda import Agenda
from bootagent.sandbox.autoscaling_api import AutoScalingApi
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.ebs_model import Refusal
from bootagent.sandbox.metadata import LIFECYCLE, SPOT

#: What PutLifecycleHook takes, in seconds, and how long an instance may wait: 48 hours, or so many timeouts.
TIMEOUTS = range(30, 7201)
MOST_SECONDS, MOST_TIMEOUTS = 48 * 3600, 100
SPOT_NOTICE = timedelta(minutes=2)

Transition = Literal["launching", "terminating"]
Result = Literal["CONTINUE", "ABANDON"]
PoolState = Literal["Stopped", "Running", "Hibernated"]


@dataclass(frozen=True)
class Hook:
    """A lifecycle hook of the group. ``timeout`` is the heartbeat's, in seconds."""

    name: str
    transition: Transition
    timeout: int = 3600
    default: Result = "ABANDON"

    @property
    def limit(self) -> int:
        """How long an instance may wait for it in all, whatever the heartbeats: its GlobalTimeout, in seconds."""
        return min(MOST_SECONDS, MOST_TIMEOUTS * self.timeout)


@dataclass
class Action:
    """One hook that the instance waits for: until when, at most until when, and what was answered."""

    hook: Hook
    due: float
    limit: float
    result: Result | None = None


class AutoScaling(AbstractContextManager["AutoScaling"]):
    """The group that a cloud's instance is in, or is not yet.

    ``pool`` is the state of instances in the warm pool; None: there is no pool. ``compressed`` lets timeouts be
    shorter than AWS has them, for tests. ``lag`` is how long after the target the state itself changes, in seconds.
    """

    def __init__(
        self,
        cloud: Cloud,
        *,
        hooks: Sequence[Hook] = (),
        pool: PoolState | None = None,
        name: str = "fleet",
        compressed: bool = False,
        lag: float = 0.0,
    ) -> None:
        for hook in hooks:
            if not compressed and hook.timeout not in TIMEOUTS:
                raise UsageError(f"hook {hook.name}: a heartbeat timeout is 30 to 7200 s, not {hook.timeout}")
        self.name, self.hooks, self.lag = name, tuple(hooks), lag
        self.instance_id, self.zone = cloud.instance.instance_id, cloud.instance.zone
        self.lock = threading.RLock()
        #: The instance's state now (None: it is not in the group), and all that it has had.
        self.state: str | None = None
        self.states: list[str] = []
        #: What came of hooks, as (name, result, by whom: "call", "timeout" or "deletion").
        self.answers: list[tuple[str, Result, str]] = []
        #: The names of hooks that a heartbeat was recorded for.
        self.heartbeats: list[str] = []
        self._cloud = cloud
        self._pool = pool
        self._actions: list[Action] = []
        self._agenda = Agenda()

    def __enter__(self) -> AutoScaling:
        self._agenda.start()
        self._cloud.api.override("autoscaling", AutoScalingApi(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cloud.api.override("autoscaling", None)
        self._agenda.close()
        if self._agenda.problems and error is None:
            raise self._agenda.problems[0]

    # --- what the group does ---------------------------------------------------------------------------------

    def launch(self) -> None:
        """Launch the instance: into the warm pool, where there is one."""
        with self.lock:
            self._move("Warmed:Pending" if self._pool else "Pending")
            self._target(f"Warmed:{self._pool}" if self._pool else "InService")
        self._agenda.after(self.lag, self._wait_for_launch)

    def take_from_pool(self) -> None:
        """Scale out: the instance leaves the warm pool for service. As with :meth:`terminate`, the state follows."""
        with self.lock:
            self._target("InService")
        self._agenda.after(self.lag, self._leave_pool)

    def return_to_pool(self, pool: PoolState) -> None:
        """Scale in where the pool takes instances back: what waits for it is the hook of terminations.

        The target is told at once, the state follows after the lag.
        """
        with self.lock:
            self._target(f"Warmed:{pool}")
        self._agenda.after(self.lag, functools.partial(self._enter_pool, pool))

    def delete_hook(self, name: str) -> None:
        """DeleteLifecycleHook: what waits for it is answered first, ABANDON at launch and CONTINUE at the end."""
        with self.lock:
            self.hooks = tuple(hook for hook in self.hooks if hook.name != name)
            for action in [one for one in self._actions if one.hook.name == name and one.result is None]:
                self._answer(action, "ABANDON" if action.hook.transition == "launching" else "CONTINUE", "deletion")

    def terminate(self) -> None:
        """Scale in: the target is told at once, the state follows after the lag."""
        with self.lock:
            self._target("Terminated")
        self._agenda.after(self.lag, self._wait_for_end)

    def interrupt(self) -> None:
        """Give the two minutes' notice of a spot interruption, which no hook holds up."""
        at = datetime.now(timezone.utc) + SPOT_NOTICE
        self._cloud.metadata.put(SPOT, json.dumps({"action": "terminate", "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"}))

    def _leave_pool(self) -> None:
        with self.lock:
            self._pool = None
            self._move("Pending")
            self._wait_for_launch()

    def _enter_pool(self, pool: PoolState) -> None:
        with self.lock:
            self._pool = pool
            self._move("Warmed:Pending")
            self._wait("terminating", "Warmed:Pending")

    def _wait_for_launch(self) -> None:
        self._wait("launching", "Warmed:Pending" if self._pool else "Pending")

    def _wait_for_end(self) -> None:
        with self.lock:
            for action in self._actions:  # a launch that was waited for is over
                action.result = action.result or "ABANDON"
            self._move("Warmed:Terminating" if self._pool else "Terminating")
        self._wait("terminating", self.state or "")

    def _wait(self, transition: Transition, state: str) -> None:
        with self.lock:
            if self.state != state:
                return
            now = time.monotonic()
            self._actions = [
                Action(hook, now + hook.timeout, now + hook.limit)
                for hook in self.hooks
                if hook.transition == transition
            ]
            if self._actions:
                self._move(f"{state}:Wait")
            for action in self._actions:
                self._agenda.after(action.hook.timeout, functools.partial(self._time_out, action))
            self._go_on()

    def _time_out(self, action: Action) -> None:
        with self.lock:
            if action.result is not None:
                return
            left = min(action.due, action.limit) - time.monotonic()
            if left > 0:
                self._agenda.after(left, lambda: self._time_out(action))
            else:
                self._answer(action, action.hook.default, "timeout")

    def _answer(self, action: Action, result: Result, by: str) -> None:
        action.result = result
        self.answers.append((action.hook.name, result, by))
        if result == "ABANDON":  # what else is waited for counts no more
            for other in self._actions:
                other.result = other.result or "ABANDON"
        self._go_on()

    def _go_on(self) -> None:
        """What follows once nothing is waited for any more."""
        if self.state is None or any(action.result is None for action in self._actions):
            return
        before = self.state.removesuffix(":Wait")
        if before.endswith("Pending") and any(action.result == "ABANDON" for action in self._actions):
            self._target("Terminated")
            self._agenda.after(self.lag, self._wait_for_end)
            return
        self._move(f"{before}:Proceed")
        ends = {"Pending": "InService", "Warmed:Pending": f"Warmed:{self._pool}"}
        self._move(ends.get(before, "Terminated"))

    def _move(self, state: str) -> None:
        self.state = state
        self.states.append(state)

    def _target(self, state: str) -> None:
        self._cloud.metadata.put(LIFECYCLE, state)

    # --- what is asked of it ---------------------------------------------------------------------------------

    def beat(self, hook: str, instance_id: str) -> None:
        """RecordLifecycleActionHeartbeat: the timeout begins anew. Raises Refusal."""
        action = self._active(hook, instance_id)
        action.due = time.monotonic() + action.hook.timeout
        self.heartbeats.append(hook)

    def complete(self, hook: str, instance_id: str, result: str) -> None:
        """CompleteLifecycleAction. Raises Refusal."""
        if result not in ("CONTINUE", "ABANDON"):
            raise Refusal("ValidationError", "Lifecycle Action Result must be one of CONTINUE or ABANDON")
        self._answer(self._active(hook, instance_id), "CONTINUE" if result == "CONTINUE" else "ABANDON", "call")

    def _active(self, hook: str, instance_id: str) -> Action:
        if hook not in {one.name for one in self.hooks}:
            raise Refusal("ValidationError", f"Lifecycle hook {hook} not found for group {self.name}")
        found = [action for action in self._actions if action.hook.name == hook and action.result is None]
        if instance_id != self.instance_id or not found:
            raise Refusal("ValidationError", f"No active Lifecycle Action found with instance ID {instance_id}")
        return found[0]
