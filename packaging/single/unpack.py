"""Unpacks the single file into a cache, and removes what nobody uses there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

DamagedError = zipfile.BadZipFile
_FRESH = ".fresh-"


def into(directory: str, digest: str, archive: str) -> None:
    """Unpack ``archive`` as ``directory/digest``, unless somebody has. Raises OSError and DamagedError."""
    cache = Path(directory)
    with _locked(cache):
        if not (cache / digest).is_dir():
            _prune(cache, digest)
            _unpack(archive, cache, cache / digest)


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One at a time in a cache."""
    lock = os.open(cache, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _unpack(archive: str, cache: Path, place: Path) -> None:
    """Unpack aside, compile, and put in place whole and durably: a lost plug leaves all of it, or nothing."""
    fresh = Path(tempfile.mkdtemp(prefix=_FRESH, dir=cache))
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.infolist():
                if member.filename.startswith("tree/"):
                    Path(members.extract(member, fresh)).chmod(stat.S_IMODE(member.external_attr >> 16))
        tree = fresh / "tree"
        # What cannot be compiled runs nevertheless.
        words = [sys.executable, "-I", "-m", "compileall", "-q", "-j", "0", str(tree / "lib")]
        subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        os.sync()
        tree.rename(place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _prune(cache: Path, digest: str) -> None:
    """Remove trees of other versions that nobody uses, and what a killed run left."""
    for path in cache.iterdir():
        is_tree = len(path.name) == len(digest) and not path.name.strip("0123456789abcdef")
        if not is_tree and not path.name.startswith(_FRESH):
            continue
        with contextlib.suppress(OSError):  # BlockingIOError: somebody does
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(lock)
