"""Who looks for notices, and how often: what the daemon knows of its instance's fate."""

from __future__ import annotations

import os
import time

from bootagent.daemon import notices

TYPE_CHECKING = False  # as typing has it, which is not small
if TYPE_CHECKING:
    from collections.abc import Callable

#: Metadata is rate-limited per instance: no faster than this, with jitter. After failures, more and more rarely.
LOOK_SECONDS = 5.0
LOOK_MOST_SECONDS = 60.0
JITTER = 0.2


class Lookout:
    """Looks into instance metadata when it is time, and keeps what was found. ``log`` is told of what changes."""

    def __init__(self, log: Callable[..., None]) -> None:
        self._log = log
        self._endpoint = notices.endpoint()
        self._token = ""
        self._due = time.monotonic()
        self._pause = LOOK_SECONDS
        self._lost = False
        #: The notices there are, by their names in :data:`notices.PATHS`.
        self.notices: dict[str, str] = {}

    @property
    def is_open(self) -> bool:
        """Whether metadata is to be asked at all."""
        return self._endpoint is not None

    @property
    def dying(self) -> str:
        """Why the instance is about to go; empty when it is not."""
        return told_to_die(self.notices)

    def due(self) -> float | None:
        """When the next look is, as time.monotonic() counts; None: never."""
        return None if self._endpoint is None else self._due

    def look(self) -> bool:
        """Look, if it is time; whether the notices were read."""
        if self._endpoint is None or time.monotonic() < self._due:
            return False
        was_lost = self._lost
        try:
            found, self._token = notices.read(self._endpoint, self._token, self.notices)
        except notices.NoMetadataError as error:
            self._token, self._lost = "", True
            self._pause = min(self._pause * 2, LOOK_MOST_SECONDS)
            if not was_lost:
                self._log("no metadata", level="warning", error=str(error))
        else:
            self._lost, self._pause = False, LOOK_SECONDS
            if was_lost:
                self._log("metadata is back")
            for name in found.keys() | self.notices.keys():
                if found.get(name) != self.notices.get(name):
                    self._log("notice", kind=name, says=found.get(name, "withdrawn"))
            self.notices = found
        self._due = time.monotonic() + jittered(self._pause)
        return not self._lost


def told_to_die(found: dict[str, str]) -> str:
    """Why the instance is about to go, as its notices say; empty when it is not."""
    if found.get("lifecycle") in ("Terminated", "Warmed:Terminated"):
        return "the autoscaling group terminates this instance"
    if "spot" in found:
        return f"spot interruption {found['spot']}"
    return ""


def jittered(seconds: float) -> float:
    """A little longer, by chance: a fleet that boots together must not ask together."""
    return seconds * (1 + JITTER * int.from_bytes(os.urandom(2), "big") / 65535)
