"""The files of a package, as values: nothing of the builder's umask, user, clock or directory can get into them."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Entry:
    """A file, link or directory at a relative path; ``mode`` as in ``st_mode``, a link's ``content`` is its target."""

    path: str
    content: bytes = b""
    mode: int = stat.S_IFREG | 0o644

    def below(self, directory: str) -> Entry:
        """The same in ``directory``."""
        return Entry(f"{directory}/{self.path}", self.content, self.mode)


def program(path: str, content: bytes) -> Entry:
    """An executable file."""
    return Entry(path, content, stat.S_IFREG | 0o755)


def link(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, target.encode(), stat.S_IFLNK | 0o777)


def directory(path: str) -> Entry:
    """A directory that has to be there though nothing is in it."""
    return Entry(path, b"", stat.S_IFDIR | 0o755)


def with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """The entries in order, each after the directories it is in. Raises ValueError when two have one path."""
    found: dict[str, Entry] = {}
    for entry in entries:
        for parent in PurePosixPath(entry.path).parents:
            if str(parent) != ".":
                found.setdefault(str(parent), directory(str(parent)))
        if found.setdefault(entry.path, entry) != entry:
            raise ValueError(f"two different entries at {entry.path}")
    return [found[path] for path in sorted(found, key=lambda path: path.split("/"))]


def tar(entries: Sequence[Entry], epoch: int) -> bytes:
    """An uncompressed archive, everything root's and of one time (seconds since 1970), names from ``./``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry in [Entry("", mode=stat.S_IFDIR | 0o755), *with_parents(entries)]:
            member = tarfile.TarInfo(f"./{entry.path}")
            member.mtime = epoch
            member.mode = stat.S_IMODE(entry.mode)
            member.uname = member.gname = "root"
            if stat.S_ISLNK(entry.mode):
                member.type = tarfile.SYMTYPE
                member.linkname = entry.content.decode()
            elif stat.S_ISDIR(entry.mode):
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(entry.content)
            archive.addfile(member, io.BytesIO(entry.content) if member.isreg() else None)
    return out.getvalue()


def untar(archive: bytes) -> Iterator[Entry]:
    """The files and links of an archive; of their modes, only whether they may be executed."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            if member.issym():
                yield link(member.name, member.linkname)
            elif member.isreg():
                file = members.extractfile(member)
                assert file is not None  # it is a regular file
                content = file.read()
                yield program(member.name, content) if member.mode & 0o100 else Entry(member.name, content)
