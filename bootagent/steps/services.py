"""The services of one app: exactly these, from this release, installed, started and seen to work."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from bootagent import beneath
from bootagent.environment import secrets
from bootagent.environment.concealed import redacted
from bootagent.errors import BootagentError, ServiceError
from bootagent.machine import Machine, Note
from bootagent.roster import Marker, Roster, Wanted
from bootagent.services import boot_order, runit, servicedir, takedown
from bootagent.services.bringup import Watch, bring_up
from bootagent.services.reload import Reload
from bootagent.services.servicedir import LogEnd

_CHANGED = {"definition": "its definition, environment or secrets", "watched": "a file that is linked into the release"}


@dataclass(frozen=True)
class Services:
    """An app runs exactly the services of ``roster``, each up, healthy, and started from release ``mark``.

    ``mark`` None: whichever release ``current`` is at; somebody else put it there and restarts what it needs.
    ``watched`` are files whose content counts: a change restarts the services, or reloads them. ``hooks_secrets`` is a
    directory of secrets that the app's hooks have.
    """

    roster: Roster
    mark: str | None
    watched: tuple[str, ...] = ()
    hooks_secrets: str | None = None

    def __str__(self) -> str:
        if self.roster.is_empty():
            return f"stop and remove the services of {self.roster.app}"
        return f"start and verify the services of {self.roster.app} ({self.roster})"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether all of them are installed as they should be, up for long enough, and pass their check."""
        wanted = self.roster.wanted(machine)
        watched = self._watched(machine)
        if {*self.roster.installed(machine)} != {one.directory.name for one in wanted}:
            return False
        if self._left_secrets(machine):
            return False
        waits = self.roster.waits(wanted)
        return all(
            one.directory.is_installed(machine)
            and boot_order.is_noted(one.directory.outer(machine), waits[one.directory.name])
            and one.marker(self.mark, watched) == one.directory.read_marker(machine, keep_release=self.mark is None)
            and one.is_up(machine)
            and one.problem(machine) is None
            for one in wanted
        )

    def apply(self, machine: Machine) -> None:
        """Remove what is no longer wanted; install and start what changed; wait until all work. Raises ServiceError.

        Each is begun once those it comes after are healthy; what has not changed keeps its process.
        """
        wanted = self.roster.wanted(machine)
        watched = self._watched(machine)
        after = self.roster.order(machine, [one.directory.name for one in wanted])
        log_ends = {one.directory.name: servicedir.log_end(machine, one.spec.log) for one in wanted}
        self._remove(machine, keep=log_ends)

        waits = self.roster.waits(wanted)

        def begin(one: Wanted) -> Watch | None:
            watch = self._begin(machine, one, one.marker(self.mark, watched), log_ends[one.directory.name])
            boot_order.note(machine, one.directory.outer(machine), waits[one.directory.name])
            return watch

        def done(one: Wanted) -> None:
            one.directory.write_marker(machine, one.marker(self.mark, watched))

        try:
            bring_up(machine, {one.directory.name: one for one in wanted}, after, begin, done)
        except ServiceError as error:  # their logs are their own, but what is told of them goes further
            hidden = [value for one in wanted for value in one.hidden.values()]
            tail = redacted(error.tail, hidden, cut=True)
            raise ServiceError(error.sentence, tail=tail, remedy=error.remedy) from None
        for place in self._left_secrets(machine):
            secrets.remove(machine, place)

    def _remove(self, machine: Machine, keep: Collection[str]) -> None:
        """Take down and away what is not to run any more."""
        definitions = self.roster.definitions
        gone = [name for name in self.roster.installed(machine) if name not in keep]
        within = {name: servicedir.patience(machine, definitions, name) for name in gone}
        takedown.take_down(machine, definitions, within, self.roster.after(gone))
        for name in gone:
            servicedir.remove(machine, definitions, self.roster.service_dir, name)

    def _begin(self, machine: Machine, one: Wanted, marker: Marker, log_end: LogEnd) -> Watch | None:
        """Have one service run as it should: leave it alone, reload it, or start it. None: there is nothing to do."""
        marked = one.directory.read_marker(machine, keep_release=self.mark is None) or {}
        if not one.directory.is_installed(machine):
            marked = {}
        if marked == marker:
            if one.is_up(machine) and one.problem(machine) is None:
                return None
            running = one.running(machine)
            kept = running.pid if running else 0
        else:
            kept = 0
            changed = [key for key in ("definition", "watched") if key in marked and marked[key] != marker[key]]
            if marked.get("release") == marker["release"] and changed:
                machine.tell(
                    Note(f"{one.directory.name} is to take up what has changed", {"because": _CHANGED[changed[0]]})
                )
            one.directory.unmark(machine)  # whatever becomes of it: nothing is known to work until it has been seen
            if watch := self._reloaded(machine, one, marked, marker, log_end):
                return watch
            one.directory.install(machine, stop_within=one.spec.stop_within)
        boot_order.begin(machine, one.directory.name)
        one.directory.start(machine)
        return Watch(one, log_end, kept=kept)

    def _reloaded(self, machine: Machine, one: Wanted, marked: Marker, marker: Marker, log_end: LogEnd) -> Watch | None:
        """Have a signal do instead of a restart, where it can: nothing but the release, or a watched file, is new."""
        found, signal = one.running(machine), one.spec.reload
        if signal is None or marked.get("definition") != marker["definition"]:
            return None
        if found is None or one.problem(machine):
            return None
        machine.tell(Note(f"{signal} to {one.directory.name}, which is to take up what is new", {"pid": found.pid}))
        seen = Reload(found.pid, one.within, machine.real(self.roster.current).resolve())
        runit.reload(machine, one.directory.inner(machine), signal, identity=one.directory.identity)
        return Watch(one, log_end, seen)

    def _watched(self, machine: Machine) -> str:
        digest = hashlib.sha256()
        for path in self.watched:
            real = machine.real(path)
            try:
                digest.update(beneath.read(real.parent, real.name)[0])
            except (FileNotFoundError, BootagentError):
                digest.update(b"\0absent")
        return digest.hexdigest()

    def _left_secrets(self, machine: Machine) -> list[str]:
        """The directories of secrets that nothing has any more."""
        kept = self.roster.secret_places() | {self.hooks_secrets}
        return [place for place in secrets.places(machine, self.roster.app) if place not in kept]
