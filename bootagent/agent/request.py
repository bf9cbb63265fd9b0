"""What a run is asked for, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bootagent.errors import EXIT_DEGRADED, EXIT_DONE, EXIT_FAILED
from bootagent.instance import Tags
from bootagent.plan import Extent
from bootagent.state import Failure

#: What brings the machine to what its tags say, named for why: at boot, by hand, on the watch, after a failure.
CONFIGURING = frozenset({"run", "reconfigure", "watch", "retry"})
#: Those that nobody asked for: they leave alone what somebody has stopped in this boot.
UNASKED = frozenset({"run", "watch", "retry"})

_WORST_LAST = (EXIT_DONE, EXIT_DEGRADED, EXIT_FAILED)


@dataclass(frozen=True)
class Request:
    """What somebody asked for, by command: see :data:`CONFIGURING`, and ``rollback`` and ``stop``.

    ``config`` is the main file; ``rollback_to`` a release, or "" for the previous one; ``force``: end a run that has
    the lock for too long. Of a stop, ``over_at`` is when it has to be over, as time.monotonic() has it; ``escorted``:
    that may be later while heartbeats have the autoscaling group wait.
    """

    command: str
    config: Path
    tags: Tags = field(default_factory=dict)
    lock_wait: float = 0.0
    retry: bool = False
    force: bool = False
    reason: str = "asked by bootagent stop"
    extent: Extent = "stop"
    rollback_to: str | None = None
    app: str | None = None
    over_at: float | None = None
    escorted: bool = False


@dataclass(frozen=True)
class Ending:
    """How one lane ended, as an exit code and a sentence; ``tail`` is what the failed program last said.

    ``transient``: another try may end better, though nothing else is published. ``failure`` is what went wrong, if
    anything did, with where it did.
    """

    exit_code: int
    sentence: str
    tail: str = ""
    transient: bool = False
    failure: Failure | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``problems`` are the sentences of whatever went wrong before any lane began.

    ``transient`` is as :class:`Ending` has it; ``watch_seconds`` how often the configuration wants to look for a new
    release: 0 for never, None when it could not be read. ``left_alone``: somebody has stopped the services.
    ``failures`` are the problems, with where they were.
    """

    exit_code: int
    endings: Mapping[str, Ending]
    problems: tuple[str, ...] = ()
    seconds: float = 0.0
    transient: bool = False
    watch_seconds: float | None = None
    left_alone: bool = False
    failures: tuple[Failure, ...] = ()

    def all_failures(self) -> tuple[Failure, ...]:
        """What went wrong, before any lane began and in each of them."""
        return (*self.failures, *(ending.failure for ending in self.endings.values() if ending.failure))

    def sentences(self) -> list[str]:
        """What to tell of it, worst first."""
        worst = sorted(self.endings.items(), key=lambda item: item[1].exit_code == EXIT_DONE)
        return [*self.problems, *(f"{name}: {ending.sentence}" for name, ending in worst)]


def worst(endings: Mapping[str, Ending]) -> int:
    """The exit code of a run whose lanes ended so."""
    return max((ending.exit_code for ending in endings.values()), key=_WORST_LAST.index, default=EXIT_DONE)
