"""An app's environment tree from a git repository.

/var/lib/bootagent/environment/APP/    0700, root's: services run as other users, and one may be everybody's
    repo/                              the mirror
    COMMIT/                            the files of a commit
    current                            a link to the one that counts
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from bootagent.environment import directories
from bootagent.environment.directories import Tree
from bootagent.errors import MachineError
from bootagent.git_repository import Commit, check_out
from bootagent.machine import Machine

PLACE = "/var/lib/bootagent/environment"
CURRENT = "current"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def place(app: str) -> str:
    """Where the app's environment is kept; the tree is in ``current`` there."""
    return f"{PLACE}/{app}"


def present(machine: Machine, app: str) -> str | None:
    """The commit that is checked out; None for none."""
    link = machine.real(f"{place(app)}/{CURRENT}")
    if not link.is_symlink() or not link.is_dir():
        return None
    return link.readlink().name


def obtain(machine: Machine, app: str, commit: Commit, tree: Tree, within: float) -> None:
    """Have ``current`` lead to the commit's files, and only these there; ``tree`` is where the tree is in them.

    What cannot be an environment is not switched to. Raises BootagentError; ``within`` is in seconds.
    """
    home = machine.real(place(app))
    machine.make_directory(home, mode=0o700)
    if not (home / commit.sha).is_dir():
        _check_out(machine, home, commit, within)
    directories.check(machine, Tree(f"{place(app)}/{commit.sha}", tree.path, tree.layers, tree.shown), app)
    machine.link(home / CURRENT, commit.sha)
    for entry in home.iterdir():
        if _COMMIT.fullmatch(entry.name) and entry.name != commit.sha:
            machine.remove_tree(entry)


def forget_all(machine: Machine) -> None:
    """Remove what there is of any app. Raises MachineError."""
    try:
        machine.remove_tree(machine.real(PLACE))
    except OSError as error:
        raise MachineError(f"cannot remove {PLACE}: {error.strerror}") from None


def _check_out(machine: Machine, home: Path, commit: Commit, within: float) -> None:
    partial = f".{commit.sha}.partial"
    machine.remove_tree(home / partial)  # left by a run that was killed here
    machine.make_directory(home / partial)
    try:
        check_out(machine, commit, home, partial, None, within)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            machine.remove_tree(home / partial)
        raise
    machine.sync_filesystem(home)
    (home / partial).rename(home / commit.sha)
