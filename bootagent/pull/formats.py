"""Which archive a key names, and the program that decompresses it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from bootagent.errors import BundleError
from bootagent.machine import MINIMAL_ENVIRONMENT

#: Bytes an xz archive may take to decompress: `xz -9` needs 65 MiB, and threads are dropped to stay below.
XZ_MEMORY = 128 << 20


@dataclass(frozen=True)
class Format:
    """One kind of archive.

    ``magics`` are the first bytes it may have, ``tools`` the commands that decompress it from standard input to
    standard output, best first, and ``package`` what to install when none of them is there.
    """

    suffixes: tuple[str, ...]
    magics: tuple[bytes, ...] = ()
    tools: tuple[tuple[str, ...], ...] = ()
    package: str = ""

    @property
    def is_zip(self) -> bool:
        """Whether it can only be read with its end at hand."""
        return self.suffixes == (".zip",)

    def decompressor(self, name: str) -> tuple[str, ...] | None:
        """The command to run, or None when nothing is compressed. Raises BundleError when no tool is installed."""
        for command in self.tools:
            if shutil.which(command[0], path=MINIMAL_ENVIRONMENT["PATH"]):
                return command
        if self.tools:
            wanted = " or ".join(command[0] for command in self.tools)
            raise BundleError(f"{name} needs {wanted}, which is not installed", remedy=f"install {self.package}")
        return None

    def check(self, head: bytes, name: str) -> None:
        """Compare an object's first bytes with its suffix; raises BundleError saying what it is instead."""
        if self.magics and head.startswith(self.magics):
            return
        found = _guess(head)
        if self.magics or found:
            raise BundleError(
                f"{name} is not a {self.suffixes[0]} archive: it holds {found or f'something else ({head[:8]!r})'}",
                remedy="publish it again, or name it for what it is",
            )


#: The first four bytes of a zstd frame and of its sixteen skippable kinds (RFC 8878, 3.1).
_ZSTD = (b"\x28\xb5\x2f\xfd", *(bytes([kind]) + b"\x2a\x4d\x18" for kind in range(0x50, 0x60)))
_GZIP = (b"\x1f\x8b\x08",)  # RFC 1952, 2.3.1: deflate is the only method
_XZ = (b"\xfd7zXZ\0",)
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")

FORMATS = (
    Format((".tar",)),
    # igzip and pigz are several times faster than gzip, and as strict about lengths and checksums.
    Format((".tar.gz", ".tgz"), _GZIP, (("igzip", "-dc"), ("pigz", "-dc"), ("gzip", "-dc")), "isal or gzip"),
    Format((".tar.zst",), _ZSTD, (("zstd", "-dcq"),), "zstd"),
    Format((".tar.xz",), _XZ, (("xz", "-dcq", "-T0", f"--memlimit-decompress={XZ_MEMORY}"),), "xz-utils"),
    Format((".zip",), _ZIP),
)

_KNOWN = (
    (_GZIP, "gzip data"),
    (_ZSTD, "zstd data"),
    (_XZ, "xz data"),
    (_ZIP, "a zip archive"),
    ((b"BZh",), "bzip2 data"),
    ((b"<?xml", b"<Error"), "an XML document"),
    ((b"<!doctype", b"<!DOCTYPE", b"<html", b"<HTML"), "an HTML page"),
    ((b"{", b"["), "a JSON document"),
    ((b"\0" * 512,), "an empty archive"),
)


def of(key: str) -> Format:
    """The format a key's suffix names. Raises BundleError naming the known ones."""
    for known in FORMATS:
        if key.endswith(known.suffixes):
            return known
    suffixes = ", ".join(suffix for known in FORMATS for suffix in known.suffixes)
    raise BundleError(f"{key!r} does not name an archive bootagent can unpack", remedy=f"known are {suffixes}")


def _guess(head: bytes) -> str | None:
    return next((what for magics, what in _KNOWN if head.startswith(magics)), None)
