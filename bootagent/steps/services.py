"""The services of one app: exactly these, from this release, installed, started and seen to work."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bootagent import beneath, cgroups, runit, runtimes, servicedir, servicefiles
from bootagent.environment import directories, secrets
from bootagent.environment.concealed import Concealed
from bootagent.environment.directories import Tree
from bootagent.errors import BootagentError, MachineError, ServiceError
from bootagent.health import command_problem, http_problem, tcp_problem
from bootagent.machine import Machine, Note
from bootagent.servicedir import LogEnd, ServiceDirectory
from bootagent.servicefiles import FREE, Confinement

POLL_SECONDS = 0.1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True)
class ServiceSpec:
    """One service, in plain fields. ``command`` None: the release's own service directory. Times in seconds.

    ``secrets`` is the directory of those it has. ``command`` follows the words of ``wrapper`` and runs in
    ``directory``: absolute, or below current.
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


@dataclass(frozen=True)
class Services:
    """``app`` runs exactly these services, each up, healthy, and started from release ``mark``.

    ``mark`` None: whichever release ``current`` is at; somebody else put it there and restarts what it needs.
    ``specs`` are those configured, ``unnamed`` stands for any other that the release brings in ``release_services``;
    ``only`` narrows both by name. ``watched`` are files whose content counts: a change restarts the services.
    ``scripts`` is where the release's service directories have been copied to, when the release itself must not be
    touched by this process. ``needs`` are mountpoints that must be there before any of them starts. ``environment`` is
    the tree of their variables.
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
        return all(
            one.directory.is_installed(machine)
            and one.marker(self.mark, watched) == one.directory.read_marker(machine, keep_release=self.mark is None)
            and one.is_up(machine)
            and one.problem(machine) is None
            for one in wanted
        )

    def apply(self, machine: Machine) -> None:
        """Remove what is no longer wanted; install and start what changed; wait until all work. Raises ServiceError."""
        wanted = self._wanted(machine)
        watched = self._watched(machine)
        log_ends = {one.directory.name: servicedir.log_end(machine, one.spec.log) for one in wanted}
        keep = {one.directory.name for one in wanted}
        for name in servicedir.installed(machine, self.definitions, self.app):
            if name not in keep:
                servicedir.remove(machine, self.definitions, self.service_dir, name)
        for one in wanted:
            marked = one.directory.read_marker(machine, keep_release=self.mark is None)
            if one.marker(self.mark, watched) != marked or not one.directory.is_installed(machine):
                one.directory.unmark(machine)
                one.directory.install(machine, stop_within=one.spec.stop_within)
            one.directory.start(machine)
        self._verify(machine, wanted, log_ends)
        for one in wanted:
            one.directory.write_marker(machine, one.marker(self.mark, watched))
        for place in self._left_secrets(machine):
            secrets.remove(machine, place)

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
                raise BootagentError(
                    f"the role asks for service {', '.join(unknown)}, and {self.app} has {', '.join(names) or 'none'}",
                    remedy="correct services = [...] of the role",
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
        if spec.cgroup:
            cgroups.check(machine, directory.name, spec.cgroup)
        return _Wanted(spec, directory, self.current, hidden)

    def _left_secrets(self, machine: Machine) -> list[str]:
        """The directories of secrets that no service has any more."""
        specs = (*self.specs, *((self.unnamed,) if self.unnamed else ()))
        return [place for place in secrets.places(machine, self.app) if place not in {spec.secrets for spec in specs}]

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

    def _verify(self, machine: Machine, wanted: list[_Wanted], log_ends: Mapping[str, LogEnd]) -> None:
        """Watch all of them at once until each has kept one PID for long enough and passed its check."""
        watches = [_Watch(one) for one in wanted]
        waiting = watches
        while waiting:
            for watch in waiting:
                watch.look(machine)
            for watch in [watch for watch in waiting if watch.healthy]:
                machine.tell(Note(f"{watch.wanted.directory.name} is healthy", {"pid": watch.pid}))
            if unseen := [watch.wanted.directory.name for watch in waiting if watch.is_unseen()]:
                raise MachineError(
                    f"no runsv took up {', '.join(unseen)}: is runsvdir watching {self.service_dir}?",
                    remedy="start runit",
                )
            if failed := [watch for watch in watches if watch.failed]:
                raise _failure(machine, failed, log_ends)
            waiting = [watch for watch in waiting if not watch.healthy]
            if waiting:
                time.sleep(POLL_SECONDS)


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

    def marker(self, release: str | None, watched: str) -> dict[str, str | None]:
        facts = [self.directory.fingerprint(), watched, secrets.digest(self.hidden)]
        return {"release": release, "definition": hashlib.sha256(json.dumps(facts).encode()).hexdigest()}

    def is_up(self, machine: Machine) -> bool:
        found = runit.status(self.directory.inner(machine))
        if found is None or found.state != "run":
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


class _Watch:
    """What has been seen of one service since it was started."""

    def __init__(self, wanted: _Wanted) -> None:
        self.wanted = wanted
        self.healthy = False
        self.failed: str | None = None
        self.pid = 0
        self._ends: set[float] = set()
        self._since = 0.0
        self._problem: str | None = None
        self._scanned_by = time.monotonic() + 3 * runit.SCAN_SECONDS
        self._deadline: float | None = None
        self._next_check = 0.0

    def look(self, machine: Machine) -> None:
        now = time.monotonic()
        found = runit.status(self.wanted.directory.inner(machine))
        if found is None:
            self.pid = 0
        elif not found.wants_up:  # a `down` file, or an order from before
            self.wanted.directory.start(machine)
        if found and self._deadline is None:  # its own time counts from the moment runit has it
            self._deadline = now + max(self.wanted.spec.within, self.wanted.spec.stable_for + 1)
        pid = found.pid if found and found.state == "run" else 0
        if pid != self.pid:
            self.pid, self._since = pid, now
        if found and not pid and found.wants_up:
            self._ends.add(found.since)  # runsv waits a second between two of them, so that each is seen
        if pid and now - self._since >= self.wanted.spec.stable_for and now >= self._next_check:
            self._problem = self.wanted.problem(machine)
            again = runit.status(self.wanted.directory.inner(machine))
            self.healthy = self._problem is None and again is not None and again.pid == pid
            self._next_check = time.monotonic() + 0.25
        if self._deadline is not None and now > self._deadline and not self.healthy:
            self.failed = self._why()

    def is_unseen(self) -> bool:
        """Whether runit has had time enough to notice the service, and has not."""
        return self._deadline is None and time.monotonic() > self._scanned_by

    def _why(self) -> str:
        if len(self._ends) > 1:
            return f"it crashed {len(self._ends)} times"
        if not self.pid:
            return "it ended at once" if self._ends else "it did not start"
        return self._problem or f"it was not up for {self.wanted.spec.stable_for:g} s"


def _failure(machine: Machine, failed: list[_Watch], log_ends: Mapping[str, LogEnd]) -> ServiceError:
    sentences = [
        f"service {watch.wanted.directory.name} is not healthy after {watch.wanted.spec.within:g} s: {watch.failed}"
        for watch in failed
    ]
    tails = [
        servicedir.log_tail(machine, watch.wanted.spec.log, since=log_ends[watch.wanted.directory.name])
        for watch in failed
    ]
    return ServiceError("; ".join(sentences), tail="\n".join(filter(None, tails)))
