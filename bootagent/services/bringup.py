"""Services brought up in order: each once those it comes after are healthy, and watched until it is healthy itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from threading import Event
from typing import Protocol, TypeVar

from bootagent.errors import MachineError, ServiceError
from bootagent.machine import Machine, Note
from bootagent.services import boot_order, runit, servicedir, takedown
from bootagent.services.reload import Reload
from bootagent.services.servicedir import LogEnd, ServiceDirectory

#: A check must pass on so many looks in a row, and on every look of this part of the time it is to be up.
LOOKS = 3
POLL_SECONDS = 0.05
#: How soon a check that has failed is tried again, and when to say that something is waited for.
AGAIN_SECONDS = 0.25
LONG_SECONDS = 5.0


class Wanted(Protocol):
    """A service that is to run. Times in seconds: how long it must stay up, and how long all of it may take."""

    @property
    def directory(self) -> ServiceDirectory:
        """Its service directory, with its log."""

    @property
    def stable_for(self) -> float:
        """How long one process must stay up."""

    @property
    def within(self) -> float:
        """How long its start may take."""

    @property
    def stop_within(self) -> float:
        """How long its stop may take."""

    def problem(self, machine: Machine) -> str | None:
        """Why its check does not pass, as a clause."""


AnyWanted = TypeVar("AnyWanted", bound=Wanted)


class Watch:
    """What has been seen of one service since it was told to start, or to take up a new release.

    It is healthy when one process has stayed up for ``stable_for`` seconds and its check has passed on three looks in a
    row, spread over a third of that time; on two where a check is so slow that they span all of it. One failure among
    them, or another process, and it begins anew. ``reload`` is there when it was told by a signal; ``kept`` is its
    process when it was not told anything, as nothing about it is new.
    """

    def __init__(self, wanted: Wanted, log_end: LogEnd, reload: Reload | None = None, kept: int = 0) -> None:
        self.wanted = wanted
        self.log_end = log_end
        self.reload = reload
        self._kept = kept
        self.healthy = False
        self.failed: str | None = None
        self.pid = reload.pid if reload else 0
        self._began = self._since = time.monotonic()
        self._told = False
        self._ends: set[float] = set()
        self._passed: list[float] = []
        self._has_passed = self._is_steady = False
        self._problem: str | None = None
        self._unfinished: str | None = None
        self._scanned_by = self._began + 3 * runit.SCAN_SECONDS
        self._deadline: float | None = None
        self._next_look = 0.0

    @property
    def name(self) -> str:
        """The service's name."""
        return self.wanted.directory.name

    def look(self, machine: Machine) -> None:
        """Look once; it may take as long as a check may."""
        now = time.monotonic()
        found = runit.status(self.wanted.directory.inner(machine))
        if found and not found.wants_up:  # a `down` file, or an order from before
            self.wanted.directory.start(machine)
        if found and self._deadline is None:  # its own time counts from the moment runit has it
            self._deadline = now + boot_order.start_within(self.wanted.within, self.wanted.stable_for)
        self._follow(found, now)
        # Those who have just come up get their time, but for what the looks themselves take.
        if self.pid and now - self._since >= self.wanted.stable_for * (1 - 1 / LOOKS) and now >= self._next_look:
            self._check(machine)
        if now - self._began > LONG_SECONDS and not self.healthy and not self._told:
            machine.tell(Note(f"waiting for {self.name} to be healthy", {"because": self._why()}))
            self._told = True
        if self._deadline is not None and now > self._deadline and not self.healthy:
            self.failed = self._why()

    def _follow(self, found: runit.Status | None, now: float) -> None:
        pid = found.pid if found and found.state == "run" else 0
        if pid != self.pid:
            self.pid, self._since, self._passed, self._is_steady = pid, now, [], False
            self.reload = None  # it did not outlive the signal: runsv starts it, like any other
        if found and not pid and found.wants_up:
            self._ends.add(found.since)  # runsv waits a second between two of them, so that each is seen
        if self.reload:
            self.reload.look()

    def _check(self, machine: Machine) -> None:
        problem = self.wanted.problem(machine)
        inner = self.wanted.directory.inner(machine)
        again, now, stable_for = runit.status(inner), time.monotonic(), self.wanted.stable_for
        if problem or again is None or again.pid != self.pid:
            self._problem = problem or self._problem
            self._passed, self._is_steady, self._next_look = [], False, now + AGAIN_SECONDS
            return
        self._passed.append(now)
        self._has_passed = True
        self._next_look = now + stable_for / LOOKS / (LOOKS - 1)
        looks, span = len(self._passed), now - self._passed[0]
        enough = looks >= LOOKS or (looks > 1 and span >= stable_for)
        self._is_steady = enough and now - self._since >= stable_for
        self._unfinished = self.reload.unfinished(inner, stable_for) if self.reload else None
        self.healthy = self._is_steady and self._unfinished is None
        if self._is_steady and self.reload and self.reload.came_to_nothing():
            self.failed = self._why()

    @property
    def wants_restart(self) -> str | None:
        """Why what failed may do better when it is started anew, as a clause; None when it has been, or will not."""
        if self.reload and self._is_steady:
            return "its reload came to nothing"  # nobody knows which release answers
        return "it does not work any more" if self._kept and self._kept == self.pid else None

    def is_unseen(self) -> bool:
        """Whether runit has had time enough to notice the service, and has not."""
        return self._deadline is None and time.monotonic() > self._scanned_by

    def _why(self) -> str:
        if len(self._ends) > 1:
            return f"it crashed {len(self._ends)} times"
        if not self.pid:
            return "it ended at once" if self._ends else "it did not start"
        if self._is_steady:
            return f"it answers, but {self._unfinished}"
        if self._has_passed and self._problem:
            return f"its check does not keep passing: {self._problem}"
        return self._problem or f"it was not up for {self.wanted.stable_for:g} s"


