"""The release prepared by its one hook."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent import hooks
from bootagent.hooks import NOTHING, Given
from bootagent.machine import Machine


@dataclass(frozen=True)
class Prepared:
    """The ``prepare`` hook has succeeded in this release, once; ``marker`` holds what it printed.

    It runs as the app's user, in the release, with a minimal environment, what its app has ``given`` it, ``env``, and
    the release's real path as ``BOOTAGENT_RELEASE``.
    """

    release: str
    command: tuple[str, ...]
    within: float
    env: tuple[tuple[str, str], ...]
    user: str
    group: str | None
    marker: str
    given: Given | None = None

    def __str__(self) -> str:
        return f"run the prepare hook {' '.join(self.command)} in {self.release} as {self.user}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether it has."""
        return machine.real(self.marker).is_file()

    def apply(self, machine: Machine) -> None:
        """Run it. Raises CommandError with the end of its output; BootagentError for a hook others could change."""
        release = machine.real(self.release)
        printed = hooks.run(
            machine,
            self.command,
            release,
            identity=machine.identity(self.user, self.group),
            given=hooks.variables(machine, self.given) if self.given else NOTHING,
            env={**dict(self.env), "BOOTAGENT_RELEASE": str(release)},
            within=self.within,
        )
        marker = machine.real(self.marker)
        machine.make_directory(marker.parent, mode=0o700)
        machine.write(marker, printed.encode(), mode=0o600)
