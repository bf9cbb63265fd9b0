"""A directory for ``chpst -e`` made of a dump, and read for one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bootagent.environment import directories, values
from bootagent.errors import BootagentError
from bootagent.machine import Machine


def put(machine: Machine, directory: Path, variables: Mapping[str, str | None], shown: str) -> None:
    """Write a file for each variable, for its owner alone; others that the directory has stay.

    Raises BootagentError before the first is written, for what no file can hold; ``shown`` names the dump.
    """
    for name, value in variables.items():
        values.require(name, value, shown)
        if (directory / name).is_dir():
            raise BootagentError(f"{directory / name} is a directory, and {shown} has a variable of that name")
    machine.make_directory(directory, mode=0o700)
    for name, value in variables.items():
        machine.write(directory / name, values.encode(value), mode=0o600)


def read(directory: Path) -> dict[str, str | None]:
    """The variables of a directory. Raises BootagentError when it is not there."""
    try:
        return directories.read_directory(directory, ".", str(directory))
    except FileNotFoundError:
        raise BootagentError(f"{directory} does not exist") from None
