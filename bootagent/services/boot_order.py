"""The order of services at a boot, when runsvdir starts all of them at once, before the agent has said a word.

    /etc/sv/APP.NAME/wait            how often to look; only what comes after others has it
    /run/bootagent/begun/APP.NAME    the agent has begun it in this boot: what it comes after was healthy

So what comes after others waits for the agent, which alone knows whether they are healthy. The agent may be held up,
or be gone, and a service that runs is worth more than the order: none waits longer than the others may take to start.
Neither file is part of what the service is made of: it is not restarted for them.
"""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from bootagent.machine import Machine
from bootagent.turns import turns

WAIT = "wait"
BEGUN = "/run/bootagent/begun"
LOOK_SECONDS = 0.5


def start_within(within: float, stable_for: float) -> float:
    """How long a start may take at most: no service is healthy before it has been up for ``stable_for`` seconds."""
    return max(within, stable_for + 1)


def waits(
    within: Mapping[str, float], after: Mapping[str, Collection[str]], *, before: float = 0.0
) -> dict[str, float]:
    """For each service the seconds that those it comes after may take to start, one after the other; 0: there is none.

    ``within`` says how long each may take, ``before`` how long all that comes before any of them.
    """
    found: dict[str, float] = {}
    for names in turns({name: after.get(name, ()) for name in within}):
        for name in names:
            found[name] = max([before, *(found[one] + within[one] for one in after.get(name, ()) if one in within)])
    return found


def lines(machine: Machine, name: str, directory: str) -> list[str]:
    """Lines of a shell script, run by root, that wait as long as the service directory says."""
    looks = shlex.quote(f"{directory}/{WAIT}")
    begun = shlex.quote(str(_begun(machine, name)))
    return [
        f"left=0; [ ! -e {looks} ] || read -r left <{looks}",
        f'while [ "$left" -gt 0 ] && [ ! -e {begun} ]; do sleep {LOOK_SECONDS}; left=$((left - 1)); done',
    ]


def is_noted(outer: Path, seconds: float) -> bool:
    """Whether the service of root's directory ``outer`` waits for so long, and no longer."""
    try:
        return (outer / WAIT).read_bytes() == _looks(seconds)
    except FileNotFoundError:
        return not seconds


def note(machine: Machine, outer: Path, seconds: float) -> None:
    """Have it wait for so long, and no longer, at the next boot."""
    if is_noted(outer, seconds):
        return
    if seconds:
        machine.write(outer / WAIT, _looks(seconds))
    else:
        (outer / WAIT).unlink()


def begin(machine: Machine, name: str) -> None:
    """Let a service begin, in this boot, whenever it is started."""
    place = _begun(machine, name)
    machine.make_directory(place.parent, mode=0o700)
    place.touch()


def forget(machine: Machine, name: str) -> None:
    """It has been stopped: it is to wait for its turn again."""
    place = _begun(machine, name)
    place.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others are in it
        place.parent.rmdir()


def _begun(machine: Machine, name: str) -> Path:
    return machine.real(BEGUN) / name


def _looks(seconds: float) -> bytes:
    return b"%d\n" % math.ceil(seconds / LOOK_SECONDS)
