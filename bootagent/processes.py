"""What runs on the machine, as proc(5) shows it. Only text is read there: no file of a process is touched.

A dead NFS server would hang whoever follows the links of a process that works on its mount.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_MAPPED = re.compile(r"^\S+ \S+ \S+ \S+ \S+ +(/.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Process:
    """A process: its id, its parent's, its user's, and the short name the kernel has for it."""

    pid: int
    parent: int
    uid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.pid})"


def all() -> dict[int, Process]:
    """Every process there is, by id."""
    found = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                before, _, after = (entry / "stat").read_text(errors="replace").rpartition(")")
                name = before.partition("(")[2]
                pid = int(entry.name)
                found[pid] = Process(pid, int(after.split()[1]), entry.stat().st_uid, name)
    return found


def with_variable(name: str, value: str) -> list[Process]:
    """The processes that were started with an environment variable of this value. Zombies have none."""
    wanted = os.fsencode(f"{name}={value}")
    return [process for process in all().values() if wanted in _environment(process.pid)]


def is_below(process: Process, ancestor: int, known: dict[int, Process]) -> bool:
    """Whether a process is ``ancestor``, or was started by it, or by one that was."""
    seen: set[int] = set()
    here: Process | None = process
    while here and here.pid not in seen:
        if here.pid == ancestor:
            return True
        seen.add(here.pid)
        here = known.get(here.parent)
    return False


def that_use(point: str) -> list[Process]:
    """The processes with their root, working directory, program, an open file or a mapped one at or below a path.

    ``point`` is a real path, as the kernel names it in this process's mount namespace.
    """
    return [process for process in all().values() if any(_is_below(path, point) for path in _paths(process.pid))]


def _is_below(path: str, point: str) -> bool:
    return path == point or path.startswith(f"{point.rstrip('/')}/")


def _paths(pid: int) -> Iterator[str]:
    place = PROC / str(pid)
    for name in ("root", "cwd", "exe"):
        with contextlib.suppress(OSError):
            yield str((place / name).readlink())
    with contextlib.suppress(OSError):
        for link in (place / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(link.readlink())
    with contextlib.suppress(OSError):
        yield from _MAPPED.findall((place / "maps").read_text(errors="surrogateescape"))


def _environment(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    return []