def bring_up(
    machine: Machine,
    wanted: Mapping[str, AnyWanted],
    after: Mapping[str, Collection[str]],
    begin: Callable[[AnyWanted], Watch | None],
    done: Callable[[AnyWanted], None],
) -> None:
    """Begin each service once all it comes after are healthy; those that wait for nothing, side by side.

    ``after`` says by name what comes before. ``begin`` has one started and says how it is watched; None: there is
    nothing to do. ``done`` hears of each that is healthy. Raises ServiceError once one is not, and MachineError.
    """
    order = TopologicalSorter({name: after.get(name, ()) for name in wanted})
    order.prepare()
    given_up = Event()
    failures: list[BaseException] = []
    left = set(wanted)
    with ThreadPoolExecutor(max(1, len(wanted))) as pool:
        going: dict[Future[None], str] = {}
        try:
            while going or (order.is_active() and not failures):
                for name in () if failures else order.get_ready():
                    left.discard(name)
                    going[pool.submit(_see_through, machine, wanted[name], begin, done, given_up)] = name
                for future in wait(going, return_when=FIRST_COMPLETED).done:
                    name = going.pop(future)
                    if error := future.exception():
                        failures.append(error)
                        given_up.set()
                    else:
                        order.done(name)
        finally:  # whatever ends this ends them all
            given_up.set()
    if failures:
        raise _joined(failures, [f"{name} (after {', '.join(sorted(after[name]))})" for name in sorted(left)])


def _see_through(
    machine: Machine,
    one: AnyWanted,
    begin: Callable[[AnyWanted], Watch | None],
    done: Callable[[AnyWanted], None],
    given_up: Event,
) -> None:
    """One service, from its beginning until it is healthy, or all are given up."""
    watch = begin(one)
    while watch and not watch.healthy:
        watch.look(machine)
        if watch.failed and watch.wants_restart:
            watch = _restarted(machine, watch)
        elif watch.failed:
            tail = servicedir.log_tail(machine, one.directory.log, since=watch.log_end)
            raise ServiceError(f"service {watch.name} is not healthy after {one.within:g} s: {watch.failed}", tail=tail)
        if watch.is_unseen():
            raise MachineError(
                f"no runsv took up {watch.name}: is runsvdir watching {one.directory.service_dir}?",
                remedy="start runit",
            )
        if not watch.healthy and given_up.wait(POLL_SECONDS):
            return
    if watch:
        machine.tell(Note(f"{watch.name} is healthy", {"pid": watch.pid}))
        done(one)


def _restarted(machine: Machine, watch: Watch) -> Watch:
    """It is stopped and started, and watched anew."""
    one = watch.wanted
    machine.tell(Note(f"{watch.name} is restarted, as {watch.wants_restart}", {"because": watch.failed}))
    takedown.end(machine, one.directory.outer(machine), one.stop_within)
    one.directory.start(machine)
    return Watch(one, watch.log_end)


def _joined(failures: list[BaseException], left: list[str]) -> BaseException:
    """One error for all that went wrong; ``left`` are those not begun, and why."""
    unhealthy = [error for error in failures if isinstance(error, ServiceError)]
    if len(unhealthy) < len(failures):
        return next(error for error in failures if not isinstance(error, ServiceError))
    sentence = "; ".join(error.sentence for error in unhealthy)
    if left:
        sentence += f"; not begun: {', '.join(left)}"
    return ServiceError(sentence, tail="\n".join(error.tail for error in unhealthy if error.tail))
