"""Takes services down, several of them in the reverse of the order in which they were started; they stay installed."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bootagent.deadline import NO_HURRY, Deadline, cut
from bootagent.machine import Identity, Machine, Note
from bootagent.services import boot_order, leftovers, runit
from bootagent.turns import turns

#: A service that runsv finds with it is not started: runsv(8). The next run takes it away.
DOWN = "down"
FINISH_SECONDS = 5.0


def take_down(
    machine: Machine,
    definitions: str,
    within: Mapping[str, float],
    after: Mapping[str, Collection[str]],
    until: Deadline = NO_HURRY,
) -> None:
    """TERM to all of a turn at once, KILL to those that take longer than they may.

    ``within`` says of each service directory how many seconds that is, which ``until`` may cut short; ``after`` what it
    was started after.
    """
    root = machine.real(definitions)
    going = list(reversed(turns({name: after.get(name, ()) for name in within})))
    with ThreadPoolExecutor(max(1, len(within))) as pool:
        for index, names in enumerate(going):
            rest = sum(max(within[name] for name in others) for others in going[index + 1 :])
            left = until.before(until.later + rest)
            list(pool.map(lambda name, left=left: _take(machine, root / name / "service", within[name], left), names))


def end(machine: Machine, outer: Path, within: float) -> None:
    """Stop one service and whatever it leaves behind; ``outer`` is root's directory of it. Each may take as long."""
    inner = outer / "service"
    if runit.is_supervised(inner):
        _stop(machine, inner, within)
    leftovers.end(machine, outer, within)


def is_down(inner: Path) -> bool:
    """Whether a service has no process, and will not be given one."""
    found = runit.status(inner)
    if found:
        return not found.pid and not found.wants_up
    return not inner.is_dir() or (inner / DOWN).exists()


def _take(machine: Machine, inner: Path, wanted: float, until: Deadline) -> None:
    boot_order.forget(machine, inner.parent.name)
    if not runit.is_supervised(inner) and inner.is_dir():
        machine.write(inner / DOWN, b"")  # runsvdir may be about to find it
    if runit.is_supervised(inner):
        within = until.grant(wanted)
        _stop(machine, inner, within, cut(within, wanted))


def _stop(machine: Machine, inner: Path, within: float, shortened: str = "") -> None:
    """Stop what runsv runs, as its user; ``shortened`` is what is to be said of ``within``."""
    identity = machine.identity_of((inner / "supervise").stat().st_uid)
    runit.stop(machine, inner, within=within, identity=identity, cut=shortened)
    _end_finish(machine, inner, identity)


def _end_finish(machine: Machine, inner: Path, identity: Identity | None) -> None:
    """Kill a finish script that hangs: sv has no order for it. runsv may start it again, a few times."""
    deadline = time.monotonic() + FINISH_SECONDS
    if (found := runit.status(inner)) and found.state == "finish":
        machine.tell(Note(f"the finish script of {inner.parent.name} did not end, and is killed"))
    while (found := runit.status(inner)) and found.state == "finish" and time.monotonic() < deadline:
        # As the service's user: the process id is what he says it is.
        kill = ["sh", "-c", 'kill -9 "$1"', "sh", str(found.pid)]
        machine.run(kill, timeout=10, identity=identity, check=False)
        time.sleep(0.3)
