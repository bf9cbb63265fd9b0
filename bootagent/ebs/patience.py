"""One deadline for a piece of work that asks AWS many things."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from bootagent import aws
from bootagent.errors import AwsError, MachineError
from bootagent.machine import Machine, Note

#: Seconds between two looks at the same thing: at first, at most, and the growth from one to the other.
FIRST_PAUSE = 0.5
MOST_PAUSE = 5.0
GROWTH = 1.5

T = TypeVar("T")


class Patience:
    """Waits, for at most ``within`` seconds in all; what it waits for is told once. ``whom`` is who is asked."""

    def __init__(self, machine: Machine, within: float, whom: str = "EC2") -> None:
        self._machine = machine
        self._whom = whom
        self._within = within
        self._deadline = time.monotonic() + within
        self._pause = FIRST_PAUSE
        self._now: tuple[str, str] | None = None
        self._told: set[tuple[str, str]] = set()

    @property
    def left(self) -> float:
        """Seconds until the deadline, negative behind it."""
        return self._deadline - time.monotonic()

    def wait(self, what: str, details: Mapping[str, object], remedy: str | None = None) -> None:
        """Pause before another look at ``what``, as in "waiting for the volume to be attached".

        Raises MachineError when the deadline has passed.
        """
        said = ", ".join(f"{key} {value}" for key, value in details.items())
        if self.left <= 0:
            raise MachineError(f"gave up {what} after {self._within:g} s ({said})", remedy=remedy)
        waiting = (what, said)
        if waiting != self._now:
            self._now, self._pause = waiting, FIRST_PAUSE
        if waiting not in self._told:
            self._told.add(waiting)
            self._machine.tell(Note(what, {**details, "within": round(self.left)}))
        # A fleet that boots at once is not to ask at once.
        time.sleep(min(max(self.left, 0.0), self._pause * random.uniform(0.8, 1.2)))
        self._pause = min(self._pause * GROWTH, MOST_PAUSE)

    def call(self, doing: str, iam_action: str, ask: Callable[[], T]) -> T:
        """What ``ask`` returns. Throttling, and trouble on the side of AWS, is waited out.

        ``doing`` and ``iam_action`` are as :func:`bootagent.aws.call` has them. Raises AwsError.
        """
        while True:
            try:
                with aws.call(doing, iam_action):
                    return ask()
            except AwsError as error:
                if not aws.may_pass(error) or self.left <= 0:
                    raise
                if aws.is_early(error):
                    aws.forget_clients()
                self.wait(f"waiting for {self._whom} to answer", {"doing": doing, "code": error.code})
