"""Many ranged reads of one immutable object at once, handed on in order through a window of fixed size.

One connection to S3 gives some 60-90 MB/s whatever the instance's line; several give the line. Memory is the window, a
ring of slots of one part each. There are more connections than slots: a request is sent ahead of its turn, so that the
tens of milliseconds S3 takes to answer are not spent with a slot empty.
"""

from __future__ import annotations

import contextlib
import functools
import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from bootagent import aws
from bootagent.errors import AwsError, BundleError

#: Bytes of one ranged read: less is more requests, and each takes botocore a millisecond and a half of the interpreter.
PART = 2 << 20
#: Parts in memory at a time.
SLOTS = 4
CONNECTIONS = 12
#: Bytes asked from a connection at a time; what is lost with a dropped one is at most this.
STEP = 128 << 10
#: Tries in a row without a single byte, each of them with botocore's own five behind it.
TRIES = 6
BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 5.0

_REPLACED = {"PreconditionFailed", "412", "NoSuchKey", "NoSuchVersion", "404", "InvalidRange", "416"}
#: Error codes of S3 ("Error Responses" in its API reference), and the names of the exceptions of botocore and urllib3.
_PASSING = {
    *(
        "InternalError",
        "ServiceUnavailable",
        "SlowDown",
        "OperationAborted",
        "RequestTimeout",
        "RequestTimeoutException",
    ),
    *("Throttling", "ThrottlingException", "RequestThrottled", "TooManyRequests", "RequestLimitExceeded"),
    *("429", "500", "502", "503", "504"),
    *("ReadTimeoutError", "ConnectTimeoutError", "EndpointConnectionError", "ConnectionClosedError"),
    *("ResponseStreamingError", "IncompleteReadError", "IncompleteRead", "ProtocolError", "HTTPClientError"),
}
_TOTAL = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True)
class Source:
    """One version of one object: ``size`` in bytes; ``etag`` and ``version_id`` pin it."""

    bucket: str
    key: str
    region: str | None
    size: int
    etag: str | None = None
    version_id: str | None = None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


