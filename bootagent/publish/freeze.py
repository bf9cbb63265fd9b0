"""A filesystem held still for a moment, and let go whatever happens to whoever asked for it.

A frozen filesystem stops every process that writes to it until it is thawed, by hand if need be. So it is frozen by a
child that thaws it when its standard input ends, which it does when we are killed, or when its time is up.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Iterator

from bootagent.errors import CommandError, MachineError, plain
from bootagent.machine import Machine, Note

#: How long freezing may take: it writes out what is not yet on the disk.
FREEZE_SECONDS = 120.0
#: How long the filesystem may be held.
HOLD_SECONDS = 30.0
THAW_SECONDS = 60.0

#: Of util-linux's fsfreeze(8). Signals are ignored, a closed pipe's as well: nothing may keep it from the last line.
#: What could not be frozen is not thawed: somebody else may hold it.
_GUARDIAN = """\
trap '' HUP INT TERM PIPE
fsfreeze --freeze "$1" || exit 1
echo frozen
timeout --signal=KILL "$2" cat >/dev/null
exec fsfreeze --unfreeze "$1"
"""


class Hold:
    """A filesystem that is frozen now."""

    def __init__(self, guardian: subprocess.Popen[bytes]) -> None:
        self._guardian = guardian
        self._since = time.monotonic()
        self.seconds = 0.0
        self.held = True

    def let_go(self) -> None:
        """Thaw. Sets ``seconds``, and ``held``: whether it had been frozen until now."""
        self.held = self._guardian.poll() is None and time.monotonic() - self._since < HOLD_SECONDS
        if self._guardian.stdin:
            with contextlib.suppress(OSError):
                self._guardian.stdin.close()
        self._guardian.wait(THAW_SECONDS)
        self.seconds = time.monotonic() - self._since


@contextlib.contextmanager
def frozen(machine: Machine, point: str) -> Iterator[Hold]:
    """Hold the filesystem mounted at the real path ``point`` until the end of the block, or of ``HOLD_SECONDS``.

    Raises MachineError when it cannot be frozen, was not held to the end, or cannot be thawed.
    """
    guardian = machine.start(
        ["sh", "-c", _GUARDIAN, "sh", point, f"{HOLD_SECONDS:g}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        own_group=True,
    )
    try:
        _wait_until_frozen(guardian, point)
        hold = Hold(guardian)
        machine.tell(Note("frozen", {"mountpoint": point}))
        try:
            yield hold
        finally:
            _thaw(machine, hold, guardian, point)
        if not hold.held:
            raise MachineError(
                f"{point} could be held for {HOLD_SECONDS:g} s only, which was not enough", remedy="try again"
            )
    finally:
        for pipe in (guardian.stdin, guardian.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


def _wait_until_frozen(guardian: subprocess.Popen[bytes], point: str) -> None:
    assert guardian.stdout
    said = b""
    deadline = time.monotonic() + FREEZE_SECONDS
    while b"frozen\n" not in said:
        if not select.select([guardian.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            # It ends by itself, and thaws, once its standard input is closed.
            raise MachineError(f"cannot freeze {point}: it still writes after {FREEZE_SECONDS:g} s")
        more = os.read(guardian.stdout.fileno(), 4096)
        if not more:
            guardian.wait(THAW_SECONDS)
            why = plain(said.decode(errors="replace")).strip().removeprefix("fsfreeze: ") or "fsfreeze failed"
            raise MachineError(f"cannot freeze {point}: {why}", remedy="root may, where no one else has frozen it")
        said += more


def _thaw(machine: Machine, hold: Hold, guardian: subprocess.Popen[bytes], point: str) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        hold.let_go()
    if guardian.returncode != 0:  # somebody killed it
        hold.held = False
        try:
            machine.run(["fsfreeze", "--unfreeze", point], timeout=THAW_SECONDS)
        except CommandError as error:
            raise MachineError(f"cannot thaw {point}: {error}", remedy=f"fsfreeze --unfreeze {point}") from error
    machine.tell(Note("thawed", {"mountpoint": point, "seconds": round(hold.seconds, 3)}))
