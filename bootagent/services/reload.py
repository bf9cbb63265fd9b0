"""Whether a service that was told by a signal to take up a new release has done so, seen from outside."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path

from bootagent import processes
from bootagent.services import runit

#: How long the effect of a signal may be in coming; half of the time there is for all, if that is less.
EFFECT_SECONDS = 5.0
#: A process, and what tells the programs it has run apart.
Incarnation = tuple[int, bytes]


class Reload:
    """What a service does about a signal, seen from outside; to be made before the signal is sent.

    That its check passes proves little: what ran before may still be answering, while what was to take its place has
    died. So, if the signal has it start processes, or its own a new program, one of these must stay as long as the
    service itself must, and the children from before must be gone: while one is there, it may be the one that answers,
    and what is new may still be loading. If nothing of the kind is seen in the time that a signal's effect may take, it
    was all done in one process, and the check counts. What does the work now must not have its working directory in
    another release than ``home``: that one's files are what it finds, until they are pruned.
    """

    def __init__(self, pid: int, within: float, home: Path) -> None:
        self.pid = pid
        self._home = home
        self._effect_by = time.monotonic() + min(EFFECT_SECONDS, within / 2)
        self._before = _incarnations(pid)
        self._reaped_before = _reaped(pid)
        self._old = {one for one in self._before if one[0] != pid}
        self._since: dict[Incarnation, float] = {}
        self._started_any = False

    def look(self) -> None:
        """Take note of what is new."""
        now, found = time.monotonic(), _incarnations(self.pid)
        fresh = found - self._before
        self._old &= found
        self._since = {one: self._since.get(one, now) for one in fresh}
        # One that has died between two looks has left its parent something to count.
        self._started_any = self._started_any or bool(fresh) or _reaped(self.pid) != self._reaped_before

    def unfinished(self, inner: Path, seconds: float) -> str | None:
        """Why it is not over, as a clause; what it has started must have stayed for so many seconds."""
        now = time.monotonic()
        if runit.control_scripts(inner):
            return "its control script does not end"
        if not self._started_any:
            return self._astray(self._before) if now >= self._effect_by else "the signal shows no effect yet"
        if not any(now - since >= seconds for since in self._since.values()):
            return "what the signal had it start does not stay up"
        if self._old:
            return f"{len(self._old)} of its processes from before the signal still run"
        return self._astray(self._since)

    def came_to_nothing(self) -> bool:
        """Whether the signal has had its time, and all there is still works in another release."""
        had_its_time = not self._started_any and time.monotonic() >= self._effect_by
        return had_its_time and self._astray(self._before) is not None

    def _astray(self, found: Iterable[Incarnation]) -> str | None:
        """Who of these works in a release that is not the one to be, as a clause."""
        releases = self._home.parent
        for pid, _ in sorted(found):
            # A directory that is gone has " (deleted)" behind its name: proc_pid_cwd(5).
            with contextlib.suppress(OSError):
                cwd = Path(f"/proc/{pid}/cwd").readlink()
                if releases in cwd.parents and self._home not in (cwd, *cwd.parents):
                    return f"its process {pid} still works in {cwd}"
        return None


def _incarnations(pid: int) -> set[Incarnation]:
    """A process and all below it, each with what tells the programs it has run apart.

    The kernel puts random bytes at another place for every program it starts, and says so in ``auxv``: getauxval(3).
    """
    known = processes.all()
    found = set()
    for one in known.values():
        if processes.is_below(one, pid, known) and (vector := _auxiliary_vector(one.pid)):
            found.add((one.pid, vector))
    return found


def _reaped(pid: int) -> str:
    """The page faults of the children a process has waited for, as proc_pid_stat(5) counts them: cminflt."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[8]
    return ""


def _auxiliary_vector(pid: int) -> bytes:
    """Empty for a process that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/auxv").read_bytes()
    return b""
