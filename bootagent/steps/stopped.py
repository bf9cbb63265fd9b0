"""The services of one app are down, for now: what a machine about to go away wants."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bootagent.deadline import NO_HURRY, Deadline, cut
from bootagent.errors import ServiceError
from bootagent.machine import Identity, Machine, Note
from bootagent.services import runit, servicedir
from bootagent.turns import turns

#: A service that runsv finds with it is not started: runsv(8). The next run takes it away.
DOWN = "down"
FINISH_SECONDS = 5.0


@dataclass(frozen=True)
class Stopped:
    """No service of ``app`` runs. ``services`` are the names of their directories, each with the seconds it may take.

    They stay installed: a reboot, or the next run, starts them again. ``after`` says of services what they come after:
    these are stopped once they are down themselves. Where ``until`` leaves less time, each gets less.
    """

    app: str
    definitions: str
    services: tuple[tuple[str, float], ...]
    after: tuple[tuple[str, tuple[str, ...]], ...] = ()
    until: Deadline = NO_HURRY

    def __str__(self) -> str:
        return f"stop the services of {self.app} ({', '.join(name for name, _ in self.services)})"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether none of them has a process, or will be given one."""
        return not self._left(machine)

    def apply(self, machine: Machine) -> None:
        """TERM to all of a turn at once, KILL to those that take longer than they may. Raises ServiceError."""
        within, after = dict(self.services), dict(self.after)
        going = list(reversed(turns({name: after.get(name, ()) for name in within})))
        with ThreadPoolExecutor(max(1, len(within))) as pool:
            for index, names in enumerate(going):
                rest = sum(max(within[name] for name in others) for others in going[index + 1 :])
                until = self.until.before(self.until.later + rest)
                list(pool.map(lambda name, until=until: self._stop(machine, name, within[name], until), names))
        if left := self._left(machine):
            raise ServiceError(f"still running: {', '.join(left)}")

    def _left(self, machine: Machine) -> Sequence[str]:
        return [name for name, _ in self.services if not _is_down(self._inner(machine, name))]

    def _stop(self, machine: Machine, name: str, wanted: float, until: Deadline) -> None:
        inner = self._inner(machine, name)
        if not runit.is_supervised(inner) and inner.is_dir():
            machine.write(inner / DOWN, b"")  # runsvdir may be about to find it
        if runit.is_supervised(inner):
            identity = servicedir.identity_of(machine, (inner / "supervise").stat().st_uid)
            within = until.grant(wanted)
            runit.stop(machine, inner, within=within, identity=identity, cut=cut(within, wanted))
            _end_finish(machine, inner, identity)

    def _inner(self, machine: Machine, name: str) -> Path:
        return machine.real(self.definitions) / name / "service"


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


def _is_down(inner: Path) -> bool:
    found = runit.status(inner)
    if found:
        return not found.pid and not found.wants_up
    return not inner.is_dir() or (inner / DOWN).exists()
