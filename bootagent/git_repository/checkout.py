"""The files of one commit: as git-archive(1) gives them, which is what Capistrano and ``bootagent publish`` do too.

So a commit becomes the same release by every way: without .git, with ``export-ignore`` and ``export-subst`` of its
.gitattributes obeyed, and every file with the commit's time. No filter runs: files that git-lfs keeps elsewhere are
refused.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

from bootagent import beneath
from bootagent.errors import BootagentError, BundleError, MachineError
from bootagent.git_repository import mirror, submodules
from bootagent.git_repository.access import Commit
from bootagent.git_repository.address import Address, locate, relative
from bootagent.git_repository.command import Git, GitError
from bootagent.machine import Identity, Machine, Note

#: Capistrano's ``repo_path``, below ``deploy_to``.
MIRROR = "repo"
#: git runs this itself, in the directory it was started in, and says so when it fails: "tar.<format>.command".
_UNPACK = "tar.unpack.command=tar --extract --preserve-permissions --no-same-owner --file=-"
#: What git itself has to complain of, and not of tar.
_GITS_OWN = re.compile(r"^(fatal|error): (?!.*(filter reported error|Broken pipe))", re.MULTILINE)
#: How a stand-in of git-lfs begins: its specification, "The Pointer". It has less than 1024 bytes.
_LFS = "version https://git-lfs.github.com/spec/v1"
_SHOWN = 3


@dataclass(frozen=True)
class _Place:
    """``root`` is ``deploy_to``; ``mirror`` and ``target`` are below it."""

    root: Path
    mirror: str
    target: str


def check_out(
    machine: Machine, commit: Commit, root: Path, target: str, identity: Identity | None, within: float
) -> None:
    """Put the commit's files into ``root/target``, an empty directory of ``identity``, by way of ``root/repo``.

    Raises MachineError when the repository cannot be reached in ``within`` seconds, BundleError when the commit cannot
    be used, AwsError when the key cannot be read.
    """
    git = Git(machine, commit.access, identity, time.monotonic() + within)
    address = locate(machine, commit.url)
    place = _Place(root, MIRROR, target)
    _one(git, address, commit.sha, place)
    _all_submodules(git, address, commit.sha, place, wanted=commit.submodules)
    _refuse_stand_ins(git, root, target)
    mirror.tidy(git, root / MIRROR)


def _one(git: Git, address: Address, sha: str, place: _Place) -> None:
    for again in (True, False):
        path = mirror.ensure(git, address, sha, place.root, place.mirror)
        try:
            archive(git, path, sha, place.root / place.target)
            return
        except GitError as error:
            if not _GITS_OWN.search(error.tail):
                raise MachineError(f"{place.root / place.target} cannot be written: {error.said}") from None
            if not again:
                raise MachineError(f"commit {sha} of {address} cannot be read: {error.said}") from None
            git.machine.tell(Note("the mirror is damaged", {"mirror": str(path), "git": error.said}))
        mirror.renew(git, address, place.root, place.mirror)


def archive(git: Git, path: Path, sha: str, target: Path) -> None:
    """Unpack the commit's files over what ``target`` holds. Raises GitError."""
    git.local(path, "archive", "--format=unpack", sha, cwd=target, settings=(_UNPACK,))


def _all_submodules(git: Git, address: Address, sha: str, place: _Place, *, wanted: bool) -> None:
    found = submodules.read(git, place.root / place.mirror, sha)
    if found and not wanted:
        git.machine.tell(Note("submodules are left empty", {"paths": [one.path for one in found]}))
        return
    for one in found:
        target = f"{place.target}/{one.path}"
        try:
            with beneath.directory(place.root, target):
                pass
        except FileNotFoundError:  # export-ignore
            continue
        inner = _submodule_address(git.machine, one, address)
        # In the mirror, where git itself keeps them, and by a name that no commit chooses.
        name = hashlib.sha256(inner.url.encode()).hexdigest()[:16]
        below = _Place(place.root, f"{MIRROR}/modules/{name}", target)
        try:
            _one(git, inner, one.sha, below)
        except MachineError as error:
            raise MachineError(f"submodule {one.path}: {error.sentence}", remedy=error.remedy) from None
        _all_submodules(git, inner, one.sha, below, wanted=True)


def _submodule_address(machine: Machine, one: submodules.Submodule, parent: Address) -> Address:
    try:
        address = locate(machine, relative(one.url, parent.url))
    except BootagentError as error:
        raise BundleError(f"submodule {one.path}: {error.sentence}", remedy=error.remedy) from None
    if address.protocol not in parent.protocols.split(":"):
        raise BundleError(
            f"submodule {one.path} is at {address}: {address.protocol} is not allowed there",
            remedy="use https or ssh in .gitmodules",
        )
    return address


def _refuse_stand_ins(git: Git, root: Path, target: str) -> None:
    """Raise BundleError for what git-lfs puts in place of a file's content."""
    words = ["find", ".", "-type", "f", "-size", "-1024c"]
    words += ["-exec", "grep", "--files-with-matches", "--line-regexp", "--fixed-strings", "-e", _LFS, "{}", "+"]
    lines = git.program(words, root / target).splitlines()
    names = [line[2:] for line in lines if line.startswith("./") and _begins(root, f"{target}/{line[2:]}")]
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise BundleError(
            f"what git-lfs keeps elsewhere is not in the commit: {', '.join(names[:_SHOWN])}{more}",
            remedy="keep what a release needs plainly in git, or leave it out with export-ignore in .gitattributes",
        )


def _begins(root: Path, name: str) -> bool:
    try:
        return beneath.read(root, name)[0].startswith(_LFS.encode())
    except (OSError, BootagentError):
        return False
