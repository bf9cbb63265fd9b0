"""A tar stream into a :class:`~bootagent.pull.tree.Tree`. Runs inside the unpacking process.

Standard library only. One parser both checks and extracts, so there is no second opinion for a crafted archive to
exploit. It reads ustar and pax (POSIX.1-2017, pax "ustar Interchange Format" and "pax Header Block") and GNU tar's long
names and base-256 numbers (tar(5) of libarchive); everything else is refused, never skipped.
"""

from __future__ import annotations

import os
from zlib import adler32

from bootagent.pull.tree import CutOff, Damaged, Refused, Tree, shown

BLOCK = 512
BUFFER = 1 << 20
#: Bytes in one extended header (pax x or g, GNU L or K): room for a name, not for a bomb.
MAX_EXTENDED = 1 << 20
#: The last second a file is stamped with (year 2514); ext4 and xfs keep at least as many.
MAX_SECONDS = 1 << 34

_ZEROS = bytes(BLOCK)
_REGULAR = (b"0", b"\0", b"7")
_BARE = (b"5", b"\0", b"2", b"1")
_PAX_TYPES = (b"x", b"g")
_KINDS = {b"3": "a character device", b"4": "a block device", b"6": "a fifo", b"S": "a sparse file"}


class Stream:
    """The archive's bytes behind a descriptor, through one buffer of fixed size."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = memoryview(bytearray(BUFFER))
        self._start = 0
        self._end = 0

    def _fill(self, wanted: int) -> bool:
        """Have at least ``wanted`` bytes in the buffer; False at the end of the stream."""
        buffer = self._buffer
        left = self._end - self._start
        buffer[:left] = buffer[self._start : self._end]
        self._start, self._end = 0, left
        while self._end < wanted:
            got = os.readv(self._descriptor, [buffer[self._end :]])
            if not got:
                return False
            self._end += got
        return True

    def block(self) -> bytes:
        """The next block, or ``b""`` at the end of the stream. Raises CutOff when it ends inside a block."""
        start = self._start
        if self._end - start < BLOCK:
            if not self._fill(BLOCK):
                if self._end:
                    raise CutOff("the archive is cut off: it ends inside a block")
                return b""
            start = 0
        self._start = start + BLOCK
        return self._buffer[start : start + BLOCK].tobytes()

    def copy(self, size: int, target: int, name: bytes) -> None:
        """Write the next ``size`` bytes to a descriptor and skip their padding."""
        left = size
        while left:
            have = min(left, self._end - self._start)
            if not have:
                if not self._fill(1):
                    raise CutOff(f"the archive is cut off: it ends inside {shown(name)}")
                continue
            written = os.write(target, self._buffer[self._start : self._start + have])
            self._start += written
            left -= written
        padding = -size % BLOCK
        if padding:
            self._skip(padding, name)

    def _skip(self, size: int, name: bytes) -> None:
        if self._end - self._start < size and not self._fill(size):
            raise CutOff(f"the archive is cut off: it ends after {shown(name)}")
        self._start += size

    def take(self, size: int, name: bytes) -> bytes:
        """The next ``size`` bytes (at most MAX_EXTENDED); skips their padding."""
        pieces = []
        left = size
        while left:
            have = min(left, self._end - self._start)
            if not have and not self._fill(1):
                raise CutOff(f"the archive is cut off: it ends inside the header of {shown(name)}")
            pieces.append(self._buffer[self._start : self._start + have].tobytes())
            self._start += have
            left -= have
        self._skip(-size % BLOCK, name)
        return b"".join(pieces)

    def drain(self, limit: int) -> None:
        """Read to the end, so that the writer can finish; raises Refused after ``limit`` bytes and a buffer's worth."""
        while True:
            self._start = self._end = 0
            if not self._fill(1):
                return
            limit -= self._end
            if limit < 0:
                raise Refused("the archive goes on and on after its end")


def untar(descriptor: int, tree: Tree, *, max_trailing: int) -> None:
    """Unpack the tar stream behind ``descriptor`` to its very end. Raises Refused or Damaged."""
    stream = Stream(descriptor)
    modes: dict[bytes, int] = {}  # a few distinct fields make up thousands of members
    times: dict[bytes, int] = {}
    count = 0
    while True:
        header = stream.block()
        if header == _ZEROS:
            second = stream.block()  # GNU tar and bsdtar take a single one before the end of the file as well
            if second not in (_ZEROS, b""):
                raise Damaged("the archive goes on after a block of zeros")
            break
        if not header:
            raise CutOff("the archive is cut off: its end mark is missing")
        count += 1
        _check(header, count)
        kind = header[156:157]
        if kind in b"xgLK":
            name, target, size, stamp, header, kind = _extended(stream, header, count)
        else:
            name, target, size, stamp = _name(header), None, _number(header[124:136], "size"), None
        raw = header[100:108]
        mode = modes.get(raw)
        if mode is None:
            mode = modes[raw] = _number(raw, "mode")

        if kind in _REGULAR and not (name.endswith(b"/") and kind == b"\0"):
            if stamp is None:
                raw = header[136:148]
                stamp = times.get(raw)
                if stamp is None:
                    stamp = times[raw] = min(_number(raw, "mtime", floor=0), MAX_SECONDS) * 1_000_000_000
            file = tree.open_file(name, mode, size)
            try:
                if size:
                    stream.copy(size, file, name)
                os.utime(file, ns=(stamp, stamp))
            finally:
                os.close(file)
            continue
        if kind not in _BARE:
            raise Refused(f"{shown(name)} is {_KINDS.get(kind, f'of the unknown type {shown(kind)}')}")
        if size:
            raise Refused(f"{shown(name)} is no regular file and yet has {size} bytes of content")
        if kind == b"5" or kind == b"\0":
            tree.directory(name, mode)
        elif kind == b"2":
            tree.symlink(name, _text(header[157:257]) if target is None else target)
        else:
            tree.hardlink(name, _text(header[157:257]) if target is None else target)
    stream.drain(max_trailing)
    if not count:
        raise Damaged("the archive is empty")
    tree.finish()


