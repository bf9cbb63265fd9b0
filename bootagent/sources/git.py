"""The git source: the commit that a branch or tag stands for now."""

from __future__ import annotations

from bootagent.config.model import GitSource
from bootagent.git_repository import Access, Commit
from bootagent.git_repository import resolve as commit_of
from bootagent.git_repository.address import without_secrets
from bootagent.machine import Machine
from bootagent.sources.revision import Revision


def resolve(machine: Machine, source: GitSource, region: str | None, user: str | None, group: str | None) -> Revision:
    """Ask the repository, as the app's user, what ``source.ref`` stands for; a full commit id is believed.

    ``user`` None: ask as the agent itself. A commit is its content, wherever it comes from. Raises BundleError when
    there is no such ref, MachineError when nobody answers, AwsError when the deploy key cannot be read.
    """
    access = Access(source.key, source.known_hosts, region)
    sha = commit_of(machine, source.url, source.ref, access, machine.identity(user, group))
    return Revision(
        id=f"git:{sha}",
        label=sha,
        origin=without_secrets(source.url),
        content=Commit(source.url, sha, source.submodules, source.key, source.known_hosts, region),
    )
