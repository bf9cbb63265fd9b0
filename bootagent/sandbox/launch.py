"""A launch that the simulated autoscaling group waits for, answered beside the boot as it is in earnest."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator

from bootagent import journal, readiness
from bootagent.machine import Machine

#: The words of the command that answers the group; it tells people what it does.
ESCORT = ("run", "--escort", "launching", "--log", "text")
#: How long it has to answer once the run is over. A daemon would run again meanwhile; here there is one run.
ANSWER_SECONDS = 20.0
END_SECONDS = 10.0


@contextlib.contextmanager
def escorted(machine: Machine, start: Callable[..., subprocess.Popen[bytes]]) -> Iterator[None]:
    """Have the launch answered by what the run inside finds; ``start`` starts a bootagent command on the machine."""
    mark = machine.real(readiness.LAUNCHING)
    machine.make_directory(mark.parent)
    machine.write(mark, f"{journal.uptime()}\n".encode())
    escort = start(*ESCORT)
    try:
        yield
        with contextlib.suppress(subprocess.TimeoutExpired):
            escort.wait(ANSWER_SECONDS)
    finally:
        mark.unlink(missing_ok=True)
        _end(escort)


def _end(escort: subprocess.Popen[bytes]) -> None:
    escort.terminate()
    try:
        escort.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        escort.kill()
        escort.wait()
