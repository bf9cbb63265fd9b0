"""The git side of publishing: which commit, whether the work tree agrees with it, and a place to read it from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, TimeoutExpired
from typing import IO

from bootagent.errors import CommandError, UsageError
from bootagent.machine import MINIMAL_ENVIRONMENT, Machine

#: The names that mean "what I have in front of me", and so demand a clean work tree.
HEAD = ("HEAD", "@")
GIT_SECONDS = 600
SHOWN = 5


@dataclass(frozen=True)
class Tree:
    """One commit and the scratch repository it is read from; ``submodules`` are the paths of its gitlinks."""

    commit: str
    store: Path
    submodules: frozenset[str]


def resolve(machine: Machine, repo: Path, ref: str) -> str:
    """The full id of the commit that ``ref`` names in the work tree ``repo``.

    Raises UsageError when ``repo`` is not the top of a git work tree, or has no such commit.
    """
    if not repo.is_dir():
        raise UsageError(f"{repo} is not a directory", remedy="name the git work tree to publish with --repo")
    try:
        top = _line(_git(machine, repo, "rev-parse", "--show-toplevel"))
    except ToolError as error:
        raise UsageError(
            f"{repo} is not a git work tree: {error.said}", remedy="name the git work tree to publish with --repo"
        ) from error
    # Whether a part or the whole was meant is not ours to guess: both would look right until it serves.
    if Path(top).resolve() != repo.resolve():
        raise UsageError(f"{repo} is only a part of the git work tree {top}", remedy=f"publish all of it: --repo {top}")
    if ref.startswith("-") or not ref:
        raise UsageError(f"{ref!r} cannot be a git ref")
    try:
        return _line(_git(machine, repo, "rev-parse", "--verify", f"{ref}^{{commit}}"))
    except ToolError as error:
        remedy = "commit first" if ref in HEAD else "name a tag, branch or commit that is there; git fetch may be due"
        raise UsageError(f"{repo} has no commit {ref!r}: {error.said}", remedy=remedy) from error


def require_clean(machine: Machine, repo: Path) -> None:
    """Raise UsageError naming the first few files of the work tree that differ from HEAD or are not in it.

    Ignored files do not count.
    """
    status = _git(
        machine, repo, "status", "--porcelain=v1", "-z", "--untracked-files=normal", "--ignore-submodules=none"
    )
    changed = changes(status)
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise UsageError(
            f"{repo} holds what its HEAD does not: {', '.join(changed[:SHOWN])}{more}",
            remedy="commit, stash or ignore it, or publish a commit by its name with --ref",
        )


def changes(status: bytes) -> list[str]:
    """What ``git status --porcelain=v1 -z`` says, as ``name (how it differs)``. See git-status(1), "Porcelain"."""
    fields = iter(status.split(b"\0"))
    found = []
    for entry in fields:
        if not entry:
            continue
        code, name = entry[:2].decode(), entry[3:].decode(errors="replace")
        if "R" in code or "C" in code:
            next(fields, None)  # the name it had before
        found.append(f"{name} ({_WORDS.get(code, 'staged' if code[1] == ' ' else 'modified')})")
    return found


_WORDS = {"??": "untracked", " D": "deleted", "UU": "unmerged", "AA": "unmerged", "DD": "unmerged"}


def borrow(machine: Machine, repo: Path, commit: str, scratch: Path) -> Tree:
    """A new, empty repository in ``scratch`` that borrows the objects of ``repo``.

    ``git archive`` obeys much beside the commit: filters, line endings, attributes, replacements and umask of the
    system, the user and the clone. Here it finds none of these, so one commit is the same bytes for everyone.
    """
    objects = (repo / _line(_git(machine, repo, "rev-parse", "--git-path", "objects"))).resolve()
    store = scratch / "store.git"
    kind = ["--object-format=sha256"] if len(commit) == 64 else []
    _git(machine, scratch, "init", "--quiet", "--bare", "--template=", *kind, str(store), env=isolated(scratch))
    machine.write(store / "objects" / "info" / "alternates", os.fsencode(objects) + b"\n")
    listing = _git(machine, store, "ls-tree", "-r", "-z", commit, env=isolated(scratch))
    return Tree(commit, store, frozenset(gitlinks(listing)))


def gitlinks(listing: bytes) -> list[str]:
    """The paths of the submodules in what ``git ls-tree -r -z`` prints."""
    entries = (entry.partition(b"\t") for entry in listing.split(b"\0"))
    return [os.fsdecode(path) for meta, _, path in entries if meta.startswith(b"160000 ")]


def isolated(home: Path) -> dict[str, str]:
    """An environment in which git finds no configuration and no attributes but a repository's own."""
    return {
        "PATH": search_path(),
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
    }


def search_path() -> str:
    """Where programs are looked for: publishing happens on a workstation or in CI, whose PATH says where they are."""
    return os.environ.get("PATH") or MINIMAL_ENVIRONMENT["PATH"]


class ToolError(CommandError):
    """A program failed; ``said`` is the last line of its complaint."""

    def __init__(self, name: str, code: int, errors: IO[bytes]) -> None:
        errors.seek(0)
        tail = errors.read().decode(errors="replace")
        self.said = (tail.strip().splitlines() or ["it did not say why"])[-1]
        super().__init__(f"{name} failed with exit code {code}: {self.said}", tail=tail)


def _git(machine: Machine, directory: Path, *words: str, env: Mapping[str, str] | None = None) -> bytes:
    """What git prints, apart from its warnings; with the user's own configuration unless ``env`` says otherwise."""
    with tempfile.TemporaryFile() as errors:
        process = machine.start(
            ["git", "--no-replace-objects", "-C", directory, *words],
            stdout=PIPE,
            stderr=errors,
            env=env or _users_own(),
        )
        with process:
            try:
                output, _ = process.communicate(timeout=GIT_SECONDS)
            except BaseException as caught:
                process.kill()
                if isinstance(caught, TimeoutExpired):
                    raise CommandError(f"git {words[0]} took longer than {GIT_SECONDS} s") from None
                raise
        if process.returncode != 0:
            raise ToolError(f"git {words[0]}", process.returncode, errors)
        return output


def _users_own() -> dict[str, str]:
    # The user's configuration says what is ignored and which directories are safe; SUDO_UID whose repository root
    # may read. Taking no lock, we never get in the way of the user's own git.
    kept = {name: os.environ[name] for name in ("HOME", "XDG_CONFIG_HOME", "SUDO_UID") if name in os.environ}
    return {**kept, "PATH": search_path(), "GIT_OPTIONAL_LOCKS": "0"}


def _line(output: bytes) -> str:
    return os.fsdecode(output.removesuffix(b"\n"))
