"""The tree of directories that make up an environment: ``common``, ``staging``, ``web``, ``web/puma``; the inner wins.

A release's tree belongs to the app's user, so nothing in it is followed and nothing in it may be large.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootagent import beneath
from bootagent.environment import values
from bootagent.errors import BootagentError, MachineError
from bootagent.machine import Machine

#: Far more than a service has; a program's whole environment is limited too, execve(2).
MAX_VARIABLES = 2000

Variables = Mapping[str, str | None]


@dataclass(frozen=True)
class Tree:
    """Where a tree is: ``path`` below the logical ``root``. ``layers`` come before the app's own directory.

    ``shown`` is its name for people. ``of_release``: what is wrong with it is the release's fault. ``copied``: it is a
    copy, which is empty when there was nothing to copy.
    """

    root: str
    path: str
    layers: tuple[str, ...]
    shown: str
    of_release: bool = False
    copied: bool = False


@dataclass(frozen=True)
class Layer:
    """One directory's variables; None for those it unsets."""

    name: str
    variables: Variables


def read(machine: Machine, tree: Tree, app: str, service: str | None) -> tuple[Layer, ...]:
    """What a service finds in the tree, the outermost first; a directory that is not there has nothing.

    ``service`` None: what all services of the app find. Raises BootagentError when there is no such tree, or something
    in it cannot be a variable.
    """
    return _read(machine, tree, (*tree.layers, app, *((f"{app}/{service}",) if service else ())))


def check(machine: Machine, tree: Tree, app: str) -> None:
    """Raise what :func:`read` would for any service of the app."""
    places = [*tree.layers, app]
    _read(machine, tree, (*places, *(f"{app}/{name}" for name in _subdirectories(machine, tree, app))))


def merged(layers: Iterable[Layer]) -> dict[str, str | None]:
    """All of them in one, the later ones winning; None for what stays unset."""
    found: dict[str, str | None] = {}
    for layer in layers:
        found.update(layer.variables)
    return found


def for_service(
    layers: Sequence[Layer], secrets: Collection[str], explicit: Sequence[tuple[str, str]]
) -> tuple[tuple[str, str | None], ...]:
    """The variables of a service's own directory: the tree's, and over them those of the configuration.

    What its ``secrets`` bring is left to them.
    """
    tree = {name: value for name, value in merged(layers).items() if name not in secrets}
    return tuple(sorted({**tree, **dict(explicit)}.items()))


def read_directory(root: Path, relative: str, shown: str) -> dict[str, str | None]:
    """The variables of one directory, as ``chpst -e`` has them: but for directories and names with a dot first.

    Raises FileNotFoundError when it is absent, BootagentError for what cannot be a variable.
    """
    with beneath.directory(root, relative) as descriptor:
        # Not recursive: below the app's directory are those of its services.
        names = sorted(entry.name for entry in os.scandir(descriptor) if not _is_passed_over(entry))
    if len(names) > MAX_VARIABLES:
        raise BootagentError(f"{shown} has more than {MAX_VARIABLES} variables")
    found: dict[str, str | None] = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # gone since
            found[name] = _variable(root, relative, name, shown)
    return found


def _is_passed_over(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".") or stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode)


def _variable(root: Path, relative: str, name: str, shown: str) -> str | None:
    # Before it is read: nothing of a file that is no variable may end up in a sentence.
    values.require(name, None, shown)
    value = values.decode(beneath.read(root, f"{relative}/{name}")[0])
    values.require(name, value, shown)
    return value


def _read(machine: Machine, tree: Tree, places: Iterable[str]) -> tuple[Layer, ...]:
    try:
        root = machine.real(tree.root)
        _require_tree(root, tree)
        layers = []
        for place in dict.fromkeys(places):
            name = f"{tree.shown}/{place}"
            try:
                layers.append(Layer(name, read_directory(root, f"{tree.path}/{place}", name)))
            except FileNotFoundError:
                layers.append(Layer(name, {}))
        return tuple(layers)
    except OSError as error:
        raise MachineError(f"{tree.shown} cannot be read: {error.strerror}") from None
    except MachineError:
        raise
    except BootagentError as error:
        if tree.of_release:
            raise
        raise MachineError(error.sentence, remedy=error.remedy) from None  # no release is to blame


def _require_tree(root: Path, tree: Tree) -> None:
    try:
        with beneath.directory(root, tree.path) as descriptor:
            if not tree.copied or next(os.scandir(descriptor), None):
                return
    except FileNotFoundError:
        pass
    raise BootagentError(
        f"the environment's directories are to be in {tree.shown}, and it does not exist",
        remedy="make it, or correct environment in the app's configuration",
    )


def _subdirectories(machine: Machine, tree: Tree, app: str) -> list[str]:
    root = machine.real(tree.root)
    return beneath.subdirectories(root, f"{tree.path}/{app}") if root.is_dir() else []
