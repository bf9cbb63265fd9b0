"""The directories of a Capistrano layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from bootagent import beneath
from bootagent.machine import Machine


@dataclass(frozen=True)
class Directories:
    """``deploy_to`` with ``releases`` and ``shared``, and in that the linked directories and linked files' parents."""

    deploy_to: str
    linked_dirs: tuple[str, ...]
    linked_files: tuple[str, ...]
    user: str
    group: str | None

    def __str__(self) -> str:
        return f"make {self.deploy_to} with releases/ and shared/"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether all of them are there."""
        root = machine.real(self.deploy_to)
        return all((root / path).is_dir() for path in self._wanted())

    def apply(self, machine: Machine) -> None:
        """Make those missing and give them to the app's user."""
        owner = machine.identity(self.user, self.group)
        root = machine.real(self.deploy_to)
        machine.make_directory(root, owner=owner)
        for path in self._wanted():
            with beneath.directory(root, path, create=True, owner=owner):
                pass

    def _wanted(self) -> list[str]:
        parents = {str(PurePosixPath(path).parent) for path in self.linked_files} - {"."}
        return ["releases", "shared", *(f"shared/{path}" for path in (*self.linked_dirs, *sorted(parents)))]
