"""One deadline for a piece of work of several parts, and what each part may take of the time that is left."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Deadline:
    """When all has to be over, as time.monotonic() has it; None: nobody is in a hurry.

    ``later`` is how many seconds the parts that come after this one would like to have; ``reserve`` is kept for the
    last ones, which there is no way around, or a third of what is left.
    """

    at: float | None = None
    later: float = 0.0
    reserve: float = 0.0

    def left(self) -> float:
        """Seconds until then, infinite without a deadline; 0 behind it."""
        return float("inf") if self.at is None else max(0.0, self.at - time.monotonic())

    def before(self, later: float) -> Deadline:
        """The same for a part that others come after."""
        return replace(self, later=later)

    def grant(self, wanted: float) -> float:
        """The seconds that this part gets: all it wants while the others get theirs, and else half of what there is."""
        if self.at is None:
            return wanted
        left = self.left()
        free = left - min(self.reserve, left / 3)
        mine = max(free - self.later, free / 2)
        return wanted if wanted <= mine else round(mine, 1)


NO_HURRY = Deadline()


def cut(given: float, wanted: float) -> str:
    """What is to be said of a wait that was given up: empty when it had all the time it may take."""
    return "" if given >= wanted else f", in place of {wanted:g} s, for the stop has to be over"
