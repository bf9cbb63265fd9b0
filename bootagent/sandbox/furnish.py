"""What is on the simulated machine before its first boot: files and trees of the machine that it is tried on."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bootagent.errors import UsageError
from bootagent.machine import Machine


def put_tree(machine: Machine, place: str, source: Path) -> None:
    """Copy a directory to a logical path: what it holds, modes, and, where we are root, owners. Raises UsageError."""
    destination = machine.real(place)
    machine.make_directory(destination.parent)
    argv = ["cp", "--archive", "--no-target-directory", "--", f"{source}/.", str(destination)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"cannot copy {source} to {place}: {done.stderr.strip()}")


def put_file(machine: Machine, place: str, source: Path, *, mode: int | None = None) -> None:
    """Copy a file to a logical path; without ``mode`` it has that of the source, but for others' right to write.

    Raises UsageError.
    """
    content = read(source)
    destination = machine.real(place)
    machine.make_directory(destination.parent)
    machine.write(destination, content, mode=source.stat().st_mode & 0o755 if mode is None else mode)


def read(file: Path) -> bytes:
    """What a file holds. Raises UsageError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
