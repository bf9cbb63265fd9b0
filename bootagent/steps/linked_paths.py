"""Capistrano's linked files and directories, and the REVISION file."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent import beneath, records
from bootagent.errors import BootagentError
from bootagent.machine import Machine


@dataclass(frozen=True)
class LinkedPaths:
    """In ``releases/NAME`` each linked path is a symbolic link to the same path in ``shared``, by its real name.

    ``fresh``: the release serves nobody yet, and what it brings in their place may go. So may what is on the volume of
    the record ``volume`` while that is as its snapshot has it.
    """

    deploy_to: str
    name: str
    files: tuple[str, ...]
    dirs: tuple[str, ...]
    user: str
    group: str | None
    fresh: bool
    volume: str | None = None

    def __str__(self) -> str:
        return f"link {', '.join((*self.files, *self.dirs))} of {self.deploy_to}/shared into releases/{self.name}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether every link is there and has something to point at."""
        root = machine.real(self.deploy_to)
        return all(
            beneath.read_link(root, f"releases/{self.name}/{path}") == self._target(machine, path)
            and (root / "shared" / path).exists()
            for path in (*self.files, *self.dirs)
        )

    def apply(self, machine: Machine) -> None:
        """Make them. Raises BootagentError for a file shared/ lacks, or for data in a release that serves."""
        root = machine.real(self.deploy_to)
        owner = machine.identity(self.user, self.group)
        replace = self.fresh or (self.volume is not None and records.is_pristine(machine, self.volume))
        for path in self.files:
            if not (root / "shared" / path).is_file():
                raise BootagentError(
                    f"linked file {self.deploy_to}/shared/{path} does not exist",
                    remedy='put it there, or say where it comes from: { path = "…", from = "…" }',
                )
        for path in (*self.files, *self.dirs):
            place, target = f"releases/{self.name}/{path}", self._target(machine, path)
            beneath.link(machine, root, place, target, owner=owner, replace=replace)

    def _target(self, machine: Machine, path: str) -> str:
        return str(machine.real(self.deploy_to) / "shared" / path)


@dataclass(frozen=True)
class RevisionFile:
    """``REVISION`` of a release names what it was made from, as in Capistrano."""

    deploy_to: str
    name: str
    revision: str
    user: str
    group: str | None

    def __str__(self) -> str:
        return f"write REVISION into releases/{self.name}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether it says so."""
        try:
            return beneath.read(machine.real(self.deploy_to), self._path)[0] == self._content
        except FileNotFoundError:
            return False

    def apply(self, machine: Machine) -> None:
        """Write it."""
        owner = machine.identity(self.user, self.group)
        beneath.write(machine.real(self.deploy_to), self._path, self._content, mode=0o644, owner=owner)

    @property
    def _path(self) -> str:
        return f"releases/{self.name}/REVISION"

    @property
    def _content(self) -> bytes:
        return f"{self.revision}\n".encode()
