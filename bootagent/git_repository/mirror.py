"""The bare clone in ``deploy_to/repo`` that releases are made from, as Capistrano makes and keeps it.

It belongs to the app's user, and only he works in it. Here it is made aside and renamed, so that it is whole or absent.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path, PurePosixPath

from bootagent import beneath
from bootagent.errors import BootagentError, CommandError, MachineError
from bootagent.git_repository.address import Address
from bootagent.git_repository.command import Git, GitError, explained
from bootagent.machine import Note

#: Another git, or one that was killed, may hold a lock file of the mirror; for so long it is waited for.
LOCK_SECONDS = 5.0
TIDY_SECONDS = 60.0


def ensure(git: Git, address: Address, sha: str, root: Path, place: str) -> Path:
    """The mirror at ``place`` below ``root``, with the commit in it. When it is in already, nobody is asked for it.

    Raises MachineError when it cannot be had now, BootagentError when the mirror is somebody else's.
    """
    path = root / place
    _require_ours(git, root, place)
    if has(git, path, sha):
        return path
    if not (path / "HEAD").exists() or not _update(git, address, path):
        renew(git, address, root, place)
    if not has(git, path, sha):
        _fetch_commit(git, address, path, sha)
    return path


def renew(git: Git, address: Address, root: Path, place: str) -> None:
    """Make the mirror anew, aside, in place of what is there. Raises MachineError."""
    parent, name = str(PurePosixPath(place).parent), PurePosixPath(place).name
    partial = f".{name}.partial"
    aside = str(PurePosixPath(parent) / partial)
    git.machine.tell(Note("cloning", {"repository": str(address)}))
    beneath.remove_tree(git.machine, root, aside)
    with beneath.directory(root, aside, create=True, owner=git.identity):
        pass
    try:
        # Without a template: no hooks. Not by hard links: a repository of this machine has another owner.
        git.remote(
            address, "clone", "--mirror", "--quiet", "--no-local", "--template=", "--", address.real, root / aside
        )
    except BaseException as caught:
        beneath.remove_tree(git.machine, root, aside)
        if isinstance(caught, GitError):
            raise explained(f"clone {address}", address, caught, git.access) from None
        raise
    beneath.remove_tree(git.machine, root, place)
    beneath.rename(root, parent, partial, name)


def has(git: Git, path: Path, sha: str) -> bool:
    """Whether the commit is in the mirror."""
    try:
        git.local(path, "cat-file", "-e", f"{sha}^{{commit}}")
    except GitError:
        return False
    return True


def tidy(git: Git, path: Path) -> None:
    """Let git pack what many fetches have left, if it thinks it is due. Nothing depends on it."""
    short = replace(git, deadline=min(git.deadline, time.monotonic() + TIDY_SECONDS))
    with contextlib.suppress(CommandError, MachineError):
        short.local(path, "gc", "--auto", "--quiet", settings=("gc.auto=6700", "gc.autoDetach=false"))


def _update(git: Git, address: Address, path: Path) -> bool:
    """Fetch what is new; False: the mirror is of no use any more."""
    git.machine.tell(Note("fetching", {"repository": str(address)}))
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            _point_at(git, address, path)
            git.remote(address, "remote", "update", "--prune", directory=path)
            return True
        except GitError as error:
            if error.is_outside:
                raise explained(f"fetch from {address}", address, error, git.access) from None
            if ".lock'" not in error.tail or time.monotonic() > until:
                git.machine.tell(Note("the mirror is damaged", {"mirror": str(path), "git": error.said}))
                return False
        time.sleep(0.5)


def _point_at(git: Git, address: Address, path: Path) -> None:
    """The repository may have moved since the mirror was made."""
    if git.local(path, "config", "--get", "remote.origin.url").strip() != address.real:
        git.local(path, "remote", "set-url", "origin", address.real)


def _fetch_commit(git: Git, address: Address, path: Path, sha: str) -> None:
    """A commit that no name leads to any more, or that was never under one: most servers give it when asked."""
    try:
        git.remote(address, "fetch", "--quiet", "--no-tags", "origin", sha, directory=path)
    except GitError as error:
        if error.is_outside and "not our ref" not in error.tail:
            raise explained(f"fetch {sha} from {address}", address, error, git.access) from None
        raise MachineError(
            f"{address} does not have commit {sha}: {error.said}",
            remedy="push it; or, if a branch has moved, try again",
        ) from None


def _require_ours(git: Git, root: Path, place: str) -> None:
    wanted = git.identity.uid if git.identity else os.geteuid()
    try:
        with beneath.directory(root, place) as descriptor:
            owner = os.fstat(descriptor).st_uid
    except FileNotFoundError:
        return
    if owner != wanted:
        who = git.identity.user if git.identity else f"uid {wanted}"
        raise BootagentError(
            f"{root / place} belongs to uid {owner}, not to {who}",
            remedy="let Capistrano deploy as the app's user, or chown -R it to him",
        )
