"""A release directory with the files of a commit."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent import beneath, footprint
from bootagent.git_repository import Commit, check_out
from bootagent.git_repository.address import without_secrets
from bootagent.machine import Machine


@dataclass(frozen=True)
class StagedCommit:
    """``release`` holds the files of ``commit``, all of them: the directory gets its name last.

    They come by way of the mirror in ``deploy_to/repo``. git runs as the app's user. ``within`` is in seconds.
    """

    release: str
    deploy_to: str
    commit: Commit
    within: float
    user: str
    group: str | None

    def __str__(self) -> str:
        return f"check out {self.commit.sha[:12]} of {without_secrets(self.commit.url)} to {self.release}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether the release has its name."""
        return machine.real(self.release).is_dir()

    def apply(self, machine: Machine) -> None:
        """Check out into a fresh directory beside it, then rename. A failed try leaves nothing but the mirror."""
        root, release = machine.real(self.deploy_to), machine.real(self.release)
        releases = str(release.parent.relative_to(root))
        owner = machine.identity(self.user, self.group)
        footprint.note(machine, f"{self.deploy_to}/repo", until="reset")
        partial = f".{release.name}.partial"
        beneath.remove_tree(machine, root, f"{releases}/{partial}")
        with beneath.directory(root, f"{releases}/{partial}", create=True, owner=owner):
            pass
        try:
            check_out(machine, self.commit, root, f"{releases}/{partial}", owner, self.within)
        except BaseException:
            beneath.remove_tree(machine, root, f"{releases}/{partial}")
            raise
        beneath.rename(root, releases, partial, release.name)
