"""Things to be done later, one after another."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable


class Agenda:
    """Does things at their time, one after another, in a thread of its own; remembers what went wrong with them."""

    def __init__(self) -> None:
        self.problems: list[Exception] = []
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = itertools.count()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="ebs", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something so many seconds from now."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._counter), action))
            self._changed.notify()

    def close(self) -> None:
        """Do nothing more; what is being done is finished first."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._closed:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(wait)
            return None

    def _work(self) -> None:
        while action := self._next():
            try:
                action()
            except Exception as error:
                self.problems.append(error)
