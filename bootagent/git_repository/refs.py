"""The commit that a name of a repository stands for now."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Mapping

from bootagent.errors import BootagentError, BundleError, MachineError
from bootagent.git_repository.access import Access
from bootagent.git_repository.address import Address, locate
from bootagent.git_repository.command import Git, GitError, explained
from bootagent.machine import Identity, Machine

#: How long a server may take to say what a name stands for.
RESOLVE_SECONDS = 60.0
_SHA = re.compile(r"[0-9a-fA-F]{40}|[0-9a-fA-F]{64}")
_LINE = re.compile(r"^([0-9a-f]{40}|[0-9a-f]{64})\t(\S+)$", re.MULTILINE)
#: What no name can hold: git-check-ref-format(1).
_NEVER = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|\.lock(/|$)|[./]$|^[-/]|(^|/)\.")
_NEAR = 3


def resolve(
    machine: Machine,
    url: str,
    ref: str,
    access: Access,
    identity: Identity | None,
    within: float = RESOLVE_SECONDS,
) -> str:
    """The full id of the commit that ``ref`` stands for: HEAD, a branch, a tag, or a name that begins with refs/.

    A full id is taken as it is, and nobody is asked. Of a branch and a tag of one name it is the branch: a branch is
    what is deployed from, and a tag can be meant as refs/tags/NAME. Raises BundleError when there is no such name,
    MachineError when nobody answers, AwsError when there is no key to be had.
    """
    address = locate(machine, url)
    if _SHA.fullmatch(ref):
        return ref.lower()
    if not ref or _NEVER.search(ref) or ref == "@":
        raise BootagentError(f"{ref!r} cannot be a git ref")
    git = Git(machine, access, identity, time.monotonic() + within)
    if sha := choose(_ask(git, address, *patterns(ref)), ref):
        return sha
    raise _unknown(address, ref, _ask(git, address))


def patterns(ref: str) -> list[str]:
    """What to ask ls-remote for: every name that ``ref`` may mean, and what annotated tags point at."""
    names = _names(ref)
    return [*names, *(f"{name}^{{}}" for name in names)]


def choose(found: Mapping[str, str], ref: str) -> str | None:
    """The commit among names and their ids; None when the name is not among them."""
    for name in _names(ref):
        if name in found:
            return found.get(f"{name}^{{}}", found[name])
    return None


def parse(listing: str) -> dict[str, str]:
    """Names and their ids from what ls-remote printed, warnings and all."""
    return {name: sha for sha, name in _LINE.findall(listing)}


def _names(ref: str) -> list[str]:
    if ref == "HEAD" or ref.startswith("refs/"):
        return [ref]
    return [f"refs/heads/{ref}", f"refs/tags/{ref}"]


def _ask(git: Git, address: Address, *names: str) -> dict[str, str]:
    try:
        return parse(git.remote(address, "ls-remote", "--quiet", "--", address.real, *names))
    except GitError as error:
        raise explained(f"ask {address} for its refs", address, error, git.access) from None
    except MachineError as error:
        raise MachineError(f"{error.sentence} (asked for its refs)", remedy=error.remedy) from None


def _unknown(address: Address, ref: str, found: Mapping[str, str]) -> BundleError:
    if not found:
        return BundleError(f"{address} is empty: it has no {ref}", remedy="push to it first")
    if ref == "HEAD":
        return BundleError(f"HEAD of {address} names a branch that is not there", remedy="name one in source.ref")
    short = {re.sub(r"^refs/(heads|tags)/", "", name): None for name in found if not name.endswith("^{}")}
    near = difflib.get_close_matches(ref, list(short), n=_NEAR)
    return BundleError(
        f"{address} has no branch or tag {ref!r}" + (f"; near it are {', '.join(near)}" if near else ""),
        remedy="push it, or correct source.ref; a commit is named by its full id",
    )
