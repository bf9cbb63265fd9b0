"""What an archive may do to a fresh directory, and the doing of it. Runs inside the unpacking process.

Standard library only, and no import of the package: this source is handed to a bare interpreter (see ``program.py``).
Both the tar and the zip reader write through :class:`Tree`, so one set of rules decides for both. Names are bytes all
the way, as the kernel has them: UTF-8 and anything else round-trips alike.

Symbolic links are made last. Until then the directory holds nothing but real directories and regular files that this
process created, so no name can lead out of it, whatever the order of the members.
"""

# pathlib costs more to import and to call than the system calls it makes.
# ruff: noqa: PTH101, PTH102, PTH108, PTH116, PTH208, PTH211

from __future__ import annotations

import contextlib
import os

#: Bytes in a member's name. PATH_MAX is 4096 (linux/limits.h) and the release's own path needs room too.
MAX_NAME = 3072
#: Bytes in one component, NAME_MAX of linux/limits.h.
MAX_COMPONENT = 255
#: Directories above a member: removing a tree recurses, and a bomb of depth must stay removable.
MAX_DEPTH = 128
#: Bytes in a symbolic link's target: PATH_MAX less the NUL.
MAX_TARGET = 4095
#: More than the kernel follows in one lookup (40, path_resolution(7)), so what it can reach has been looked at.
MAX_FOLLOWED = 64
#: Free space is asked for anew after so many bytes: others write to the disk as well.
RECHECK_BYTES = 16 << 20

_CONTROL = bytes(range(32)) + b"\x7f"
_NO_NAME = (b"", b".", b"..")
_SETID = 0o6000
_STICKY = 0o1000
#: Everything but world-write, which nothing in a release should need.
_MODE = 0o775
_DIRECTORY_MODE = 0o755
_WRITE_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Refused(Exception):
    """The archive asks for something no release may have, or for more than the limits allow."""


class Damaged(Exception):
    """The bytes are not a well-formed archive."""


class CutOff(Damaged):
    """The bytes end before the archive does."""


def shown(name: bytes) -> str:
    """A name as it can be printed: one line, quoted, escapes for what is no text, and never too long."""
    text = repr(name.decode("utf-8", "backslashreplace"))
    return text if len(text) <= 200 else text[:196] + "…" + text[-1]