def _check(header: bytes, count: int) -> None:
    """Compare the header's checksum: the plain sum of its bytes, its own field taken as spaces."""
    # The low half of Adler-32 is that sum plus one, modulo 65521: exact for half a header, and in C.
    total = (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - 2
    if total - sum(header[148:156]) + 256 != _number(header[148:156], "checksum"):
        what = "it is not a tar archive" if count == 1 else "the archive is damaged"
        raise Damaged(f"{what}: header {count} has a wrong checksum")


def _name(header: bytes) -> bytes:
    name = _text(header[:100])
    # Only POSIX archives have a prefix; GNU ones ("ustar  ") keep times there.
    if header[345] and header[257:263] == b"ustar\0":
        return _text(header[345:500]) + b"/" + name
    return name


def _text(field: bytes) -> bytes:
    cut = field.find(b"\0")
    return field if cut < 0 else field[:cut]


def _number(field: bytes, what: str, *, floor: int | None = None) -> int:
    """An octal number, or GNU's base-256. Negative ones become ``floor``; raises Damaged when there is none."""
    if field[0] & 0x80:
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        if field[0] == 0xFF and floor is not None:
            return floor
        raise Damaged(f"the archive is damaged: a header holds an impossible {what}")
    digits = _text(field).strip(b" ")
    try:
        if not digits.isdigit():  # int() also takes signs, underscores and "0o"
            raise ValueError
        return int(digits, 8)
    except ValueError:
        if not digits and what != "checksum":
            return 0
        raise Damaged(f"the archive is damaged: {shown(digits)} is not a {what}") from None


def _extended(stream: Stream, header: bytes, count: int) -> tuple[bytes, bytes | None, int, int | None, bytes, bytes]:
    """Read extended headers up to the member they describe.

    Returns its name, link target, size, modification time in nanoseconds, header and type.
    """
    records: dict[bytes, bytes] = {}
    name: bytes | None = None
    target: bytes | None = None
    seen: set[bytes] = set()
    while (kind := header[156:157]) in b"xgLK":
        if kind in seen:
            raise Damaged(f"the archive is damaged: a member has two extended headers of type {shown(kind)}")
        seen.add(kind)
        label = _name(header)
        size = _number(header[124:136], "size")
        if size > MAX_EXTENDED:
            raise Refused(f"the extended header {shown(label)} has {size} bytes; {MAX_EXTENDED} are allowed")
        content = stream.take(size, label)
        if kind in _PAX_TYPES:
            found = _pax(content, label)
            if kind == b"g" and not found.keys().isdisjoint((b"path", b"linkpath", b"size", b"mtime")):
                raise Refused("a global pax header sets what belongs to a single member")
            if kind == b"x":
                records = found
        elif kind == b"L":
            name = _text(content)
        else:
            target = _text(content)
        header = stream.block()
        if header in (b"", _ZEROS):
            if seen == {b"g"}:  # git archive of an empty tree
                raise Damaged("the archive is empty")
            raise CutOff("the archive is cut off: an extended header stands alone")
        _check(header, count)
    if (name is not None and b"path" in records) or (target is not None and b"linkpath" in records):
        raise Refused("a member is named by a pax header and by a GNU header")
    name = records.get(b"path", name)
    target = records.get(b"linkpath", target)
    if b"\0" in (name or b"") or b"\0" in (target or b""):
        raise Refused(f"{shown(name or target or b'')} holds a NUL")
    size = _number(header[124:136], "size")
    if b"size" in records:
        if not records[b"size"].isdigit() or len(records[b"size"]) > 20:
            raise Damaged(f"the archive is damaged: {shown(records[b'size'])} is not a size")
        size = int(records[b"size"])
    stamp = _nanoseconds(records[b"mtime"]) if b"mtime" in records else None
    return _name(header) if name is None else name, target, size, stamp, header, kind


def _pax(content: bytes, label: bytes) -> dict[bytes, bytes]:
    """The records ``"%d %s=%s\\n"`` of a pax header."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(content):
        space = content.find(b" ", at, at + 12)
        digits = content[at:space]
        end = at + int(digits) if space > 0 and digits.isdigit() else 0
        key, equals, value = content[space + 1 : end - 1].partition(b"=")
        if not at < end <= len(content) or content[end - 1 : end] != b"\n" or not equals or not key:
            raise Damaged(f"the archive is damaged: the pax header {shown(label)} is malformed")
        if key.startswith(b"GNU.sparse."):
            raise Refused("the archive holds a sparse file")
        if value:
            records[key] = value
        else:
            records.pop(key, None)  # an empty value takes the record back
        at = end
    return records


def _nanoseconds(text: bytes) -> int:
    whole, _, fraction = text.partition(b".")
    if text.startswith(b"-"):
        return 0
    if not whole.isdigit() or (fraction and not fraction.isdigit()):
        raise Damaged(f"the archive is damaged: {shown(text)} is not a time")
    return min(int(whole), MAX_SECONDS) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
