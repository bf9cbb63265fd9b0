"""The escort: a process beside the run or the stop that answers the lifecycle hooks of the autoscaling group.

Whether the configuration names hooks, and whether one waits, the escort finds out: the daemon reads no configuration.
"""

from __future__ import annotations

import os

from bootagent.daemon.bare import signal
from bootagent.daemon.child import Child

TYPE_CHECKING = False  # as typing has it, which is not small
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: There while an escort may wait for what the runs find, who look: as readiness.py has it. And until the services are
#: down, for which the escort waits: as lifecycle/escort.py has it.
MARKS = {"launching": "/run/bootagent/launching", "terminating": "/run/bootagent/stopping"}
#: A configuration that is refused: the run has said it. As errors.py has it; that module is not small.
EXIT_USAGE = 2


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
                self._send("terminating")
        elif self._child is None and not self._launch_is_over:
            self._send("launching")

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
        if code == 0:
            self._launch_is_over = True
            self._farewell_for = self._dying
        self._unmark()
        if child.status or code not in (0, EXIT_USAGE):
            self._log("escort ended", level="error" if code else "info", why=child.why, exit_code=code)

    def dismiss(self) -> None:
        """What it was at is over, or the next one's."""
        if self._child:
            self._forget(self._child)
            self._child.signal(signal.SIGTERM)
            self._dismissed.append(self._child)
        self._child, self._said = None, ""
        self._unmark()

    def _send(self, purpose: str, *, marked: bool = True) -> None:
        self.dismiss()
        try:
            if marked:  # before anything else: whoever is to see it may be quick
                os.close(os.open(self._marks[purpose], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._child = Child(purpose, [*self._argv, purpose])
        except OSError as error:
            self._log("cannot start", level="error", command=self._argv[0], error=str(error))
        else:
            self._listen(self._child)

    def _unmark(self) -> None:
        for path in self._marks.values():
            try:
                os.unlink(path)  # noqa: PTH108
            except OSError:
                pass
