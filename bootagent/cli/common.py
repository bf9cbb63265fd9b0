"""What commands have in common: the options that say where, and the ways to print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bootagent.arguments import DEFAULT_CONFIG
from bootagent.errors import BootagentError, ConfigError, UsageError, plain

#: A developer's machine has no metadata, and whoever sits there waits.
HERE_SECONDS = 2.0


def machine_of(options: argparse.Namespace, listener: Callable[[Any], None] = lambda event: None) -> Any:
    """The machine that the options are about."""
    from bootagent.machine import Machine

    return Machine(Path(options.root), listener)


def config_file(options: argparse.Namespace) -> Path:
    """The configuration file: the one that was named, or the usual one."""
    if options.config:
        return Path(options.config)
    found: Path = machine_of(options).real(DEFAULT_CONFIG)
    return found


def place_of(options: argparse.Namespace) -> list[str]:
    """The options that say where the machine is, in full: the daemon does not keep our working directory's meaning."""
    config = ["--config", str(Path(options.config).absolute())] if options.config else []
    return ["--root", str(Path(options.root).absolute()), *config]


def definitions_of(options: argparse.Namespace) -> str:
    """Where service directories are; a broken configuration must not keep ``status`` from answering."""
    from bootagent.config import document, resolve

    try:
        found = resolve.validate(document.load(document.config_files(config_file(options)), trusted=False))
    except ConfigError:
        return "/etc/sv"
    place: str = found.tables["runit"]["definitions"]
    return place


def instance_here() -> Any:
    """The instance this is; on a machine that is none, nothing is known of it."""
    from bootagent import instance

    try:
        return instance.read(instance.Overrides(), lambda tags: set(), within=HERE_SECONDS)
    except BootagentError:
        return instance.Instance(None, None)


def tags_of(options: argparse.Namespace) -> dict[str, str]:
    """The tags that were given. Raises UsageError."""
    return dict(pairs(options.tag, "--tag KEY=VALUE", empty=True))


def pairs(words: Sequence[str], form: str, *, empty: bool = False) -> list[tuple[str, str]]:
    """Each KEY=VALUE; ``form`` is what it is told to look like. Raises UsageError."""
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals and (value or empty)):
            raise UsageError(f"{word!r} has not the form {form}")
        pairs.append((key, value))
    return pairs


def print_json(found: Any) -> None:
    """To standard output."""
    print(json.dumps(found, indent=2, default=str))


def complain(sentence: str) -> None:
    """A sentence on standard error, with nothing in it that a terminal acts upon."""
    print(f"bootagent: {plain(sentence)}", file=sys.stderr)


def indented(text: str) -> str:
    """What a program said, set off."""
    return "\n".join(f"    | {plain(line)}" for line in text.strip().splitlines())
