"""What a service leaves behind when it is down: children that outlive their parent, and what made itself a daemon."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bootagent import processes
from bootagent.machine import Machine, Note
from bootagent.processes import Process
from bootagent.services import runit

#: In the environment of all that a service starts, the real path of its directory: so what it left behind is known.
VARIABLE = "BOOTAGENT_SERVICE"
#: How long KILL may take to have its effect.
KILLED_SECONDS = 5.0
_POLL_SECONDS = 0.1


def find(outer: Path) -> list[Process]:
    """The processes with the environment of a service, but for what its runsv has started and runs.

    ``outer`` is its directory. A process that has cleared its environment is not known to be the service's.
    """
    found = processes.with_variable(VARIABLE, str(outer))
    supervisor = runit.status(outer)
    known = processes.all()
    if supervisor and supervisor.pid:
        found = [one for one in found if not processes.is_below(one, supervisor.pid, known)]
    # A service may have asked for this very run.
    return [one for one in found if not processes.is_below(known[os.getpid()], one.pid, known)]


def end(machine: Machine, outer: Path, within: float) -> list[Process]:
    """TERM, and after ``within`` seconds KILL; who is left even so."""
    return _send(machine, outer, "KILL", KILLED_SECONDS) if _send(machine, outer, "TERM", within) else []


def shown(found: list[Process]) -> str:
    """For people."""
    return ", ".join(map(str, found))


def _send(machine: Machine, outer: Path, signal: str, within: float) -> list[Process]:
    """Send a signal to all there are, and to those they start meanwhile; who is left after ``within`` seconds."""
    deadline, told = time.monotonic() + within, set[int]()
    while (left := find(outer)) and time.monotonic() < deadline:
        if not told:  # of those who come later nothing is said: they may be many
            machine.tell(Note(f"{signal} to what {outer.name} left behind: {shown(left)}"))
        for process in [one for one in left if one.pid not in told]:
            # As the process's user: by now its number may be another's.
            words = ["sh", "-c", 'kill -s "$1" "$2"', "sh", signal, str(process.pid)]
            machine.run(words, timeout=10, identity=machine.identity_of(process.uid), check=False)
            told.add(process.pid)
        time.sleep(_POLL_SECONDS)
    return left
