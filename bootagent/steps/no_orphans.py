"""Nothing is left of services that are down: no child that outlived its parent, nothing that made itself a daemon."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bootagent import processes
from bootagent.deadline import NO_HURRY, Deadline
from bootagent.errors import ServiceError
from bootagent.machine import Machine, Note
from bootagent.processes import Process
from bootagent.services import runit, servicedir

#: How long KILL may take to have its effect.
KILLED_SECONDS = 5.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class NoOrphans:
    """No process has the environment of one of these services, but what its runsv has started and runs.

    ``services`` are the names of their directories below ``definitions``, each with the seconds it may take.
    A process that has cleared its environment is not known to be theirs. ``until`` may leave them less time.
    """

    app: str
    definitions: str
    services: tuple[tuple[str, float], ...]
    until: Deadline = NO_HURRY

    def __str__(self) -> str:
        return f"end what the services of {self.app} have left behind"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether there is none."""
        return not any(self._orphans(machine, name) for name, _ in self.services)

    def apply(self, machine: Machine) -> None:
        """TERM, and KILL to those that take longer than their service may. Raises ServiceError for what stays."""
        with ThreadPoolExecutor(max(1, len(self.services))) as pool:
            left = list(pool.map(lambda one: self._killed(machine, *one), self.services))
        if any(left):
            raise ServiceError(f"left behind, and even KILL does not end it: {', '.join(filter(None, left))}")

    def _killed(self, machine: Machine, name: str, within: float) -> str:
        """End what one service has left behind; who is left even so."""
        if not self._end(machine, name, "TERM", self.until.grant(within)):
            return ""
        still = self._end(machine, name, "KILL", KILLED_SECONDS)
        return f"{_shown(still)} of {name}" if still else ""

    def _end(self, machine: Machine, name: str, signal: str, within: float) -> list[Process]:
        """Send a signal to all there are, and to those they start meanwhile; who is left after ``within`` seconds."""
        deadline, told = time.monotonic() + within, set[int]()
        while (left := self._orphans(machine, name)) and time.monotonic() < deadline:
            if not told:  # of those who come later nothing is said: they may be many
                machine.tell(Note(f"{signal} to what {name} left behind: {_shown(left)}"))
            for process in [one for one in left if one.pid not in told]:
                _send(machine, process, signal)
                told.add(process.pid)
            time.sleep(_POLL_SECONDS)
        return left

    def _orphans(self, machine: Machine, name: str) -> list[Process]:
        outer = machine.real(self.definitions) / name
        found = processes.with_variable(servicedir.VARIABLE, str(outer))
        supervisor = runit.status(outer)
        known = processes.all()
        if supervisor and supervisor.pid:
            found = [one for one in found if not processes.is_below(one, supervisor.pid, known)]
        return found


def _send(machine: Machine, process: Process, signal: str) -> None:
    # As the process's user: by now its number may be another's.
    words = ["sh", "-c", 'kill -s "$1" "$2"', "sh", signal, str(process.pid)]
    machine.run(words, timeout=10, identity=servicedir.identity_of(machine, process.uid), check=False)


def _shown(found: list[Process]) -> str:
    return ", ".join(map(str, found))
