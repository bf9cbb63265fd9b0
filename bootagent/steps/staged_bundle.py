"""A release directory unpacked from a bundle."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent import beneath
from bootagent.machine import Machine
from bootagent.pull.bundle import Bundle, Limits, pull


@dataclass(frozen=True)
class StagedBundle:
    """``release`` holds the bundle's content, all of it: the directory gets its name last."""

    release: str
    bundle: Bundle
    limits: Limits
    within: float
    user: str
    group: str | None

    def __str__(self) -> str:
        return f"unpack s3://{self.bundle.bucket}/{self.bundle.key} to {self.release}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether the release has its name."""
        return machine.real(self.release).is_dir()

    def apply(self, machine: Machine) -> None:
        """Unpack into a fresh directory beside it, then rename. A failed try leaves nothing."""
        release = machine.real(self.release)
        root, releases = release.parent.parent, release.parent.name
        owner = machine.identity(self.user, self.group)
        partial = release.with_name(f".{release.name}.partial")
        beneath.remove_tree(machine, root, f"{releases}/{partial.name}")
        with beneath.directory(root, f"{releases}/{partial.name}", create=True, owner=owner):
            pass
        try:
            pull(
                machine,
                self.bundle,
                partial,
                limits=self.limits,
                identity=owner,
                within=self.within,
                label=f"pull {self.bundle.key}",
            )
        except BaseException:
            beneath.remove_tree(machine, root, f"{releases}/{partial.name}")
            raise
        beneath.rename(root, releases, partial.name, release.name)