class Tree:
    """Fills the working directory, which must be empty.

    ``max_bytes`` and ``max_files`` bound what is unpacked (implied directories count as files there), ``reserve`` is
    how many bytes must stay free on the filesystem. ``files`` counts the members taken, of every type; ``size`` adds
    up the bytes of the regular files among them.
    """

    def __init__(self, *, max_bytes: int, max_files: int, reserve: int) -> None:
        if os.listdir("."):
            raise Refused("the directory to unpack into is not empty")
        os.umask(0)  # modes are the archive's
        self.files = 0
        self.size = 0
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._reserve = reserve
        self._implied = 0
        self._room = 0
        self._until_recheck = 0
        self._directories: set[bytes] = {b""}
        self._links: dict[bytes, bytes] = {}
        self._modes: dict[bytes, int] = {}
        self._prefixes: dict[bytes, bytes] = {b"": b""}  # as archived → cleaned, both empty or with a final slash

    # --- members -----------------------------------------------------------------------------------------------

    def open_file(self, name: bytes, mode: int, size: int) -> int:
        """Create a regular file of ``size`` bytes; returns the descriptor to write it through."""
        self._count(name, size)
        if mode & (_SETID | _STICKY):
            raise Refused(f"{shown(name)} has mode {mode:o}: set-user-id, set-group-id and sticky files are refused")
        path = self._clean(name)
        if path in self._links:  # a later member replaces an earlier one
            del self._links[path]
        try:
            return os.open(path, _WRITE_NEW, mode & _MODE)
        except FileExistsError:
            self._make_way(path)
            return os.open(path, _WRITE_NEW, mode & _MODE)

    def directory(self, name: bytes, mode: int) -> None:
        """Create a directory. The root itself (``./``) is there already and keeps its mode."""
        self._count(name, 0)
        if mode & _SETID:
            raise Refused(f"{shown(name)} has mode {mode:o}: set-user-id and set-group-id are refused")
        path = self._prefix(name if name.endswith(b"/") else name + b"/")[:-1]
        if path:
            if path not in self._modes:
                self._implied -= 1  # this member names it
            self._modes[path] = mode & _MODE  # set at the end: it may lack the bits needed to fill it

    def symlink(self, name: bytes, target: bytes) -> None:
        """Note a symbolic link; :meth:`finish` makes it, once it is known not to lead outside."""
        self._count(name, 0)
        if not target or len(target) > MAX_TARGET or b"\0" in target or target.translate(None, _CONTROL) != target:
            raise Refused(f"{shown(name)} is a symbolic link with the impossible target {shown(target)}")
        if target.startswith(b"/"):
            raise Refused(f"{shown(name)} is a symbolic link to the absolute path {shown(target)}")
        path = self._clean(name)
        if path in self._directories:
            raise Refused(f"{shown(name)} is a symbolic link and a directory")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._links[path] = target

    def hardlink(self, name: bytes, target: bytes) -> None:
        """Make a second name for a regular file that an earlier member created."""
        self._count(name, 0)
        path, source = self._clean(name), self._clean(target, create=False)
        if source == path or source in self._links or source in self._directories:
            raise Refused(f"{shown(name)} is a hard link to {shown(target)}, which is not an earlier regular file")
        self._links.pop(path, None)
        try:
            try:
                os.link(source, path, follow_symlinks=False)
            except FileExistsError:
                os.stat(source, follow_symlinks=False)  # before anything is removed for it
                self._make_way(path)
                os.link(source, path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            raise Refused(
                f"{shown(name)} is a hard link to {shown(target)}, which is not an earlier regular file"
            ) from None

    def finish(self) -> None:
        """Make the symbolic links and set the modes of the directories."""
        for path in self._links:
            self._follow(path)
        for path, target in self._links.items():
            os.symlink(target, path)
        for path in sorted(self._modes, reverse=True):  # a child before the parent that may lock it away
            if self._modes[path] != _DIRECTORY_MODE:
                os.chmod(path, self._modes[path])

    # --- rules -------------------------------------------------------------------------------------------------

    def _count(self, name: bytes, size: int) -> None:
        self.files += 1
        self.size += size
        if self.files + self._implied > self._max_files:
            raise Refused(f"the archive holds more than the {self._max_files} files allowed")
        if self.size > self._max_bytes:
            raise Refused(f"the archive unpacks to more than the {self._max_bytes} bytes allowed, at {shown(name)}")
        # A file takes whole blocks, and an inode or a name beside them.
        taken = (size + 4095) & ~4095
        self._until_recheck -= taken + 512
        if taken > self._room or self._until_recheck < 0:
            found = os.statvfs(".")
            self._room = found.f_bavail * found.f_frsize - self._reserve
            self._until_recheck = RECHECK_BYTES
            if taken > self._room or self._room < 0:
                raise Refused(
                    f"the disk has {self._room + self._reserve} bytes left at {shown(name)} ({size} bytes); "
                    f"{self._reserve} must stay free"
                )
        self._room -= taken

    def _clean(self, name: bytes, *, create: bool = True) -> bytes:
        """The checked path of a member that is no directory; its parents exist afterwards."""
        cut = name.rfind(b"/") + 1
        base = name[cut:]
        if base in _NO_NAME or len(base) > MAX_COMPONENT or base.translate(None, _CONTROL) != base:
            raise Refused(f"{shown(name)} is not a name a release may hold")
        try:
            path = self._prefixes[name[:cut]] + base
        except KeyError:
            path = self._prefix(name[:cut], create=create) + base
        if len(path) > MAX_NAME:
            raise Refused(f"{shown(name)} is longer than {MAX_NAME} bytes")
        return path

    def _prefix(self, prefix: bytes, *, create: bool = True) -> bytes:
        """``prefix`` (which ends in a slash) checked and without empty and ``.`` components; made when missing."""
        known = self._prefixes.get(prefix)
        if known is not None:
            return known
        parts = prefix.split(b"/")
        if parts[0] == b"":
            raise Refused(f"{shown(prefix)} is an absolute name")
        parts = [part for part in parts if part not in (b"", b".")]
        if b".." in parts:
            raise Refused(f"{shown(prefix)} climbs with '..'")
        if len(parts) > MAX_DEPTH or len(prefix) > MAX_NAME or max(map(len, parts), default=0) > MAX_COMPONENT:
            raise Refused(f"{shown(prefix)} is too long or too deep for a release")
        if prefix.translate(None, _CONTROL) != prefix:
            raise Refused(f"{shown(prefix)} holds control characters")
        path = b""
        for part in parts:
            path += part
            if path not in self._directories:
                if path in self._links:
                    raise Refused(f"{shown(prefix)} lies behind the symbolic link {shown(path)}")
                if create:
                    self._make_directory(path)
            path += b"/"
        if create:
            self._prefixes[prefix] = path
        return path

    def _make_directory(self, path: bytes) -> None:
        if self.files + self._implied > self._max_files:
            raise Refused(f"the archive holds more than the {self._max_files} files allowed, directories included")
        self._implied += 1
        try:
            os.mkdir(path, _DIRECTORY_MODE)
        except FileExistsError:
            raise Refused(f"{shown(path)} is a file and a directory") from None
        self._directories.add(path)

    def _make_way(self, path: bytes) -> None:
        if path in self._directories:
            raise Refused(f"{shown(path)} is a file and a directory")
        os.unlink(path)  # never truncated: other names of an earlier hard link keep its content

    def _follow(self, link: bytes) -> None:
        """Walk a link as the kernel will, through every other link, and refuse it when it leaves the directory."""
        here = link.split(b"/")[:-1]
        todo = self._links[link].split(b"/")[::-1]
        followed = 1
        while todo:
            part = todo.pop()
            if part == b"..":
                if not here:
                    raise Refused(f"{shown(link)} is a symbolic link out of the release, to {shown(self._links[link])}")
                here.pop()
            elif part not in (b"", b"."):
                target = self._links.get(b"/".join([*here, part]))
                if target is None:
                    here.append(part)
                    continue
                followed += 1
                if followed > MAX_FOLLOWED:
                    return  # a circle: the kernel gives up on it sooner (ELOOP)
                todo += target.split(b"/")[::-1]
