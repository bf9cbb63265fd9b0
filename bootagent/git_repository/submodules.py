"""Which other repositories a commit refers to: gitmodules(5)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bootagent.errors import BundleError
from bootagent.git_repository.command import Git, GitError

_KEY = re.compile(r"submodule\.(?P<name>.*)\.(?P<what>path|url)", re.DOTALL)
_ENTRY = re.compile(r"160000 commit ([0-9a-f]{40}|[0-9a-f]{64})\t(.*)", re.DOTALL)


@dataclass(frozen=True)
class Submodule:
    """A repository at ``path`` of another one's files: the commit recorded there, and the URL as it is written."""

    path: str
    sha: str
    url: str


def read(git: Git, mirror: Path, sha: str) -> list[Submodule]:
    """The submodules of a commit, by path. Raises BundleError when .gitmodules makes no sense."""
    try:
        git.local(mirror, "cat-file", "-e", f"{sha}:.gitmodules")
    except GitError:
        return []
    try:
        urls = parse(git.local(mirror, "config", "--blob", f"{sha}:.gitmodules", "--null", "--list"))
        listing = git.local(mirror, "ls-tree", "-z", "--full-tree", sha, "--", *sorted(urls)) if urls else ""
    except GitError as error:
        raise BundleError(f".gitmodules of commit {sha} makes no sense: {error.said}") from None
    found = []
    for path, commit in sorted(gitlinks(listing).items()):
        if not (url := urls.get(path)):
            raise BundleError(f"submodule {path} of commit {sha} has no URL in .gitmodules", remedy="commit one")
        found.append(Submodule(path, commit, url))
    return found


def parse(settings: str) -> dict[str, str | None]:
    """Paths and URLs from what ``git config --null --list`` prints of .gitmodules: key, newline, value, NUL."""
    named: dict[str, dict[str, str]] = {}
    for setting in settings.split("\0"):
        key, _, value = setting.partition("\n")
        if (match := _KEY.fullmatch(key)) and value:
            named.setdefault(match["name"], {})[match["what"]] = value
    return {one["path"]: one.get("url") for one in named.values() if "path" in one}


def gitlinks(listing: str) -> Mapping[str, str]:
    """Paths and commits of the submodules in what ``git ls-tree -z`` prints."""
    return {match[2]: match[1] for entry in listing.split("\0") if (match := _ENTRY.fullmatch(entry))}
