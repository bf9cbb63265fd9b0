"""The switch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from bootagent import beneath, footprint
from bootagent.errors import BootagentError
from bootagent.machine import Machine


@dataclass(frozen=True)
class Current:
    """``current`` points at ``releases/NAME``. ``log`` is the line for ``revisions.log``, if any.

    ``demoted`` is the release it leaves because it is bad: Capistrano's rollback should think it the oldest.
    """

    deploy_to: str
    name: str
    log: str | None
    demoted: str | None
    user: str
    group: str | None

    def __str__(self) -> str:
        return f"point {self.deploy_to}/current at releases/{self.name}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether it does."""
        root = machine.real(self.deploy_to)
        return beneath.read_link(root, "current") == self._target(machine)

    def apply(self, machine: Machine) -> None:
        """Make the release durable, tell the log, and switch, atomically and last."""
        root = machine.real(self.deploy_to)
        release = root / "releases" / self.name
        if not release.is_dir():
            raise BootagentError(f"{self.deploy_to}/releases/{self.name} is gone")
        if (root / "current").exists() and not (root / "current").is_symlink():
            raise BootagentError(f"{self.deploy_to}/current is no symbolic link", remedy="move it away")
        footprint.note(machine, f"{self.deploy_to}/current", f"{self.deploy_to}/revisions.log", until="reset")
        # Capistrano's rollback goes by modification time: the order of activation is what it should see.
        beneath.set_time(root, f"releases/{self.name}", None)
        if self.demoted:
            with suppress(FileNotFoundError):
                beneath.set_time(root, f"releases/{self.demoted}", 0)
        machine.sync_filesystem(release)
        if self.log is not None:
            # Before the link, which is last; a run killed between the two does not tell it twice.
            beneath.append_line(root, "revisions.log", self.log, owner=machine.identity(self.user, self.group))
        machine.link(root / "current", self._target(machine))

    def _target(self, machine: Machine) -> str:
        return str(machine.real(self.deploy_to) / "releases" / self.name)
