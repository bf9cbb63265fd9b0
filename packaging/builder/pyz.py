"""The single file: a zip archive that Python runs, with the tree of the Debian package in it."""

from __future__ import annotations

import hashlib
import io
import stat
import time
import zipfile
from collections.abc import Iterable, Sequence

from builder import deb, vendor
from builder.entries import Entry, program, with_parents
from builder.source import Source

_ZIP_EPOCH = 315532800  # 1980: zip knows no time before
_SHEBANG = b"#!/usr/bin/env python3\n"


def build(source: Source, packages: Sequence[vendor.Package]) -> bytes:
    """The file, which wants to be executable."""
    tree = [entry for entry in with_parents(_tree(source, packages)) if not stat.S_ISDIR(entry.mode)]
    digest = hashlib.sha256()
    for entry in tree:
        digest.update(f"{entry.path}\0{entry.mode}\0{len(entry.content)}\0".encode() + entry.content)
    main = source.text("packaging/single/__main__.py").replace("@DIGEST@", digest.hexdigest()[:32])
    out = io.BytesIO(_SHEBANG)
    out.seek(len(_SHEBANG))
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for entry in [
            Entry("__main__.py", main.encode()),
            Entry("unpack.py", source.text("packaging/single/unpack.py").encode()),
            *(entry.below("tree") for entry in tree),
        ]:
            member = zipfile.ZipInfo(entry.path, time.gmtime(max(source.epoch, _ZIP_EPOCH))[:6])
            member.create_system = 3  # Unix: the modes count
            member.external_attr = entry.mode << 16
            archive.writestr(member, entry.content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _tree(source: Source, packages: Sequence[vendor.Package]) -> Iterable[Entry]:
    home = f"{deb.HOME}/"
    for entry in deb.home(source, packages):
        yield Entry(entry.path.removeprefix(home), entry.content, entry.mode)
    yield program("bin/install", source.text("packaging/single/install.py").encode())
    for entry in deb.configuration(source):
        if stat.S_ISREG(entry.mode):
            name = "bootagent.default" if entry.path.startswith("etc/default/") else entry.path.rpartition("/")[2]
            yield Entry(f"share/{name}", entry.content)
    for unit in deb.systemd(source):
        yield unit.below("share/systemd")
    for file in source.under("runit/bootagent"):
        yield file.below("share/runit/bootagent")
    yield Entry("share/copyright", deb.copyright_of(source, packages).encode())
