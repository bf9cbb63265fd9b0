"""A zip archive into a :class:`~bootagent.pull.tree.Tree`. Runs inside the unpacking process.

Standard library only. ``zipfile`` reads the central directory and decompresses; what is made of a member is decided
here and in ``tree.py``. Unix modes and symbolic links are in the upper half of the external attributes, as Info-ZIP
writes them (APPNOTE.TXT 4.4.15 leaves them to the host system).
"""

from __future__ import annotations

import os
import resource
import stat
import struct
import time
import zipfile
from encodings import cp437  # noqa: F401 - zipfile loads it on demand, when this process may no longer read it

from bootagent.pull.tree import MAX_TARGET, Damaged, Refused, Tree, shown

CHUNK = 1 << 20
#: Bytes of address space: ``zipfile`` reads the whole central directory, however large an archive says it is.
MAX_MEMORY = 1 << 30
UNIX = 3
_UTF8_FLAG = 0x800
_ENCRYPTED_FLAG = 0x1
#: Extra field "UT", the modification time in seconds since 1970 (Info-ZIP extrafld.txt).
_TIMESTAMP = 0x5455


def unzip(descriptor: int, tree: Tree) -> None:
    """Unpack the zip archive behind a seekable ``descriptor``. Raises Refused or Damaged."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as file, zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                _member(archive, member, tree)
    except MemoryError:
        raise Refused("the archive's directory is too large") from None
    except (zipfile.BadZipFile, EOFError, struct.error) as error:
        raise Damaged(f"the archive is damaged: {error}") from None
    except (NotImplementedError, RuntimeError) as error:
        raise Refused(f"the archive cannot be read: {error}") from None
    if not tree.files:
        raise Damaged("the archive is empty")
    tree.finish()


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, tree: Tree) -> None:
    name = _name(member)
    if member.orig_filename != member.filename:
        raise Refused(f"{shown(name)} holds a NUL")
    if member.flag_bits & _ENCRYPTED_FLAG:
        raise Refused(f"{shown(name)} is encrypted")
    unix = member.external_attr >> 16 if member.create_system == UNIX else 0
    kind = stat.S_IFMT(unix) or (stat.S_IFDIR if name.endswith(b"/") else stat.S_IFREG)
    if kind == stat.S_IFDIR:
        if member.file_size:
            raise Refused(f"{shown(name)} is a directory and yet has {member.file_size} bytes of content")
        tree.directory(name, stat.S_IMODE(unix) if unix else 0o755)
    elif kind == stat.S_IFLNK:
        if member.file_size > MAX_TARGET:
            raise Refused(f"{shown(name)} is a symbolic link with a target of {member.file_size} bytes")
        tree.symlink(name, archive.read(member))
    elif kind == stat.S_IFREG:
        stamp = _seconds(member) * 1_000_000_000
        target = tree.open_file(name, stat.S_IMODE(unix) if unix else 0o644, member.file_size)
        try:
            _copy(archive, member, target, name)
            os.utime(target, ns=(stamp, stamp))
        finally:
            os.close(target)
    else:
        raise Refused(f"{shown(name)} is neither a file nor a directory nor a symbolic link (mode {unix:o})")


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: int, name: bytes) -> None:
    left = member.file_size
    with archive.open(member) as source:  # checks the CRC when it comes to the end
        while chunk := source.read(CHUNK):
            left -= len(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(target, rest) :]
    if left:
        raise Damaged(f"the archive is damaged: {shown(name)} is not the {member.file_size} bytes it says it is")


def _name(member: zipfile.ZipInfo) -> bytes:
    # Without the flag a name is code page 437 by the standard, and on Unix the file system's bytes in practice.
    if member.create_system == UNIX and not member.flag_bits & _UTF8_FLAG:
        return member.filename.encode("cp437")
    return member.filename.encode("utf-8")


def _seconds(member: zipfile.ZipInfo) -> int:
    extra = member.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == _TIMESTAMP and size >= 5 and len(extra) >= 9 and extra[4] & 1:
            return max(0, int(struct.unpack_from("<i", extra, 5)[0]))
        extra = extra[4 + size :]
    try:
        return max(0, int(time.mktime((*member.date_time, 0, 0, -1))))  # DOS times are local and coarse
    except (OverflowError, ValueError):
        return 0
