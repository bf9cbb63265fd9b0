"""The configuration files, read and merged; every key remembers its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from bootagent.errors import ConfigError, Problem
from bootagent.machine import writable_by_others

Table = dict[str, Any]


@dataclass(frozen=True)
class Document:
    """Merged tables, and which file each key path came from."""

    tables: Table
    origins: dict[tuple[str, ...], str]
    default_origin: str

    def problem(self, path: Sequence[str], sentence: str) -> Problem:
        """A problem at a key path, with the file that wrote it (or the nearest table above it)."""
        trail = tuple(path)
        while trail and trail not in self.origins:
            trail = trail[:-1]
        return Problem(self.origins.get(trail, self.default_origin), dotted(path), sentence)


def dotted(path: Sequence[str]) -> str:
    """A key path as TOML would write it, list indexes in brackets."""
    words = [part if part.startswith("[") else f".{part}" for part in path]
    return "".join(words).lstrip(".")


def config_files(main: Path) -> list[Path]:
    """The main file and then ``conf.d/*.toml`` beside it, by name."""
    return [main, *sorted((main.parent / "conf.d").glob("*.toml"))]


def load(files: Sequence[Path], *, trusted: bool = True) -> Document:
    """Read and merge TOML files. A key that two files set differently is an error; tables are joined.

    With ``trusted``, refuses a file that anyone but root and us could change: it says what root is to run.
    Raises ConfigError with everything that is wrong.
    """
    problems: list[Problem] = []
    merged: Table = {}
    origins: dict[tuple[str, ...], str] = {}
    for file in files:
        name = str(file)
        try:
            if trusted and (why := writable_by_others(file)):
                problems.append(Problem(name, "", f"refused: {why}; chown it to root and chmod go-w"))
                continue
            if file.exists() and not file.is_file():
                problems.append(Problem(name, "", "is no regular file"))
                continue
            table = tomli.loads(file.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            problems.append(Problem(name, "", "no such file; write one, or name another with --config"))
            continue
        except (OSError, UnicodeDecodeError, RecursionError, tomli.TOMLDecodeError) as error:
            problems.append(Problem(name, "", f"cannot be read: {error}"))
            continue
        _merge(merged, table, (), name, origins, problems)
    if problems:
        raise ConfigError(problems)
    return Document(merged, origins, str(files[0]))


def _merge(
    into: Table,
    table: Table,
    path: tuple[str, ...],
    name: str,
    origins: dict[tuple[str, ...], str],
    problems: list[Problem],
) -> None:
    for key, value in table.items():
        where = (*path, key)
        present = into.get(key)
        if isinstance(present, dict) and isinstance(value, dict):
            _merge(present, value, where, name, origins, problems)
        elif key in into and present != value:
            problems.append(Problem(name, dotted(where), f"{origins[where]} sets it to something else; keep one"))
        else:
            origins.setdefault(where, name)
            if isinstance(value, dict):
                into[key] = {}
                _merge(into[key], value, where, name, origins, problems)
            else:
                into[key] = value