class Ranges:
    """A context in which :meth:`stream` yields the object's bytes.

    Its threads end with it; only one that waits for the first byte of an answer does so to the end (aws.READ_SECONDS).

    ``deadline`` is in seconds on the monotonic clock.
    """

    def __init__(
        self, source: Source, *, deadline: float, part: int = PART, slots: int = SLOTS, connections: int = CONNECTIONS
    ) -> None:
        self._source = source
        self._deadline = deadline
        self._part = part
        self._parts = -(-source.size // part)
        self._slots = min(slots, self._parts)
        self._window = [memoryview(bytearray(min(part, source.size))) for _ in range(self._slots)]
        self._filled = [0] * self._slots
        self._consumed = 0
        self._answered = False
        self._failure: BaseException | None = None
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._freed = threading.Condition(self._lock)
        self._bodies: dict[int, Any] = {}
        self._threads = [
            threading.Thread(target=self._work, args=(first, connections), name=f"range-{first}", daemon=True)
            for first in range(min(connections, self._parts))
        ]

    def __enter__(self) -> Ranges:
        self._client: Any = aws.s3(self._source.region)  # made here, once: making one is not safe in threads
        self._client.meta.events.register("before-send.s3.GetObject", _expect_going_on, unique_id="bootagent-ranges")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        with self._lock:
            self._freed.notify_all()
            bodies = list(self._bodies.values())
        for body in bodies:
            _interrupt(body)
        patience = time.monotonic() + 1
        for thread in self._threads:
            thread.join(max(0.0, patience - time.monotonic()))

    def stream(self) -> Iterator[memoryview]:
        """The object's bytes in order; a view is good until the next one is asked for.

        Raises BundleError when the object changes or the deadline passes, AwsError when reading fails for good.
        """
        for part in range(self._parts):
            slot, taken, length = part % self._slots, 0, self._length(part)
            while taken < length:
                filled = self._wait_for(slot, taken, part)
                yield self._window[slot][taken:filled]
                taken = filled
            with self._lock:
                self._filled[slot] = 0
                self._consumed += 1
                self._freed.notify_all()

    def _wait_for(self, slot: int, taken: int, part: int) -> int:
        with self._lock:
            self._arrived.wait_for(
                lambda: self._filled[slot] > taken or self._failure, max(0.0, self._deadline - time.monotonic())
            )
            if self._failure:
                raise self._failure
            if self._filled[slot] <= taken or time.monotonic() > self._deadline:
                raise late(str(self._source), part * self._part + taken, self._source.size)
            return self._filled[slot]

    def _length(self, part: int) -> int:
        return min(self._part, self._source.size - part * self._part)

    # --- in the threads ----------------------------------------------------------------------------------------

    def _work(self, first: int, step: int) -> None:
        _this_thread.stopped = self._stopped
        try:
            for part in range(first, self._parts, step):
                if not self._fetch(part):
                    return
        except BaseException as failure:
            with self._lock:
                self._failure = self._failure or failure
                self._arrived.notify_all()

    def _fetch(self, part: int) -> bool:
        """Fill a slot with a part, from as many connections as it takes; False when told to stop."""
        length, got, tries = self._length(part), 0, 0
        while got < length and not self._stopped.is_set():
            before, failure = got, None
            try:
                with aws.call(f"read {self._source}", self._action):
                    for reached in self._read(part, before):
                        got = reached
                        with self._lock:
                            self._filled[part % self._slots] = got
                            if part == self._consumed:
                                self._arrived.notify()
            except AwsError as error:
                failure = error
            if got < length and not self._stopped.is_set():
                tries = 1 if got > before else tries + 1
                self._bear(failure, tries)
        return not self._stopped.is_set()

    def _bear(self, failure: AwsError | None, tries: int) -> None:
        """Pause before the next try, or raise what makes one pointless. None is a connection that just ended."""
        if failure and failure.code in _REPLACED:
            if aws.is_absent(failure) and not self._answered:  # it never was there, and S3 says that best itself
                raise failure
            raise self._replaced() from failure
        if failure and (failure.code not in _PASSING or tries >= TRIES):
            raise failure
        if tries >= TRIES:
            raise BundleError(f"{self._source}: the server ended {tries} connections without a byte")
        pause = min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2**tries) * random.uniform(0.5, 1)
        self._stopped.wait(min(pause, max(0.0, self._deadline - time.monotonic())))

    def _read(self, part: int, got: int) -> Iterator[int]:
        """One ranged read from byte ``got`` of the part on; yields how many bytes of the part there are so far."""
        first, length = part * self._part, self._length(part)
        view = self._window[part % self._slots]
        pins = {"IfMatch": self._source.etag, "VersionId": self._source.version_id}
        response = self._client.get_object(
            Bucket=self._source.bucket,
            Key=self._source.key,
            Range=f"bytes={first + got}-{first + length - 1}",
            **{name: value for name, value in pins.items() if value is not None},
        )
        body = response["Body"]
        self._answered = True
        with self._lock:
            self._bodies[part] = body
        try:
            if self._stopped.is_set():  # too late for anyone to interrupt the reading
                return
            self._expect_range(response.get("ContentRange"), first + got, first + length - 1)
            with self._lock:
                self._freed.wait_for(functools.partial(self._has_slot, part))
            while got < length and not self._stopped.is_set():
                count = body.readinto(view[got : min(got + STEP, length)])
                if not count:
                    return
                got += count
                yield got
        finally:
            with self._lock:
                del self._bodies[part]
            if got < length:
                body.close()  # a connection with bytes left in it cannot be used again

    def _has_slot(self, part: int) -> bool:
        return self._consumed > part - self._slots or self._stopped.is_set()

    def _expect_range(self, said: str | None, first: int, last: int) -> None:
        found = _TOTAL.fullmatch(said or "")
        if not found:
            raise BundleError(f"{self._source}: the server does not answer ranged reads (Content-Range: {said!r})")
        if int(found[3]) != self._source.size:
            if self._source.etag is None and self._source.version_id is None:
                raise BundleError(f"{self._source} has {found[3]} bytes; {self._source.size} were expected")
            raise self._replaced()
        if (int(found[1]), int(found[2])) != (first, last):
            raise BundleError(f"{self._source}: bytes {first}-{last} were asked for, {said} came")

    @property
    def _action(self) -> str:
        return "s3:GetObjectVersion" if self._source.version_id else "s3:GetObject"

    def _replaced(self) -> BundleError:
        return BundleError(f"{self._source} was replaced or deleted while it was read", remedy="run again")


_this_thread = threading.local()


class _Stopped(Exception):
    pass


def _expect_going_on(**_: object) -> None:
    """Keep botocore from trying again on behalf of a reader that has gone. It asks before each try."""
    stopped: threading.Event | None = getattr(_this_thread, "stopped", None)
    if stopped and stopped.is_set():
        raise _Stopped


def late(name: str, done: int, size: int) -> BundleError:
    """The error for a pull that outlives its deadline."""
    return BundleError(f"{name} was not pulled in time: {done} of {size} bytes had come", remedy="run again")


def _interrupt(body: Any) -> None:
    """Wake a thread that waits in ``body.readinto``: closing would not, shutting the socket down does."""
    raw: Any = getattr(body, "_raw_stream", None)
    with contextlib.suppress(Exception):  # urllib3 before 2.3 has no shutdown; the thread then ends at its timeout
        raw.shutdown()
