"""The release prepared by its one hook."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent.errors import BootagentError
from bootagent.machine import Machine, writable_by_others


@dataclass(frozen=True)
class Prepared:
    """The ``prepare`` hook has succeeded in this release, once; ``marker`` holds what it printed.

    It runs as the app's user, in the release, with a minimal environment plus ``env`` and the release's real path as
    ``BOOTAGENT_RELEASE``.
    """

    release: str
    command: tuple[str, ...]
    within: float
    env: tuple[tuple[str, str], ...]
    user: str
    group: str | None
    marker: str

    def __str__(self) -> str:
        return f"run the prepare hook {' '.join(self.command)} in {self.release} as {self.user}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether it has."""
        return machine.real(self.marker).is_file()

    def apply(self, machine: Machine) -> None:
        """Run it. Raises CommandError with the end of its output; BootagentError for a hook others could change."""
        release = machine.real(self.release)
        program = self._program(machine)
        # Should this run be killed, the next must not find the hook still at work.
        result = machine.run(
            ["setpriv", "--pdeathsig", "KILL", "--", program, *self.command[1:]],
            timeout=self.within,
            identity=machine.identity(self.user, self.group),
            cwd=release,
            env={**dict(self.env), "BOOTAGENT_RELEASE": str(release)},
        )
        marker = machine.real(self.marker)
        machine.make_directory(marker.parent, mode=0o700)
        machine.write(marker, result.stdout.encode(), mode=0o600)

    def _program(self, machine: Machine) -> str:
        """What the first word names: a program of the image, which nobody else may write, or the release's own."""
        named = self.command[0]
        if not named.startswith("/"):
            return str(machine.real(self.release) / named) if "/" in named else named
        real = machine.real(named)
        if not real.exists():
            return named
        if why := writable_by_others(real):
            raise BootagentError(f"hook {named} is refused: {why}", remedy="chown root, chmod go-w")
        return str(real)
