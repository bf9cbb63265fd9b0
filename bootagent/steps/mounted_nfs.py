"""An NFS export mounted."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent import mounts, nfs
from bootagent.errors import BootagentError, MachineError
from bootagent.machine import Machine

PROBE_SECONDS = 10.0


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
        """Whether it is. Raises MachineError when it is mounted and the server does not answer."""
        found = mounts.at(machine, self.mountpoint)
        if found is None or not nfs.is_shown_by(found, self.server, self.export, self.options):
            return False
        try:
            mounts.probe(machine, self.mountpoint, min(PROBE_SECONDS, self.within))
        except MachineError as error:
            said = f"{self.server}:{self.export} is mounted at {self.mountpoint}, and the server is silent"
            raise MachineError(f"{said}: {error.sentence}", remedy="start the server, or let it be reached") from error
        return True

    def apply(self, machine: Machine) -> None:
        """Mount it, in place of another export that was there. Raises MachineError when the deadline has passed."""
        found = mounts.at(machine, self.mountpoint)
        if found and found.filesystem not in ("nfs", "nfs4"):
            sentence = f"{found.source} ({found.filesystem}) is mounted at {self.mountpoint}"
            raise BootagentError(sentence, remedy="unmount it, or name another mountpoint")
        if found:  # lazily: what runs from it goes on, and a dead server cannot hold us up
            mounts.unmount(machine, self.mountpoint, lazy=True)
        mounts.make_mountpoint(machine, self.mountpoint)
        nfs.mount(machine, self.server, self.export, self.mountpoint, self.options, self.within)
