"""The directories of a Capistrano layout."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bootagent import beneath, footprint
from bootagent.errors import BootagentError
from bootagent.machine import Identity, Machine


@dataclass(frozen=True)
class Directories:
    """``deploy_to`` with ``releases`` and ``shared``, and in that the linked directories and linked files' parents.

    ``roots``: releases are mounted there, so ``deploy_to`` and ``releases`` stay root's. Whoever may rename a directory
    would else decide where root mounts. What was a mountpoint, and so has mode 000, is opened again.
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
        """Whether all of them are there, none is closed, and none is still root's where it should be the app's."""
        root = machine.real(self.deploy_to)
        owner = machine.identity(self.user, self.group)
        if (root / "current").is_dir() and not (root / "current").is_symlink():
            return False
        places = {path: root / path for path in (".", *self._wanted())}
        return all(
            place.is_dir()
            and not _is_closed(place.stat(), owner)
            and not (owner and (place.stat().st_uid == 0) != self._is_roots(path))
            for path, place in places.items()
        ) and not any(_is_closed(parent.lstat(), None) for parent in _parents(machine, root))

    def apply(self, machine: Machine) -> None:
        """Make those missing and give them to the app's user. Raises BootagentError where ``current`` is no link."""
        owner = machine.identity(self.user, self.group)
        root = machine.real(self.deploy_to)
        if (root / "current").is_dir() and not (root / "current").is_symlink():
            raise BootagentError(f"{self.deploy_to}/current is a directory, not a link", remedy="move it away")
        paths = (".", *self._wanted())
        footprint.note(machine, *(f"{self.deploy_to}/{path}".removesuffix("/.") for path in paths), until="reset")
        machine.make_directory(root.parent)
        for parent in _parents(machine, root):
            if _is_closed(parent.lstat(), None):
                with beneath.directory(machine.root, str(parent.relative_to(machine.root))) as held:
                    _open(held, None)
        for path in paths:
            if self._is_roots(path):
                with beneath.directory(root.parent, f"{root.name}/{path}", create=True) as held:
                    os.fchown(held, os.geteuid(), os.getegid())
                    os.fchmod(held, 0o755)
                continue
            # What is claimed on the way to a directory of the app must not be what root keeps.
            top, below = (root, path) if self.roots else (root.parent, f"{root.name}/{path}")
            with beneath.directory(top, below, create=True, owner=owner, claim=True) as held:
                _open(held, owner)

    def _is_roots(self, path: str) -> bool:
        return self.roots and path in (".", "releases")

    def _wanted(self) -> list[str]:
        parents = {str(PurePosixPath(path).parent) for path in self.linked_files} - {"."}
        return ["releases", "shared", *(f"shared/{path}" for path in (*self.linked_dirs, *sorted(parents)))]


def _parents(machine: Machine, root: Path) -> Iterator[Path]:
    """The directories on the way to ``root``, the outermost first: one of them may have been a mountpoint."""
    return (parent for parent in reversed(root.parents) if machine.root in parent.parents)


def _is_closed(found: os.stat_result, owner: Identity | None) -> bool:
    """Whether nobody but root gets into a directory of ours or the owner's: as a mountpoint is made, with mode 000."""
    return stat.S_IMODE(found.st_mode) == 0 and found.st_uid in {os.geteuid(), *([owner.uid] if owner else [])}


def _open(directory: int, owner: Identity | None) -> None:
    if _is_closed(os.fstat(directory), owner):
        os.fchmod(directory, 0o755)
