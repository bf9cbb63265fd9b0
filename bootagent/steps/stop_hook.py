"""The stop hook of an app, run once its services are stopped for good."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bootagent import hooks, mounts
from bootagent.deadline import NO_HURRY, Deadline, cut
from bootagent.errors import BootagentError, CommandError, MachineError
from bootagent.leaving import MARKERS, Hook
from bootagent.machine import Machine, Note
from bootagent.services import runit

#: How long a release that is read in place has to answer: its server may be dead.
PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class StopHook:
    """The stop hook of an app has succeeded since its services went down; a file in MARKERS holds what it printed.

    It runs as the app's user in ``current``, with the environment that its app gives it, ``revision`` as
    ``BOOTAGENT_REVISION`` and the release's real path as ``BOOTAGENT_RELEASE``. Killed on the way, it is run again: at
    least once. ``services`` are the logical paths of the service directories that must be down first; where there are
    none, a stop before may have taken away all that it could run in. It gets less time than it may take where ``until``
    leaves no more.
    """

    hook: Hook
    revision: str
    services: tuple[str, ...]
    until: Deadline = NO_HURRY

    def __str__(self) -> str:
        hook = self.hook
        return f"run the stop hook {' '.join(hook.command)} in {hook.current} as {hook.user}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether it has, or there is nothing any more to run it in."""
        return self._marker(machine).is_file() or (not self.services and self._is_gone(machine))

    def apply(self, machine: Machine) -> None:
        """Run it. Raises CommandError with the end of its output, BootagentError while a service still runs."""
        if running := [path for path in self.services if _has_process(machine, path)]:
            raise BootagentError(f"it is not run: {', '.join(running)} still runs")
        printed = self._run(machine)
        marker = self._marker(machine)
        machine.make_directory(marker.parent, mode=0o700)
        machine.write(marker, printed.encode(), mode=0o600)

    def _is_gone(self, machine: Machine) -> bool:
        try:
            mounts.probe(machine, self.hook.current, PROBE_SECONDS)
        except mounts.Silent:
            return False
        except MachineError:  # it answers that
            return not machine.real(self.hook.current).exists()
        return False

    def _run(self, machine: Machine) -> str:
        hook, current = self.hook, machine.real(self.hook.current)
        mounts.probe(machine, hook.current, min(PROBE_SECONDS, self.until.grant(hook.within)))
        within = self.until.grant(hook.within)
        release = {"BOOTAGENT_REVISION": self.revision, "BOOTAGENT_RELEASE": str(current.resolve())}
        try:
            return hooks.run(
                machine,
                hook.command,
                current,
                identity=machine.identity(hook.user, hook.group),
                given=self._variables(machine),
                env={**dict(hook.env), **release},
                within=within,
            )
        except CommandError as error:
            said = f"{error.sentence}{cut(within, hook.within)}"
            raise CommandError(said, tail=error.tail, remedy=error.remedy) from error

    def _variables(self, machine: Machine) -> hooks.Variables:
        """What it is given. What cannot be had any more is no reason not to run it."""
        try:
            return hooks.variables(machine, self.hook.given) if self.hook.given else hooks.NOTHING
        except BootagentError as error:
            machine.tell(Note(f"the stop hook of {self.hook.app} has none of its app's variables", {"why": str(error)}))
            return hooks.NOTHING

    def _marker(self, machine: Machine) -> Path:
        return machine.real(f"{MARKERS}/{self.hook.app}")


def _has_process(machine: Machine, path: str) -> bool:
    found = runit.status(machine.real(path))
    return found is not None and found.pid != 0
