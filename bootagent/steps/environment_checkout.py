"""An app's environment tree, as a commit of its git repository has it."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent.environment import checkout
from bootagent.environment.directories import Tree
from bootagent.git_repository import Commit
from bootagent.git_repository.address import without_secrets
from bootagent.machine import Machine


@dataclass(frozen=True)
class EnvironmentCheckout:
    """``tree``, which is in the repository, is what the commit holds. ``within`` is in seconds."""

    app: str
    commit: Commit
    tree: Tree
    within: float

    def __str__(self) -> str:
        return f"check out {self.commit.sha[:12]} of {without_secrets(self.commit.url)}, the environment of {self.app}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether that commit is the one that is switched to."""
        return checkout.present(machine, self.app) == self.commit.sha

    def apply(self, machine: Machine) -> None:
        """Check it out aside, see that it can be an environment, and switch to it."""
        checkout.obtain(machine, self.app, self.commit, self.tree, self.within)
