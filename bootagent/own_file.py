"""What the agent remembers from run to run: JSON files of its own, which root alone may read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from bootagent.errors import MachineError
from bootagent.machine import Machine, sync_directory

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
VERSION = 1


def load(machine: Machine, path: str, parse: Callable[[Any], T]) -> T | None:
    """What a file says; None when there is none, or a damaged one, which is set aside as ``.damaged``.

    ``parse`` makes something of its fields; what it cannot make anything of is damaged, too. Raises MachineError.
    """
    real = machine.real(path)
    try:
        found = json.loads(real.read_bytes())
        if found.pop("version") != VERSION:
            raise ValueError("of another version")
        return parse(found)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        with contextlib.suppress(OSError):  # on a disk that has gone read-only
            real.replace(real.with_name(f"{real.name}.damaged"))
        return None
    except OSError as error:
        raise MachineError(f"cannot read {path}: {error.strerror}") from None


def save(machine: Machine, path: str, value: DataclassInstance) -> None:
    """Write it atomically and durably, unless that is what the file says already. Raises MachineError."""
    real = machine.real(path)
    content = json.dumps({"version": VERSION, **asdict(value)}, indent=1).encode() + b"\n"
    try:
        if real.is_file() and real.read_bytes() == content:
            return
        machine.make_directory(real.parent, mode=0o700)
        machine.write(real, content, mode=0o600)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror}") from None


def forget(machine: Machine, path: str) -> None:
    """Remove it, if it is there, durably. Raises MachineError."""
    real = machine.real(path)
    try:
        real.unlink(missing_ok=True)
        if real.parent.is_dir():
            sync_directory(real.parent)
    except OSError as error:
        raise MachineError(f"cannot remove {path}: {error.strerror}") from None
