"""A release's service directories, copied out of an NFS mount."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bootagent import beneath, mounts
from bootagent.errors import CommandError, MachineError
from bootagent.machine import Machine

COPY_SECONDS = 60.0


@dataclass(frozen=True)
class CopiedScripts:
    """``place`` holds what ``origin`` does; nothing, when that is absent.

    The copying is done by a child, as the app's user: a server that dies meanwhile hangs that child and not the agent.
    """

    origin: str
    place: str
    user: str
    group: str | None

    def __str__(self) -> str:
        return f"copy {self.origin} to {self.place}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether names, modes and contents are the same."""
        place = machine.real(self.place)
        if not place.is_dir():
            return False
        fresh = self._copied(machine, ".look")
        try:
            return _content(fresh) == _content(place)
        finally:
            machine.remove_tree(fresh)

    def apply(self, machine: Machine) -> None:
        """Copy it anew. Raises MachineError when the server does not answer in time."""
        fresh = self._copied(machine, ".fresh")
        place = machine.real(self.place)
        machine.remove_tree(place)
        fresh.rename(place)

    def _copied(self, machine: Machine, suffix: str) -> Path:
        place = machine.real(self.place)
        fresh = place.with_name(f"{place.name}{suffix}")
        machine.make_directory(place.parent)
        machine.remove_tree(fresh)
        with beneath.directory(place.parent, fresh.name, create=True, owner=machine.identity(self.user, self.group)):
            pass
        origin = mounts.place(machine, self.origin)
        identity = machine.identity(self.user, self.group)
        try:
            if not self._is_there(machine, origin):
                return fresh
            # Into where it stands: the user need not be able to walk there.
            machine.run(
                ["cp", "--recursive", "--no-dereference", "--preserve=mode,timestamps", "--", f"{origin}/.", "."],
                timeout=COPY_SECONDS,
                identity=identity,
                cwd=fresh,
            )
        except CommandError as error:
            last = error.tail.strip().splitlines()[-1:]
            remedy = f"let {self.user} read it on the server" if "denied" in error.tail else None
            raise MachineError(": ".join([error.sentence, *last]), remedy=remedy) from error
        return fresh

    def _is_there(self, machine: Machine, origin: str) -> bool:
        identity = machine.identity(self.user, self.group)
        found = machine.run(["test", "-d", origin], timeout=COPY_SECONDS, identity=identity, check=False)
        return found.returncode == 0


def _content(root: Path) -> dict[str, tuple[bytes, int]]:
    return {path: beneath.read(root, path) for path, _ in beneath.files(root, ".", without="supervise")}
