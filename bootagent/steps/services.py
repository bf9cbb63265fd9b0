"""The services of one app: exactly these, from this release, installed, started and seen to work."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bootagent import beneath
from bootagent.environment import directories, secrets
from bootagent.environment.concealed import Concealed, redacted
from bootagent.environment.directories import Tree
from bootagent.errors import BootagentError, MachineError, ServiceError
from bootagent.machine import Machine, Note
from bootagent.services import boot_order, cgroups, runit, runtimes, servicedir, servicefiles, takedown
from bootagent.services.bringup import Watch, bring_up
from bootagent.services.health import command_problem, http_problem, tcp_problem
from bootagent.services.reload import Reload
from bootagent.services.servicedir import LogEnd, ServiceDirectory
from bootagent.services.servicefiles import FREE, Confinement

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
Marker = Mapping[str, str | None]
_CHANGED = {"definition": "its definition, environment or secrets", "watched": "a file that is linked into the release"}


@dataclass(frozen=True)
class ServiceSpec:
    """One service, in plain fields. ``command`` None: the release's own service directory. Times in seconds.

    ``secrets`` is the directory of those it has. ``command`` follows the words of ``wrapper`` and runs in
    ``directory``: absolute, or below current. ``after`` are services, as ``APP.SERVICE``, that must be healthy first.
    ``reload`` is the signal that has it take up a new release; None: it is restarted. ``stop`` is a command run in
    current before TERM.
    """

    name: str
    command: tuple[str, ...] | None
    user: str
    group: str | None
    env: tuple[tuple[str, str], ...]
    log: str
    stable_for: float
    stop_within: float
    within: float
    http: str | None = None
    tcp: str | None = None
    check_command: tuple[str, ...] | None = None
    secrets: str | None = None
    runtime: runtimes.Kind = "auto"
    wrapper: tuple[str, ...] = ()
    directory: str = ""
    confinement: Confinement = FREE
    cgroup: cgroups.Limits | None = None
    after: tuple[str, ...] = ()
    reload: runit.Signal | None = None
    stop: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Services:
    """``app`` runs exactly these services, each up, healthy, and started from release ``mark``.

    ``mark`` None: whichever release ``current`` is at; somebody else put it there and restarts what it needs.
    ``specs`` are those configured, ``unnamed`` stands for any other that the release brings in ``release_services``;
    ``only`` narrows both by name. ``watched`` are files whose content counts: a change restarts the services,
    or reloads them.
    ``scripts`` is where the release's service directories have been copied to, when the release itself must not be
    touched by this process. ``needs`` are mountpoints that must be there before any of them starts. ``environment`` is
    the tree of their variables; ``hooks_secrets`` is a directory of secrets that the app's hooks have. ``before`` is
    how many seconds what comes before the app may take to start.
    """

    app: str
    current: str
    mark: str | None
    specs: tuple[ServiceSpec, ...]
    unnamed: ServiceSpec | None
    only: tuple[str, ...] | None
    release_services: str
    watched: tuple[str, ...]
    service_dir: str
    definitions: str
    scripts: str | None = None
    needs: tuple[str, ...] = ()
    environment: Tree | None = None
    hooks_secrets: str | None = None
    before: float = 0.0

    def __str__(self) -> str:
        if not self.specs and self.unnamed is None:
            return f"stop and remove the services of {self.app}"
        named = [spec.name for spec in self.specs if self.only is None or spec.name in self.only]
        if self.unnamed and self.only is None:
            named.append(f"{self.release_services}/*")
        return f"start and verify the services of {self.app} ({', '.join(named or self.only or ())})"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether all of them are installed as they should be, up for long enough, and pass their check."""
        wanted = self._wanted(machine)
        watched = self._watched(machine)
        if set(servicedir.installed(machine, self.definitions, self.app)) != {one.directory.name for one in wanted}:
            return False
        if self._left_secrets(machine):
            return False
        waits = self._waits(wanted)
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
        wanted = self._wanted(machine)
        watched = self._watched(machine)
        after = self._order(machine, [one.directory.name for one in wanted])
        log_ends = {one.directory.name: servicedir.log_end(machine, one.spec.log) for one in wanted}
        self._remove(machine, keep=log_ends)

        waits = self._waits(wanted)

        def begin(one: _Wanted) -> Watch | None:
            watch = self._begin(machine, one, one.marker(self.mark, watched), log_ends[one.directory.name])
            boot_order.note(machine, one.directory.outer(machine), waits[one.directory.name])
            return watch

        def done(one: _Wanted) -> None:
            one.directory.write_marker(machine, one.marker(self.mark, watched))

        try:
            bring_up(machine, {one.directory.name: one for one in wanted}, after, begin, done)
        except ServiceError as error:  # their logs are their own, but what is told of them goes further
            hidden = [value for one in wanted for value in one.hidden.values()]
            tail = redacted(error.tail, hidden, cut=True)
            raise ServiceError(redacted(error.sentence, hidden), tail=tail, remedy=error.remedy) from None
        for place in self._left_secrets(machine):
            secrets.remove(machine, place)

    def look_ahead(self, machine: Machine) -> None:
        """Raise now what would keep them from being started later, as far as it is to be seen; another app is not."""
        wanted = self._wanted(machine)
        self._order(machine, [one.directory.name for one in wanted], of_others=False)
        for one in wanted:
            if one.spec.runtime == "auto" and one.directory.shims is None:
                for place in self._places(machine, one.spec):
                    if (place / runtimes.VERSIONS).exists():
                        said = f"{one.directory.name} gets the system's programs: there is no asdf and no mise"
                        machine.tell(Note(said, {"not_heeded": str(place / runtimes.VERSIONS)}))

    def _remove(self, machine: Machine, keep: Collection[str]) -> None:
        """Take down and away what is not to run any more."""
        own = {f"{self.app}.{spec.name}": spec for spec in self.specs}
        gone = [name for name in servicedir.installed(machine, self.definitions, self.app) if name not in keep]
        within = {name: servicedir.patience(machine, self.definitions, name) for name in gone}
        after = {name: own[name].after for name in gone if name in own}
        takedown.take_down(machine, self.definitions, within, after)
        for name in gone:
            servicedir.remove(machine, self.definitions, self.service_dir, name)

    def _begin(self, machine: Machine, one: _Wanted, marker: Marker, log_end: LogEnd) -> Watch | None:
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

    def _reloaded(
        self, machine: Machine, one: _Wanted, marked: Marker, marker: Marker, log_end: LogEnd
    ) -> Watch | None:
        """Have a signal do instead of a restart, where it can: nothing but the release, or a watched file, is new."""
        found, signal = one.running(machine), one.spec.reload
        if signal is None or marked.get("definition") != marker["definition"]:
            return None
        if found is None or one.problem(machine):
            return None
        machine.tell(Note(f"{signal} to {one.directory.name}, which is to take up what is new", {"pid": found.pid}))
        seen = Reload(found.pid, one.within, machine.real(self.current).resolve())
        runit.reload(machine, one.directory.inner(machine), signal, identity=one.directory.identity)
        return Watch(one, log_end, seen)

    def _order(self, machine: Machine, names: Iterable[str], *, of_others: bool = True) -> dict[str, set[str]]:
        """For each service the others of this app that it comes after.

        Other apps are up by now, with what services they have. Raises BootagentError for one that there is not.
        """
        own = list(names)
        found = self._after(own)
        for name, others in found.items():
            for other in others:
                app = other.partition(".")[0]
                if app != self.app and not of_others:
                    continue
                there = own if app == self.app else servicedir.installed(machine, self.definitions, app)
                if other not in there:
                    raise MachineError(
                        f"service {name} comes after {other}, and {app} has {', '.join(there) or 'no service'}",
                        remedy="correct its after = [...]",
                    )
        return {name: {other for other in others if other in own} for name, others in found.items()}

    def _after(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """For each of these services those it comes after, of whatever app."""
        after = {f"{self.app}.{spec.name}": spec.after for spec in self.specs}
        return {name: after.get(name, ()) for name in names}

    def _waits(self, wanted: Iterable[_Wanted]) -> dict[str, float]:
        """How many seconds each waits for its turn at a boot."""
        within = {one.directory.name: boot_order.start_within(one.within, one.stable_for) for one in wanted}
        return boot_order.waits(within, self._after(within), before=self.before)

    def _wanted(self, machine: Machine) -> list[_Wanted]:
        root, place = self._own_scripts(machine)
        own = beneath.subdirectories(root, place) if self.unnamed and root.is_dir() else []
        own = [name for name in own if not name.startswith(".")]
        if odd := [name for name in own if not _NAME.fullmatch(name)]:
            raise BootagentError(
                f"{self.release_services}/{odd[0][:80]} of the release is no name for a service",
                remedy="letters, digits, _ and - only, at most 63",
            )
        configured = {spec.name: spec for spec in self.specs}
        names = [*configured, *(name for name in own if name not in configured)]
        if self.only is not None:
            if unknown := [name for name in self.only if name not in names]:
                # No fault of the release: it is not to be marked bad for it.
                raise MachineError(
                    f"this instance is to run {', '.join(unknown)}, and {self.app} has {', '.join(names) or 'none'}",
                    remedy="correct services = [...] of the role, or the tag that names the services",
                )
            names = [name for name in names if name in self.only]
        return [self._one(machine, name, configured.get(name), name in own) for name in names]

    def _own_scripts(self, machine: Machine) -> tuple[Path, str]:
        """Where the release's service directories are."""
        if self.scripts:
            return machine.real(self.scripts), "."
        return machine.real(self.current), self.release_services

    def _one(self, machine: Machine, name: str, spec: ServiceSpec | None, in_release: bool) -> _Wanted:
        if spec is None:
            assert self.unnamed is not None  # names come from specs, or from the release when there is one
            log = self.unnamed.log.replace("*", name)
            spec = ServiceSpec(**{**vars(self.unnamed), "name": name, "log": log})
        if spec.command is None and not in_release:
            raise BootagentError(
                f"service {name} of {self.app} has no command, and the release has no {self.release_services}/{name}",
                remedy="give it a command, or add the service directory to the release",
            )
        root, place = self._own_scripts(machine)
        files = (
            servicefiles.from_release(root, f"{place}/{name}")
            if spec.command is None
            else servicefiles.from_command(self._place(machine, spec), (*spec.wrapper, *spec.command))
        )
        if spec.stop and spec.command:  # a service directory of the release says it itself
            script = runit.stop_script(machine.real(self.current), (*spec.wrapper, *spec.stop), spec.stop_within)
            files = (*files, ("control/t", script, 0o755))
        identity = machine.identity(spec.user, spec.group)
        tree = directories.read(machine, self.environment, self.app, name) if self.environment else ()
        hidden = secrets.require(machine, spec.secrets) if spec.secrets else {}
        env = directories.for_service(tree, hidden, spec.env)
        directory = ServiceDirectory(
            name=f"{self.app}.{name}",
            files=files,
            env=env,
            log=spec.log,
            identity=identity,
            definitions=self.definitions,
            service_dir=self.service_dir,
            needs=self.needs,
            secrets=spec.secrets,
            without=tuple(sorted(hidden)),
            shims=runtimes.find(machine, spec.runtime, self._places(machine, spec), identity=identity, env=dict(env)),
            confinement=spec.confinement,
            cgroup=spec.cgroup,
        )
        spec.confinement.check(directory.name)
        if spec.cgroup:
            cgroups.check(machine, directory.name, spec.cgroup)
        return _Wanted(spec, directory, self.current, hidden)

    def _left_secrets(self, machine: Machine) -> list[str]:
        """The directories of secrets that no service has any more."""
        own = [spec for spec in self.specs if self.only is None or spec.name in self.only]
        # The role may name one that only the release knows.
        brings = self.unnamed and (self.only is None or {*self.only} - {spec.name for spec in self.specs})
        kept = {spec.secrets for spec in (*own, *((self.unnamed,) if brings and self.unnamed else ()))}
        kept.add(self.hooks_secrets)
        return [place for place in secrets.places(machine, self.app) if place not in kept]

    def _place(self, machine: Machine, spec: ServiceSpec) -> Path:
        """Where a command runs."""
        if spec.directory.startswith("/"):
            return machine.real(spec.directory)
        return machine.real(self.current) / spec.directory

    def _places(self, machine: Machine, spec: ServiceSpec) -> tuple[Path, ...]:
        """Where a service's version manager looks for versions: where it runs, and above that up to current."""
        place, current = self._place(machine, spec), machine.real(self.current)
        return (place, *(above for above in place.parents if above.is_relative_to(current)))

    def _watched(self, machine: Machine) -> str:
        digest = hashlib.sha256()
        for path in self.watched:
            real = machine.real(path)
            try:
                digest.update(beneath.read(real.parent, real.name)[0])
            except (FileNotFoundError, BootagentError):
                digest.update(b"\0absent")
        return digest.hexdigest()


@dataclass(frozen=True)
class Startable:
    """A release has what its services need, before it is switched to; ``services`` are as they would run from there."""

    services: Services

    def __str__(self) -> str:
        return f"see that {self.services.current} has what its services need"

    def is_satisfied(self, machine: Machine) -> bool:
        """Raises what would keep them from being started."""
        self.services.look_ahead(machine)
        return True

    def apply(self, machine: Machine) -> None:
        """There is nothing to be done."""


@dataclass(frozen=True)
class _Wanted:
    """A service that should run, with the directory that makes it."""

    spec: ServiceSpec
    directory: ServiceDirectory
    current: str
    hidden: Mapping[str, Concealed]

    def environment(self, machine: Machine) -> dict[str, str]:
        """What its checks get, as it does itself."""
        own = {name: value for name, value in self.directory.environment(machine).items() if value is not None}
        return {**{name: value.reveal() for name, value in self.hidden.items()}, **own}

    @property
    def stable_for(self) -> float:
        return self.spec.stable_for

    @property
    def within(self) -> float:
        return self.spec.within

    @property
    def stop_within(self) -> float:
        return self.spec.stop_within

    def marker(self, release: str | None, watched: str) -> dict[str, str | None]:
        facts = [self.directory.fingerprint(), secrets.digest(self.hidden)]
        definition = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return {"release": release, "definition": definition, "watched": watched}

    def running(self, machine: Machine) -> runit.Status | None:
        """What runit tells of its process; None when it has none."""
        found = runit.status(self.directory.inner(machine))
        return found if found and found.state == "run" else None

    def is_up(self, machine: Machine) -> bool:
        found = self.running(machine)
        if found is None:
            return False
        # runsv writes the time of day: one in the future was written before the clock was set back.
        return found.since > time.time() or found.uptime() >= self.spec.stable_for

    def problem(self, machine: Machine) -> str | None:
        """Why it does not work, by its configured check and then by the release's own check script."""
        spec, inner = self.spec, self.directory.inner(machine)
        found = None
        if spec.http:
            found = http_problem(spec.http)
        elif spec.tcp:
            found = tcp_problem(spec.tcp)
        identity, env = self.directory.identity, self.environment(machine)
        if found is None and spec.check_command:
            current = machine.real(self.current)
            found = command_problem(machine, spec.check_command, identity=identity, cwd=current, env=env)
        if found is None and (inner / "check").exists():
            found = command_problem(machine, ("./check",), identity=identity, cwd=inner, env=env)
        return found
