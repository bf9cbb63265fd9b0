"""The stop hook of an app, run once its services are stopped for good."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent import hooks, mounts
from bootagent.errors import BootagentError
from bootagent.machine import Machine
from bootagent.services import runit

#: How long a release that is read in place has to answer: its server may be dead.
PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class StopHook:
    """The ``stop`` hook of ``app`` has succeeded since its services went down; ``marker`` holds what it printed.

    It runs as the app's user in ``current``, with a minimal environment plus ``env`` and the release's real path as
    ``BOOTAGENT_RELEASE``. Killed on the way, it is run again: at least once. ``services`` are the logical paths of the
    service directories that must be down first. ``within`` is in seconds.
    """

    app: str
    current: str
    command: tuple[str, ...]
    within: float
    env: tuple[tuple[str, str], ...]
    user: str
    group: str | None
    services: tuple[str, ...]
    marker: str

    def __str__(self) -> str:
        return f"run the stop hook {' '.join(self.command)} in {self.current} as {self.user}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether it has."""
        return machine.real(self.marker).is_file()

    def apply(self, machine: Machine) -> None:
        """Run it. Raises CommandError with the end of its output, BootagentError while a service still runs."""
        if running := [path for path in self.services if _has_process(machine, path)]:
            raise BootagentError(f"it is not run: {', '.join(running)} still runs")
        current = machine.real(self.current)
        mounts.probe(machine, self.current, PROBE_SECONDS)
        printed = hooks.run(
            machine,
            self.command,
            current,
            identity=machine.identity(self.user, self.group),
            env={**dict(self.env), "BOOTAGENT_RELEASE": str(current.resolve())},
            within=self.within,
        )
        marker = machine.real(self.marker)
        machine.make_directory(marker.parent, mode=0o700)
        machine.write(marker, printed.encode(), mode=0o600)


def _has_process(machine: Machine, path: str) -> bool:
    found = runit.status(machine.real(path))
    return found is not None and found.pid != 0
