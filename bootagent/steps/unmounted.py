"""What this agent has mounted, taken away."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent import fstab, mounted, mounts, nfs, processes
from bootagent.deadline import NO_HURRY, Deadline
from bootagent.errors import BootagentError, MachineError
from bootagent.machine import Machine, Note
from bootagent.mounts import Mount

#: How long an NFS server has to answer before its mount is taken away without it.
PROBE_SECONDS = 5.0
#: Of those who use a mount, so many are named.
_MOST_NAMED = 5


@dataclass(frozen=True)
class Unmounted:
    """Nothing that this agent has mounted is mounted; unless ``keep_fstab``, nothing has a line in its block there.

    What others have mounted is left alone. A busy mount is waited for, for ``within`` seconds, or as long as ``until``
    leaves. With ``keep_fstab`` the next boot mounts it all again.
    """

    within: float
    keep_fstab: bool
    until: Deadline = NO_HURRY

    def __str__(self) -> str:
        return "unmount what bootagent has mounted" + ("" if self.keep_fstab else f", and take it out of {fstab.PATH}")

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether it is so. Raises BootagentError when our block in fstab is damaged."""
        return not mounted.ours(machine) and not self._lines(machine)

    def apply(self, machine: Machine) -> None:
        """Unmount, the last one first. Raises MachineError that names each that is in use, and by whom."""
        problems: dict[str, str] = {}
        while left := [mount for mount in mounted.ours(machine) if mount.point not in problems]:
            mount = left[-1]
            blocked = any(point.startswith(f"{mount.point}/") for point in problems)
            try:
                self._take_away(machine, mount, 0.0 if blocked else self.until.grant(self.within))
            except MachineError as error:
                problems[mount.point] = str(error)
        try:
            if points := self._lines(machine):
                fstab.update(machine, (), points)
                fstab.tell_systemd(machine)
        except BootagentError as error:
            problems[fstab.PATH] = str(error)
        if problems:
            raise MachineError("; ".join(problems.values()))

    def _lines(self, machine: Machine) -> tuple[str, ...]:
        """The mountpoints whose lines are to go: not of what is mounted yet."""
        if self.keep_fstab:
            return ()
        still = {mount.point for mount in mounted.ours(machine)}
        lines = fstab.current(machine)
        return tuple(entry.point for entry in lines if mounts.place(machine, entry.point) not in still)

    def _take_away(self, machine: Machine, mount: Mount, within: float) -> None:
        point = "/" + mount.point.removeprefix(mounts.place(machine, "/")).lstrip("/")
        if nfs.is_nfs(mount) and not _answers(machine, point, self.until.grant(PROBE_SECONDS)):
            machine.tell(Note(f"{mount.source} is silent: {point} is taken away without it", {}))
            mounts.unmount(machine, point, lazy=True)
            return
        if users := _users(mount):
            machine.tell(Note(f"waiting for {point} to be free", {"held": users, "within": within}))
        try:
            mounts.unmount(machine, point, busy_within=within)
        except mounts.Busy as error:
            said = _users(mount) or "it is in use"
            raise MachineError(f"cannot unmount {point}: {said}", remedy="end that, and stop again") from error


def _answers(machine: Machine, point: str, within: float) -> bool:
    """Whether the server says anything at all; an error is an answer."""
    try:
        mounts.probe(machine, point, within)
    except mounts.Silent:
        return False
    except MachineError:
        pass
    return True


def _users(mount: Mount) -> str:
    """Who holds a mount, as a clause; empty when nobody can be seen to."""
    found = [str(process) for process in processes.that_use(mount.point)]
    inside = [one.point for one in mounts.table() if one.parent == mount.id]
    said = [f"it is in use by {', '.join(found[:_MOST_NAMED])}"] if found else []
    said += [f"mounted in it: {', '.join(inside[:_MOST_NAMED])}"] if inside else []
    return "; ".join(said)
