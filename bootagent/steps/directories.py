"""The directories of a Capistrano layout."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePosixPath

from bootagent import beneath, footprint
from bootagent.errors import BootagentError
from bootagent.machine import Machine


@dataclass(frozen=True)
class Directories:
    """``deploy_to`` with ``releases`` and ``shared``, and in that the linked directories and linked files' parents.

    ``roots``: releases are mounted there, so ``deploy_to`` and ``releases`` stay root's. Whoever may rename a directory
    would else decide where root mounts.
    """

    deploy_to: str
    linked_dirs: tuple[str, ...]
    linked_files: tuple[str, ...]
    user: str
    group: str | None
    roots: bool = False

    def __str__(self) -> str:
        return f"make {self.deploy_to} with releases/ and shared/"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether all of them are there, and none is still root's where it should be the app's."""
        root = machine.real(self.deploy_to)
        owner = machine.identity(self.user, self.group)
        if (root / "current").is_dir() and not (root / "current").is_symlink():
            return False
        places = {path: root / path for path in (".", *self._wanted())}
        return all(
            place.is_dir() and not (owner and (place.stat().st_uid == 0) != self._is_roots(path))
            for path, place in places.items()
        )

    def apply(self, machine: Machine) -> None:
        """Make those missing and give them to the app's user. Raises BootagentError where ``current`` is no link."""
        owner = machine.identity(self.user, self.group)
        root = machine.real(self.deploy_to)
        if (root / "current").is_dir() and not (root / "current").is_symlink():
            raise BootagentError(f"{self.deploy_to}/current is a directory, not a link", remedy="move it away")
        paths = (".", *self._wanted())
        footprint.note(machine, *(f"{self.deploy_to}/{path}".removesuffix("/.") for path in paths), until="reset")
        machine.make_directory(root.parent)
        for path in paths:
            if self._is_roots(path):
                with beneath.directory(root.parent, f"{root.name}/{path}", create=True) as held:
                    os.fchown(held, os.geteuid(), os.getegid())
                    os.fchmod(held, 0o755)
                continue
            # What is claimed on the way to a directory of the app must not be what root keeps.
            top, below = (root, path) if self.roots else (root.parent, f"{root.name}/{path}")
            with beneath.directory(top, below, create=True, owner=owner, claim=True):
                pass

    def _is_roots(self, path: str) -> bool:
        return self.roots and path in (".", "releases")

    def _wanted(self) -> list[str]:
        parents = {str(PurePosixPath(path).parent) for path in self.linked_files} - {"."}
        return ["releases", "shared", *(f"shared/{path}" for path in (*self.linked_dirs, *sorted(parents)))]
