"""The escort: a process beside the run or the stop that answers the lifecycle hooks of the autoscaling group.

Whether the configuration names hooks, and whether one waits, the escort finds out: the daemon reads no configuration.
One that fails is sent again until it has seen to its hook, or found that none waits.
"""

from __future__ import annotations

import os
import time

from bootagent.daemon.bare import signal
from bootagent.daemon.child import Child

TYPE_CHECKING = False  # as typing has it, which is not small
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: There while an escort may wait for what the runs find, who look; it says since when, in seconds of uptime: as
#: readiness.py has it. And until the services are down, for which the escort waits: as lifecycle/escort.py has it.
MARKS = {"launching": "/run/bootagent/launching", "terminating": "/run/bootagent/stopping"}
#: A configuration that is refused: the run has said it. As errors.py has it; that module is not small.
EXIT_USAGE = 2
#: The pause before one that failed is sent again; it doubles. A hook may wait for no more than 30 s between heartbeats.
AGAIN_SECONDS = 5.0
AGAIN_MOST_SECONDS = 60.0
#: No hook waits longer, whatever the heartbeats: "Amazon EC2 Auto Scaling lifecycle hooks" in its user guide.
MOST_SECONDS = 48 * 3600.0


class Escorts:
    """One escort at a time.

    ``argv`` is the command, without the purpose; ``listen`` and ``forget`` are told of its pipe, ``log`` of its end.
    """

    def __init__(
        self,
        argv: Sequence[str],
        root: str,
        listen: Callable[[Child], None],
        forget: Callable[[Child], None],
        log: Callable[..., None],
    ) -> None:
        self._argv, self._marks = argv, {purpose: root + path for purpose, path in MARKS.items()}
        self._listen, self._forget, self._log = listen, forget, log
        self._child: Child | None = None
        self._dismissed: list[Child] = []
        self._purpose = ""  # what the last one was sent for
        self._marked = False  # whether its mark is there
        self._since = 0.0  # when the first one was sent for it
        self._again: float | None = None  # when the next one is
        self._pause = AGAIN_SECONDS
        self._launch_is_over = False
        self._dying = ""  # why the instance is to go
        self._farewell_for = ""  # the same, once the group knows that the services are down, or need not know
        self._said = ""

    def status(self) -> str:
        """What the escort says, or the last one said of what was begun with it."""
        return self._child.status if self._child else self._said

    def begin(self, dying: str) -> None:
        """A run begins, or a stop, for the reason that the instance is ``dying`` for."""
        self._said, self._dying = "", dying
        if dying:
            if self._farewell_for != dying:
                self._send("terminating", marked=True)
        elif self._child is None and not self._launch_is_over:
            self._send("launching", marked=True)

    def stopped(self, dying: str) -> None:
        """The services are down, or as far down as they go: the group is told, once for each reason."""
        if self._farewell_for != dying:
            self._farewell_for = dying
            self._unmark()
            if self._child is None:
                self._send("terminating", marked=False)

    def begin_anew(self) -> None:
        """There may be another launch to wait for: the instance has left the warm pool, or is to live after all."""
        self.dismiss()
        self._launch_is_over, self._farewell_for = False, ""

    def look_again(self) -> None:
        """The configuration may name other hooks by now."""
        self._launch_is_over = False

    def reap(self) -> None:
        """Take in what it says, and its end."""
        self._dismissed = [old for old in self._dismissed if old.ended() is None]
        child = self._child
        if child is None:
            return
        if not child.read():
            self._forget(child)
        code = child.ended()
        if code is None:
            return
        self._forget(child)
        self._child, self._said = None, child.status
        if child.status or code not in (0, EXIT_USAGE):
            self._log("escort ended", level="error" if code else "info", why=child.why, exit_code=code)
        if code not in (0, EXIT_USAGE):
            self._try_again()
        else:
            self._settle(answered=code == 0)

    def due(self) -> float | None:
        """When one is to be sent again, as time.monotonic() counts; None: none is."""
        return self._again

    def send_what_is_due(self) -> None:
        """Send one that failed again, once its pause is over. What the runs found meanwhile counts."""
        if self._again is not None and time.monotonic() >= self._again:
            self._send(self._purpose, marked=self._marked)

    def dismiss(self) -> None:
        """What it was at is over, or the next one's."""
        self._end_child()
        self._unmark()
        self._again, self._purpose, self._said = None, "", ""

    def _send(self, purpose: str, *, marked: bool) -> None:
        if purpose != self._purpose:
            self.dismiss()
            self._purpose, self._since, self._pause = purpose, time.monotonic(), AGAIN_SECONDS
        self._end_child()
        self._again = None
        try:
            if marked and not self._marked:  # before anything else: whoever is to see it may be quick
                self._mark()
            self._child = Child(purpose, [*self._argv, purpose])
        except OSError as error:
            self._log("cannot start", level="error", command=self._argv[0], error=str(error))
            self._try_again()
        else:
            self._listen(self._child)

    def _try_again(self) -> None:
        """Not for ever: by then, the group has gone on without an answer."""
        now = time.monotonic()
        if now - self._since > MOST_SECONDS:
            self._settle(answered=True)
            return
        self._again = now + self._pause
        self._pause = min(self._pause * 2, AGAIN_MOST_SECONDS)

    def _settle(self, *, answered: bool) -> None:
        """``answered``: the hook is, or none waits. If not, the next run may have a configuration that is accepted."""
        if answered and self._purpose == "launching":
            self._launch_is_over = True
        elif answered:
            self._farewell_for = self._dying
        self._purpose = ""
        self._unmark()

    def _end_child(self) -> None:
        if self._child:
            self._forget(self._child)
            self._child.signal(signal.SIGTERM)
            self._dismissed.append(self._child)
        self._child = None

    def _mark(self) -> None:
        with open("/proc/uptime", encoding="ascii") as file:  # noqa: PTH123
            since = file.read().split()[0]
        # Made anew: a daemon that was killed has left one, for an earlier wait.
        mode = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(self._marks[self._purpose], mode, 0o600)
        try:
            os.write(descriptor, f"{since}\n".encode())
        finally:
            os.close(descriptor)
        self._marked = True

    def _unmark(self) -> None:
        self._marked = False
        for path in self._marks.values():
            try:
                os.unlink(path)  # noqa: PTH108
            except OSError:
                pass
