"""The services an app is to run, as configuration and release have them: what each is made of, and their order."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bootagent import beneath
from bootagent.environment import directories, secrets
from bootagent.environment.concealed import Concealed, redacted
from bootagent.environment.directories import Tree
from bootagent.errors import BootagentError, MachineError
from bootagent.machine import Machine
from bootagent.services import boot_order, cgroups, runit, runtimes, servicedir, servicefiles
from bootagent.services.health import command_problem, http_problem, tcp_problem
from bootagent.services.servicedir import ServiceDirectory
from bootagent.services.servicefiles import FREE, Confinement

Marker = Mapping[str, str | None]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


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
class Wanted:
    """A service that is to run from ``current``, with the directory that makes it; ``hidden`` are its secrets."""

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
        """How many seconds one process must stay up."""
        return self.spec.stable_for

    @property
    def within(self) -> float:
        """How many seconds its start may take."""
        return self.spec.within

    @property
    def stop_within(self) -> float:
        """How many seconds its stop may take."""
        return self.spec.stop_within

    def marker(self, release: str | None, watched: str) -> Marker:
        """What it is started from, to be compared with what is to be; ``watched`` stands for files besides."""
        facts = [self.directory.fingerprint(), secrets.digest(self.hidden)]
        definition = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return {"release": release, "definition": definition, "watched": watched}

    def running(self, machine: Machine) -> runit.Status | None:
        """What runit tells of its process; None when it has none."""
        found = runit.status(self.directory.inner(machine))
        return found if found and found.state == "run" else None

    def is_up(self, machine: Machine) -> bool:
        """Whether its process has stayed up for long enough."""
        found = self.running(machine)
        if found is None:
            return False
        # runsv writes the time of day: one in the future was written before the clock was set back.
        return found.since > time.time() or found.uptime() >= self.spec.stable_for

    def problem(self, machine: Machine) -> str | None:
        """Why it does not work, by its configured check and then by the release's own check script.

        A check has the service's secrets, and may print them: what it says is told and stored.
        """
        found = self._problem(machine)
        return found and redacted(found, self.hidden.values())

    def _problem(self, machine: Machine) -> str | None:
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


@dataclass(frozen=True)
class Roster:
    """What ``app`` runs from ``current``.

    ``specs`` are the services configured, ``unnamed`` stands for any other that the release brings in
    ``release_services``; ``only`` narrows both by name. ``scripts`` is where the release's service directories have
    been copied to, when the release itself must not be touched by this process. ``needs`` are mountpoints that must be
    there before any of them starts. ``environment`` is the tree of their variables. ``before`` is how many seconds what
    comes before the app may take to start.
    """

    app: str
    current: str
    specs: tuple[ServiceSpec, ...]
    unnamed: ServiceSpec | None
    only: tuple[str, ...] | None
    release_services: str
    service_dir: str
    definitions: str
    scripts: str | None = None
    needs: tuple[str, ...] = ()
    environment: Tree | None = None
    before: float = 0.0

    def __str__(self) -> str:
        named = [spec.name for spec in self.specs if self.only is None or spec.name in self.only]
        if self.unnamed and self.only is None:
            named.append(f"{self.release_services}/*")
        return ", ".join(named or self.only or ())

    def is_empty(self) -> bool:
        """Whether the app runs nothing, whatever a release brings."""
        return not self.specs and self.unnamed is None

    def wanted(self, machine: Machine) -> list[Wanted]:
        """Each as it should be.

        Raises BootagentError for what the release has not, or has wrong, MachineError for a name that there is not.
        """
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

    def after(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """For each of these services those it comes after, of whatever app."""
        after = {f"{self.app}.{spec.name}": spec.after for spec in self.specs}
        return {name: after.get(name, ()) for name in names}

    def order(self, machine: Machine, names: Iterable[str], *, of_others: bool = True) -> dict[str, set[str]]:
        """For each service the others of this app that it comes after.

        Other apps are up by now, with what services they have. Raises MachineError for one that there is not.
        """
        own = list(names)
        found = self.after(own)
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

    def installed(self, machine: Machine) -> list[str]:
        """The service directories that the app has, whoever wanted them."""
        return servicedir.installed(machine, self.definitions, self.app)

    def waits(self, wanted: Iterable[Wanted]) -> dict[str, float]:
        """How many seconds each waits for its turn at a boot."""
        within = {one.directory.name: boot_order.start_within(one.within, one.stable_for) for one in wanted}
        return boot_order.waits(within, self.after(within), before=self.before)

    def secret_places(self) -> set[str]:
        """The directories of the secrets that they have."""
        own = [spec for spec in self.specs if self.only is None or spec.name in self.only]
        # The role may name one that only the release knows.
        brings = self.only is None or {*self.only} - {spec.name for spec in self.specs}
        return {spec.secrets for spec in (*own, *((self.unnamed,) if brings and self.unnamed else ())) if spec.secrets}

    def places(self, machine: Machine, spec: ServiceSpec) -> tuple[Path, ...]:
        """Where a service's version manager looks for versions: where it runs, and above that up to current."""
        place, current = self._place(machine, spec), machine.real(self.current)
        return (place, *(above for above in place.parents if above.is_relative_to(current)))

    def _own_scripts(self, machine: Machine) -> tuple[Path, str]:
        """Where the release's service directories are."""
        if self.scripts:
            return machine.real(self.scripts), "."
        return machine.real(self.current), self.release_services

    def _one(self, machine: Machine, name: str, spec: ServiceSpec | None, in_release: bool) -> Wanted:
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
            shims=runtimes.find(machine, spec.runtime, self.places(machine, spec), identity=identity, env=dict(env)),
            confinement=spec.confinement,
            cgroup=spec.cgroup,
        )
        spec.confinement.check(directory.name)
        if spec.cgroup:
            cgroups.check(machine, directory.name, spec.cgroup)
        return Wanted(spec, directory, self.current, hidden)

    def _place(self, machine: Machine, spec: ServiceSpec) -> Path:
        """Where a command runs."""
        if spec.directory.startswith("/"):
            return machine.real(spec.directory)
        return machine.real(self.current) / spec.directory
