"""An NFS export mounted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from urllib.parse import quote

from bootagent import mounts, nfs
from bootagent.errors import BootagentError, MachineError
from bootagent.machine import Machine
from bootagent.mounts import Mount

PROBE_SECONDS = 10.0
#: Where an export is mounted to see that it answers, before it takes the place of another. Only root gets there.
ASIDE = "/run/bootagent/nfs"
#: However late it is, a mount gets this long.
LEAST_SECONDS = 10.0


@dataclass(frozen=True)
class MountedNfs:
    """``server:export`` is mounted at ``mountpoint``, and answers. ``options`` are added to the usual ones."""

    server: str
    export: str
    mountpoint: str
    options: tuple[str, ...]
    within: float

    def __str__(self) -> str:
        return f"mount {self.server}:{self.export} at {self.mountpoint}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether it is. Raises MachineError when it is mounted and the server is silent.

        A mount that answers with an error, ESTALE say, does so for ever: it is to be mounted anew.
        """
        found = mounts.at(machine, self.mountpoint)
        if found is None or not nfs.is_shown_by(machine, found, self.server, self.export, self.options):
            return False
        try:
            mounts.probe(machine, self.mountpoint, min(PROBE_SECONDS, self.within))
        except mounts.Silent as error:
            said = f"{self.server}:{self.export} is mounted at {self.mountpoint}, and the server is silent"
            raise MachineError(f"{said}: {error.sentence}", remedy="start the server, or let it be reached") from error
        except MachineError:
            return False
        return True

    def apply(self, machine: Machine) -> None:
        """Mount it, in place of what was there of NFS once it is known to answer.

        Raises MachineError when the deadline has passed, BootagentError when something else is mounted there,
        or when others than root could move the mountpoint.
        """
        deadline = time.monotonic() + self.within
        found = mounts.at(machine, self.mountpoint)
        if found and not nfs.is_nfs(found):
            sentence = f"{found.source} ({found.filesystem}) is mounted at {self.mountpoint}"
            raise BootagentError(sentence, remedy="unmount it, or name another mountpoint")
        # While the server is away, the path is walked again and again.
        mounts.refuse_movable(machine, self.mountpoint, f"{self.server}:{self.export}")
        if found is None:
            self._mount(machine, self.mountpoint, deadline)
            return
        aside = f"{ASIDE}/{quote(self.mountpoint, safe='')}"
        try:
            self._mount_aside(machine, aside, found, deadline)
            _clear(machine, self.mountpoint)
            self._mount(machine, self.mountpoint, deadline)
        finally:
            _clear(machine, aside)

    def _mount_aside(self, machine: Machine, aside: str, old: Mount, deadline: float) -> None:
        """What cannot be mounted does not take the place of what may still be in use."""
        machine.make_directory(machine.real(ASIDE), mode=0o700)
        _clear(machine, aside)
        try:
            self._mount(machine, aside, deadline)
        except MachineError as error:
            said = f"{old.source} stays mounted at {self.mountpoint}: {error.sentence}"
            raise MachineError(said, remedy=error.remedy) from error

    def _mount(self, machine: Machine, point: str, deadline: float) -> None:
        mounts.make_mountpoint(machine, point)
        left = max(LEAST_SECONDS, deadline - time.monotonic())
        nfs.mount(machine, self.server, self.export, point, self.options, min(left, self.within))


def _clear(machine: Machine, point: str) -> None:
    """Take away the NFS mounts at a logical path, lazily: what runs from them goes on, and none can hold us up."""
    while (found := mounts.at(machine, point)) and nfs.is_nfs(found):
        mounts.unmount(machine, point, lazy=True)
