"""File operations below a directory that a less trusted user may write.

A release belongs to the app's user, who could swap a directory for a symbolic link while root works in it. So every
component is opened with O_NOFOLLOW relative to the one before (openat(2)), and no path is walked twice.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from bootagent.errors import BootagentError
from bootagent.machine import Identity, Machine

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_LINE_BYTES = 4096
MAX_DEPTH = 64


@contextlib.contextmanager
def directory(
    root: Path, relative: str = ".", *, create: bool = False, owner: Identity | None = None, claim: bool = False
) -> Iterator[int]:
    """Open the directory ``relative`` below ``root``; yields its descriptor.

    With ``create``, missing components are made and given to ``owner``; with ``claim``, so are those that are root's,
    as a run killed between the making and the giving leaves them.
    Raises FileNotFoundError, and BootagentError when a component is a link, no directory, or "..".
    """
    parts = PurePosixPath(relative).parts
    if ".." in parts or relative.startswith("/"):
        raise BootagentError(f"{relative!r} is no path below {root}")
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            made = create and _make(part, descriptor)
            try:
                deeper = os.open(part, _DIRECTORY, dir_fd=descriptor)
            except NotADirectoryError:  # what O_NOFOLLOW with O_DIRECTORY says of a link, too: open(2)
                raise BootagentError(f"{root / relative}: {part!r} is a link or no directory") from None
            os.close(descriptor)
            descriptor = deeper
            if owner and (made or (claim and os.fstat(descriptor).st_uid == 0)):
                os.fchown(descriptor, owner.uid, owner.gid)
        yield descriptor
    finally:
        os.close(descriptor)


def _make(name: str, parent: int) -> bool:
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        return False
    return True


def read(root: Path, relative: str) -> tuple[bytes, int]:
    """Content and mode of a regular file. Raises FileNotFoundError, and BootagentError when it is anything else."""
    path = PurePosixPath(relative)
    with directory(root, str(path.parent)) as parent:
        try:
            # O_NONBLOCK: a FIFO put in its place must not hold us up.
            descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise BootagentError(f"{root / relative} cannot be read: {error.strerror}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise BootagentError(f"{root / relative} is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        if found.st_size > MAX_FILE_BYTES:
            raise BootagentError(f"{root / relative} is larger than {MAX_FILE_BYTES} bytes")
        return file.read(MAX_FILE_BYTES), stat.S_IMODE(found.st_mode)


def read_link(root: Path, relative: str) -> str | None:
    """Where the symbolic link points; None when there is none."""
    path = PurePosixPath(relative)
    try:
        with directory(root, str(path.parent)) as parent:
            return os.readlink(path.name, dir_fd=parent)
    except (OSError, BootagentError):
        return None


def write(root: Path, relative: str, content: bytes, *, mode: int, owner: Identity | None) -> None:
    """Replace a file as a whole and durably, making its directories."""
    path = PurePosixPath(relative)
    fresh = f".{path.name}.new"
    with directory(root, str(path.parent), create=True, owner=owner) as parent:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=parent)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
            if owner:
                os.fchown(descriptor, owner.uid, owner.gid)
            file.flush()
            os.fsync(descriptor)
        os.rename(fresh, path.name, src_dir_fd=parent, dst_dir_fd=parent)
        os.fsync(parent)


def append_line(root: Path, name: str, line: str, *, owner: Identity | None) -> None:
    """Add a line to a log in ``root``, unless it is the last one already."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with directory(root) as parent:
        try:
            descriptor = os.open(name, flags, 0o644, dir_fd=parent)
        except OSError as error:
            raise BootagentError(f"{root / name} cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        file.seek(max(0, size - MAX_LINE_BYTES))
        end = file.read(MAX_LINE_BYTES)
        if end.splitlines()[-1:] != [line.encode()]:
            file.write((b"" if end.endswith(b"\n") or not end else b"\n") + line.encode() + b"\n")
        if owner and size == 0:
            os.fchown(descriptor, owner.uid, owner.gid)
        os.fsync(descriptor)


def link(machine: Machine, root: Path, relative: str, target: str, *, owner: Identity | None, replace: bool) -> None:
    """Point a symbolic link at ``target``; missing directories on the way are made and given to ``owner``.

    With ``replace``, whatever a release holds in its place is removed, as Capistrano does; without, BootagentError is
    raised for anything but a link or an empty directory, since it may be somebody's data.
    """
    path = PurePosixPath(relative)
    with directory(root, str(path.parent), create=True, owner=owner) as parent:
        try:
            found = os.lstat(path.name, dir_fd=parent)
        except FileNotFoundError:
            pass
        else:
            if stat.S_ISDIR(found.st_mode) and replace:
                _remove_at(machine, path.name, parent)
            elif stat.S_ISLNK(found.st_mode) or (replace and not stat.S_ISDIR(found.st_mode)):
                os.unlink(path.name, dir_fd=parent)
            else:
                _remove_empty(path.name, parent, root / relative)
        os.symlink(target, path.name, dir_fd=parent)


def _remove_empty(name: str, parent: int, shown: Path) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError:
        raise BootagentError(
            f"{shown} is no link and not empty", remedy="move what it holds to shared/, or deploy a new release"
        ) from None


def remove_tree(machine: Machine, root: Path, relative: str) -> None:
    """Remove a directory tree, if it is there. It is renamed first: half a tree never bears its name."""
    path = PurePosixPath(relative)
    doomed = f".{path.name}.removed"
    try:
        with directory(root, str(path.parent)) as parent:
            if path.name.endswith(".removed"):
                return _remove_at(machine, path.name, parent)
            _remove_at(machine, doomed, parent)  # left by a run that was killed here
            with contextlib.suppress(FileNotFoundError):
                os.rename(path.name, doomed, src_dir_fd=parent, dst_dir_fd=parent)
                _remove_at(machine, doomed, parent)
    except FileNotFoundError:
        pass


def rename(root: Path, parent: str, old: str, new: str) -> None:
    """Rename an entry of the directory ``parent`` below ``root``."""
    with directory(root, parent) as descriptor:
        os.rename(old, new, src_dir_fd=descriptor, dst_dir_fd=descriptor)


def unlink(root: Path, parent: str, name: str) -> None:
    """Remove a file of the directory ``parent`` below ``root``, if it is there."""
    with contextlib.suppress(FileNotFoundError), directory(root, parent) as descriptor:
        os.unlink(name, dir_fd=descriptor)


def set_time(root: Path, relative: str, when: float | None) -> None:
    """Set the modification time of an entry, which must not be a link, to a Unix time; None: now."""
    path = PurePosixPath(relative)
    with directory(root, str(path.parent)) as parent:
        os.utime(path.name, None if when is None else (when, when), dir_fd=parent, follow_symlinks=False)


def files(root: Path, relative: str, *, without: str | None = None) -> Iterator[tuple[str, os.stat_result]]:
    """Every entry that is no directory below ``root/relative``: its path below it, and its lstat(2).

    Directories named ``without`` are not looked into. Raises BootagentError for a tree that is too deep.
    """
    with directory(root, relative) as top:
        yield from _walk(top, "", without, MAX_DEPTH)


def subdirectories(root: Path, relative: str) -> list[str]:
    """The names of the directories in ``root/relative``, sorted; empty when it is absent."""
    try:
        with directory(root, relative) as parent:
            return sorted(entry.name for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _walk(parent: int, prefix: str, without: str | None, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    if depth == 0:
        raise BootagentError(f"{prefix} is more than {MAX_DEPTH} directories deep")
    for name in sorted(os.listdir(parent)):
        try:
            found = os.lstat(name, dir_fd=parent)
        except FileNotFoundError:  # gone since
            continue
        if stat.S_ISDIR(found.st_mode):
            if name == without:
                continue
            deeper = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                yield from _walk(deeper, f"{prefix}{name}/", without, depth - 1)
            finally:
                os.close(deeper)
        else:
            yield prefix + name, found


def _remove_at(machine: Machine, name: str, parent: int) -> None:
    machine.delete(Path(name), within=Path(f"/proc/self/fd/{parent}"))  # the directory that is held open
