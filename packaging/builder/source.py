"""The project's own files and the time they count as made, from a commit or from the work tree."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from builder.entries import Entry, link, program, untar
from builder.errors import BuildError


@dataclass(frozen=True)
class Source:
    """What a package is made of. ``epoch``: seconds since 1970; ``version`` is the package's, as Debian writes them."""

    files: dict[str, Entry]
    version: str
    epoch: int

    def under(self, directory: str) -> list[Entry]:
        """The files below a directory, named from there."""
        prefix = f"{directory}/"
        return [
            Entry(path.removeprefix(prefix), entry.content, entry.mode)
            for path, entry in self.files.items()
            if path.startswith(prefix)
        ]

    def text(self, path: str) -> str:
        """A file's text. Raises BuildError when there is none."""
        if path not in self.files:
            raise BuildError(f"the commit has no {path}")
        return self.files[path].content.decode()

    def printed_by(self, path: str) -> bytes | None:
        """What a script of the source prints, run in a copy of it; None when there is no such script."""
        if path not in self.files:
            return None
        with tempfile.TemporaryDirectory(prefix="bootagent-build-") as directory:
            self._write(Path(directory))
            # Only what makes the output what it is: no terminal's width, no user's locale.
            environment = {
                "PATH": os.environ.get("PATH", os.defpath),
                "LC_ALL": "C.UTF-8",
                "COLUMNS": "80",
                "SOURCE_DATE_EPOCH": str(self.epoch),
                "PYTHONDONTWRITEBYTECODE": "1",
            }
            done = subprocess.run(
                [sys.executable, f"{directory}/{path}"],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        if done.returncode:
            raise BuildError(f"{path} failed: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def _write(self, directory: Path) -> None:
        for path, entry in self.files.items():
            place = directory / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISLNK(entry.mode):
                place.symlink_to(entry.content.decode())
            else:
                place.write_bytes(entry.content)
                place.chmod(stat.S_IMODE(entry.mode))


def commit(repository: Path) -> Source:
    """The source as HEAD has it. Raises BuildError outside a git repository."""
    files = {entry.path: entry for entry in untar(_git(repository, "archive", "--format=tar", "HEAD"))}
    committed = int(_git(repository, "show", "--no-patch", "--format=%ct", "HEAD"))
    name = _git(repository, "rev-parse", "HEAD").decode()[:8]
    return _source(files, committed, f"{_stamp(committed)}.{name}")


def work_tree(repository: Path) -> Source:
    """The source as the files are now, but for those git ignores. Raises BuildError outside a git repository."""
    listed = _git(repository, "ls-files", "-z", "--cached", "--others", "--exclude-standard").decode().split("\0")
    files = {}
    for path in filter(None, listed):
        place = repository / path
        if place.is_symlink():
            files[path] = link(path, str(place.readlink()))
        elif place.is_file():  # a file may be gone and not yet be so in the index
            content = place.read_bytes()
            files[path] = program(path, content) if place.stat().st_mode & 0o100 else Entry(path, content)
    now = int(time.time())
    return _source(files, now, f"{_stamp(now)}.worktree")


def is_dirty(repository: Path) -> bool:
    """Whether the work tree differs from HEAD."""
    return bool(_git(repository, "status", "--porcelain"))


def _source(files: dict[str, Entry], made: int, build: str) -> Source:
    """``build`` tells builds between two releases apart, and sorts them; a released version stands alone."""
    found = re.search(r'^__version__ = "(.+)"$', files["bootagent/__init__.py"].content.decode(), re.MULTILINE)
    if not found:
        raise BuildError("bootagent/__init__.py: it says no __version__")
    released = re.search(r"^## (.+)$", files["CHANGELOG.md"].content.decode(), re.MULTILINE)
    version = found[1]
    if released is None or not released[1].lstrip("[").startswith(version):
        version += f"+{build}"
    # What the program says of itself is what the package is called.
    said = files["bootagent/__init__.py"].content.replace(found[0].encode(), f'__version__ = "{version}"'.encode())
    files["bootagent/__init__.py"] = replace(files["bootagent/__init__.py"], content=said)
    return Source(files, version, int(os.environ.get("SOURCE_DATE_EPOCH") or made))


def _stamp(epoch: int) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(epoch))


def _git(repository: Path, *words: str) -> bytes:
    # A git hook or a user's own settings for another repository must not lead git there.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        # So that no setting of the user counts.
        ["git", "-C", str(repository), "-c", "core.quotePath=false", "-c", "tar.umask=0022", *words],
        env={**environment, "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"git {words[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
