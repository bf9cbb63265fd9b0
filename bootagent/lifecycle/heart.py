"""Heartbeats for as long as a hook is seen to, whatever else takes its time: a slow bucket, a call tried again.

But not for who hangs: then the group is to go on without an answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from bootagent.errors import AwsError
from bootagent.lifecycle import group
from bootagent.lifecycle.group import Hook, Member

#: Between two tries of a heartbeat that may do better the next time, in seconds.
RETRY_SECONDS = 3.0
#: Who gives no sign of life for so long hangs; a single call to AWS, with its retries, takes less.
HANG_SECONDS = 300.0


class Heart:
    """A thread that sends heartbeats inside its ``with`` block. ``say`` tells of what goes wrong with them."""

    def __init__(self, member: Member, hook: Hook, say: Callable[[str], None]) -> None:
        self._member, self._hook, self._say = member, hook, say
        self._alive = time.monotonic()
        self._over, self._left = threading.Event(), threading.Event()
        # Not waited for at the end: a call may hang for longer than anybody wants to.
        self._thread = threading.Thread(target=self._work, name="heart", daemon=True)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()

    def go_on(self) -> None:
        """A sign of life."""
        self._alive = time.monotonic()

    @property
    def has_stopped(self) -> bool:
        """Whether the hook waits no longer: somebody has answered it, its time is over, or it is gone."""
        return self._over.is_set()

    def _work(self) -> None:
        while not self._left.is_set():
            hangs = time.monotonic() - self._alive > HANG_SECONDS
            self._left.wait(RETRY_SECONDS if hangs else self._beat())

    def _beat(self) -> float:
        """Send one; returns the seconds until the next."""
        pause = self._hook.timeout / 3
        try:
            waits = group.beat(self._member, self._hook.name)
        except AwsError as error:
            waits = not self._is_gone(error)
            if waits and not self._left.is_set():
                self._say(f"no heartbeat: {error}")
            pause = min(RETRY_SECONDS, pause) if group.may_pass(error) else pause
        if not waits:
            self._over.set()
            self._left.set()
        return pause

    def _is_gone(self, error: AwsError) -> bool:
        """Whether the hook is deleted, or the group: what waited for it waits no longer (DeleteLifecycleHook)."""
        if error.code != "ValidationError":
            return False
        try:
            return group.hook(self._member, self._hook.name) is None
        except AwsError:
            return False
