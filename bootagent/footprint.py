"""What was at a path before this agent first touched it, so that it can be so again.

Noted before the act, in one file that an image carries along as it does what is noted. To lose it costs tidiness: what
is not noted is left alone. Nothing is removed but empty directories, and files that still are as they were written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal

from bootagent import beneath, own_file
from bootagent.errors import BootagentError, MachineError
from bootagent.machine import Machine

PATH = "/var/lib/bootagent/footprint.json"

#: When it is to be as before: at each stop by hand, or only when all that was made for the apps goes.
Until = Literal["stop", "reset"]
#: Lanes run side by side in one process, and each reads the file, changes it and writes it.
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Before:
    """What was at a path. ``mode`` None: nothing was; else it is the mode, and ``uid`` and ``gid`` the owner's.

    ``target`` is a symbolic link's, ``digest`` the SHA-256 of the file that was written there. ``mountpoint``: this
    agent mounts there.
    """

    until: Until
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    target: str | None = None
    digest: str | None = None
    mountpoint: bool = False


def note(machine: Machine, *paths: str, until: Until, mountpoint: bool = False) -> None:
    """Note what is at these logical paths, and that their parents are missing where they are; the first note holds.

    Nothing is noted where a link is on the way. Raises MachineError.
    """
    with _LOCK:
        before = known = _load(machine)
        for path in map(_tidy, paths):
            for parent in reversed(PurePosixPath(path).parents):
                if str(parent) not in known and _look(machine, str(parent), until) == Before(until):
                    known = {**known, str(parent): Before(until)}
            if path not in known and (found := _look(machine, path, until)):
                known = {**known, path: found}
            if mountpoint and path in known:
                known = {**known, path: replace(known[path], mountpoint=True)}
        if known != before:
            _save(machine, known)


def note_file(machine: Machine, path: str, content: bytes, *, until: Until) -> None:
    """Note a file that is about to be written. One that takes another's place is not ours to remove.

    Raises MachineError.
    """
    note(machine, path, until=until)
    with _LOCK:
        known = _load(machine)
        found, digest = known.get(_tidy(path)), hashlib.sha256(content).hexdigest()
        if found and found.mode is None and found.digest != digest:
            _save(machine, {**known, _tidy(path): replace(found, digest=digest)})


def before(machine: Machine, path: str) -> Before | None:
    """What is noted of a logical path; None for nothing."""
    return _load(machine).get(_tidy(path))


def mountpoints(machine: Machine) -> tuple[str, ...]:
    """The logical paths at which this agent has mounted something, and not given up since."""
    return tuple(path for path, found in _load(machine).items() if found.mountpoint)


def left(machine: Machine, until: Until, keep: Callable[[str], bool]) -> list[str]:
    """The noted paths that are not as before, but could be; ``keep`` says which are to be left alone. Deepest first."""
    found = [path for path, one in _load(machine).items() if _is_due(one, until) and not keep(path)]
    found.sort(key=lambda path: (-path.count("/"), path))
    gone: list[str] = []
    for path in found:
        if _change(machine, path, _load(machine)[path], set(gone)):
            gone.append(path)
    return gone


def undo(machine: Machine, until: Until, keep: Callable[[str], bool]) -> list[str]:
    """Make the noted paths as they were, and forget those that are; which have changed. Raises MachineError."""
    changed = []
    for path in left(machine, until, keep):
        try:
            if _undo(machine, path, _load(machine)[path]):
                changed.append(path)
        except OSError as error:
            raise MachineError(f"cannot bring {path} back to what it was: {error.strerror}") from None
    with _LOCK:
        known = _load(machine)
        done = {path for path, one in known.items() if _is_due(one, until) and not keep(path)}
        done = {path for path in done if _look(machine, path, known[path].until) == _plain(known[path])}
        if done:
            with contextlib.suppress(MachineError):  # on a disk that has gone read-only; to undo again does no harm
                _save(machine, {path: one for path, one in known.items() if path not in done})
    return changed


def forget(machine: Machine, *paths: str) -> None:
    """Forget what was noted of these paths. Raises MachineError."""
    with _LOCK:
        known = _load(machine)
        kept = {path: one for path, one in known.items() if path not in map(_tidy, paths)}
        if kept != known:
            _save(machine, kept)


# --- inside --------------------------------------------------------------------------------------------------


def _is_due(one: Before, until: Until) -> bool:
    return one.until == "stop" or until == "reset"


def _plain(one: Before) -> Before:
    """As a look would find it."""
    return replace(one, digest=None, mountpoint=False)


def _look(machine: Machine, path: str, until: Until) -> Before | None:
    """What is at a path now; None when that cannot be told, or is no directory or link."""
    place = PurePosixPath(path)
    try:
        with beneath.directory(machine.root, str(place.parent).lstrip("/") or ".") as parent:
            found = os.lstat(place.name or ".", dir_fd=parent)
            if stat.S_ISLNK(found.st_mode):
                target = os.readlink(place.name, dir_fd=parent)
                return Before(until, stat.S_IFLNK, found.st_uid, found.st_gid, target)
    except FileNotFoundError:
        return Before(until)
    except (OSError, BootagentError):
        return None
    if not stat.S_ISDIR(found.st_mode):
        return None
    return Before(until, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def _change(machine: Machine, path: str, was: Before, gone: set[str]) -> bool:
    """Whether something would have to be done, and can be; ``gone`` are paths that would be gone by then."""
    place = PurePosixPath(path)
    if was.target is not None:
        return False  # who switched it knows when to switch it back
    try:
        with beneath.directory(machine.root, str(place.parent).lstrip("/") or ".") as parent:
            found = os.lstat(place.name, dir_fd=parent)
            if stat.S_ISDIR(found.st_mode):
                if was.mode is not None:
                    return (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) != (was.mode, was.uid, was.gid)
                with beneath.directory(machine.root, path.lstrip("/")) as held:
                    return all(f"{path}/{name}" in gone for name in _names(held))
            if not stat.S_ISREG(found.st_mode) or was.mode is not None:
                return False
    except (OSError, BootagentError):
        return False
    return _is_as_written(machine, path, was, found.st_size)


def _is_as_written(machine: Machine, path: str, was: Before, size: int) -> bool:
    if was.digest is None:
        return size == 0
    try:
        return hashlib.sha256(beneath.read(machine.root, path.lstrip("/"))[0]).hexdigest() == was.digest
    except (OSError, BootagentError):
        return False


def _undo(machine: Machine, path: str, was: Before) -> bool:
    place = PurePosixPath(path)
    with beneath.directory(machine.root, str(place.parent).lstrip("/") or ".") as parent:
        found = os.lstat(place.name, dir_fd=parent)
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(place.name, dir_fd=parent)
        elif was.mode is None:
            try:
                os.rmdir(place.name, dir_fd=parent)
            except OSError:  # somebody has put something into it meanwhile
                return False
        else:
            with beneath.directory(machine.root, path.lstrip("/")) as held:
                os.fchown(held, was.uid, was.gid)
                os.fchmod(held, was.mode)
        os.fsync(parent)
    return True


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries]


def _tidy(path: str) -> str:
    return "/" + "/".join(part for part in path.split("/") if part)


@dataclass(frozen=True)
class _Noted:
    paths: dict[str, Before]


def _load(machine: Machine) -> dict[str, Before]:
    def parse(found: Any) -> _Noted:
        return _Noted({name: Before(**one) for name, one in found["paths"].items()})

    noted = own_file.load(machine, PATH, parse)
    return noted.paths if noted else {}


def _save(machine: Machine, known: dict[str, Before]) -> None:
    own_file.save(machine, PATH, _Noted(known))
