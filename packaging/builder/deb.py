"""The Debian package: what is in it, and the archive itself."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import re
import stat
import time
from collections.abc import Iterable, Sequence
from email.utils import formatdate

from builder import vendor
from builder.entries import Entry, directory, link, program, tar, with_parents
from builder.source import Source

HOME = "opt/bootagent"
MAINTAINER = "bootagent maintainers <maintainers@bootagent.invalid>"
#: Units somebody may enable; the others that can be, are.
OPTIONAL_UNITS = ("bootagent-configured.service",)
_SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
_COPIED_BY_DEBIAN = {
    "Apache License": "Apache-2.0",
    "Mozilla Public License": "MPL-2.0",
}


def build(source: Source, packages: Sequence[vendor.Package]) -> bytes:
    """The package, as dpkg reads it (deb(5))."""
    data = with_parents(_data(source, packages))
    control = _control(source, data)
    members = (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", _xz(tar(control, source.epoch))),
        ("data.tar.xz", _xz(tar(data, source.epoch))),
    )
    return b"!<arch>\n" + b"".join(_member(name, content, source.epoch) for name, content in members)


def _member(name: str, content: bytes, epoch: int) -> bytes:
    header = f"{name:<16}{epoch:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
    return header.encode() + content + b"\n" * (len(content) % 2)


def _xz(content: bytes) -> bytes:
    # dpkg's own default level: to unpack takes 8 MiB, which a small instance has.
    return lzma.compress(content, check=lzma.CHECK_CRC64, preset=6)


# --- what it installs --------------------------------------------------------------------------------------------


def _data(source: Source, packages: Sequence[vendor.Package]) -> Iterable[Entry]:
    yield from home(source, packages)
    yield link("usr/bin/bootagent", f"/{HOME}/bin/bootagent")
    yield from configuration(source)
    for unit in systemd(source):
        yield unit.below("lib/systemd/system")
    for file in source.under("runit/bootagent"):
        yield file.below("etc/sv/bootagent")
    yield Entry("usr/share/python3/runtime.d/bootagent.rtupdate", _debian(source, "rtupdate"), stat.S_IFREG | 0o755)
    yield Entry("usr/share/lintian/overrides/bootagent", _debian(source, "lintian-overrides"))
    if page := source.printed_by("packaging/manpage"):
        yield Entry("usr/share/man/man1/bootagent.1.gz", _gz(page))
    if completion := source.printed_by("packaging/completion"):
        yield Entry("usr/share/bash-completion/completions/bootagent", completion)
    yield Entry("usr/share/doc/bootagent/copyright", copyright_of(source, packages).encode())
    yield Entry("usr/share/doc/bootagent/changelog.gz", _gz(_changelog(source).encode()))


def home(source: Source, packages: Sequence[vendor.Package]) -> Iterable[Entry]:
    """The agent's own tree: ``opt/bootagent`` with the launcher and everything it imports."""
    yield program(f"{HOME}/bin/bootagent", source.text("packaging/launcher").encode())
    for file in source.under("bootagent"):
        yield file.below(f"{HOME}/lib/bootagent")
    for file in vendor.library(packages):
        ours = file.path == "certifi/__init__.py"
        yield (Entry(file.path, source.text("packaging/builder/certifi.py").encode()) if ours else file).below(
            f"{HOME}/lib"
        )


def configuration(source: Source) -> Iterable[Entry]:
    """The files in /etc that people edit."""
    yield Entry("etc/bootagent/config.toml", source.text("packaging/config.toml").encode())
    yield directory("etc/bootagent/conf.d")
    default = source.files.get("systemd/bootagent.default") or source.files["packaging/bootagent.default"]
    yield Entry("etc/default/bootagent", default.content)


def systemd(source: Source) -> list[Entry]:
    """The systemd units."""
    return [file for file in source.under("systemd") if b"[Unit]\n" in file.content]


def units(source: Source) -> list[str]:
    """The systemd units that the package enables."""
    found = [unit for unit in systemd(source) if b"\n[Install]\n" in unit.content]
    return sorted(unit.path for unit in found if unit.path not in OPTIONAL_UNITS)


def _debian(source: Source, name: str) -> bytes:
    return source.text(f"packaging/debian/{name}").encode()


def _gz(content: bytes) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=out, mtime=0) as file:
        file.write(content)
    return out.getvalue()


# --- what it says of itself --------------------------------------------------------------------------------------


def _control(source: Source, data: Sequence[Entry]) -> list[Entry]:
    files = [entry for entry in data if stat.S_ISREG(entry.mode)]
    # As dpkg-gencontrol counts: whole kibibytes of each file, one of anything else.
    size = sum(-(-len(entry.content) // 1024) if entry in files else 1 for entry in data)
    fields = _debian(source, "control").decode()
    fields = fields.replace("@VERSION@", source.version).replace("@MAINTAINER@", MAINTAINER)
    sums = "".join(f"{hashlib.md5(entry.content).hexdigest()}  {entry.path}\n" for entry in files)
    conffiles = "".join(f"/{entry.path}\n" for entry in files if entry.path.startswith("etc/"))
    control = [
        Entry("control", fields.replace("@SIZE@", str(size)).encode()),
        Entry("md5sums", sums.encode()),
        Entry("conffiles", conffiles.encode()),
    ]
    for name in _SCRIPTS:
        if f"packaging/debian/{name}" in source.files:
            control.append(program(name, _debian(source, name).replace(b"@UNITS@", " ".join(units(source)).encode())))
    return control


def _changelog(source: Source) -> str:
    """Debian's form of the newest section of CHANGELOG.md."""
    section = re.split(r"^## .*$", source.text("CHANGELOG.md"), maxsplit=2, flags=re.MULTILINE)[1]
    items = [" ".join(item.split()) for item in re.split(r"^- ", section, flags=re.MULTILINE)[1:]]
    told = "\n".join(f"  * {_wrapped(item)}" for item in items)
    date = formatdate(source.epoch)
    return f"bootagent ({source.version}) stable; urgency=medium\n\n{told}\n\n -- {MAINTAINER}  {date}\n"


def _wrapped(text: str) -> str:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) > 70:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "\n    ".join([*lines, line])


def copyright_of(source: Source, packages: Sequence[vendor.Package]) -> str:
    """Whose everything is: ours, and each vendored package's licence, whole unless Debian has it at hand."""
    told = [_debian(source, "copyright").decode().replace("@YEAR@", str(time.gmtime(source.epoch).tm_year)).rstrip()]
    for package in packages:
        told.append(f"{'=' * 72}\n/opt/bootagent/lib: {package.name} {package.version}")
        told += [_licence(text) for _, text in sorted(package.licences.items())]
    return "\n\n".join(told) + "\n"


def _licence(text: str) -> str:
    head = text.strip()[:200]
    for title, name in _COPIED_BY_DEBIAN.items():
        if title in head and "TERMS AND CONDITIONS" in text:
            return f"On Debian systems this licence is in /usr/share/common-licenses/{name}."
    return text.strip()
