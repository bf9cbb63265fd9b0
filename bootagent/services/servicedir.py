"""A runit service directory that runs an app's scripts as the app's user.

    /etc/sv/APP.NAME/            root's: nobody else may say what root runs
        run                      drops to the user, then starts a runsv of his on the directory below
        env/                     the environment but for secrets, for chpst -e; only root can read it
        service/                 run, finish, check, log/run, control/ … as the release has them, given to the user
        bootagent.json           the marker: which release and definition was last seen to work
        stop_within              how many seconds it may take to stop
        wait                     how long it waits for its turn at a boot
    /etc/service/APP.NAME        a link to it

The user's own runsv makes the scripts safe to hand over, and lets the user ``sv`` the inner directory without root.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from bootagent import beneath
from bootagent.errors import BootagentError, MachineError
from bootagent.machine import MINIMAL_ENVIRONMENT, Identity, Machine, login_environment
from bootagent.services import boot_order, cgroups, leftovers, runit, takedown
from bootagent.services.runscript import RunScript, together
from bootagent.services.runtimes import Shims
from bootagent.services.servicefiles import FREE, Confinement, Files, confined

MARKER = "bootagent.json"
#: How many seconds the service may take to stop, for whoever removes it when nothing else tells any more; and how many
#: when this does not tell either.
PATIENCE = "stop_within"
STOP_SECONDS = 10.0
#: Where logs go unless configured; what is there is ours to give to whoever the service's user is now.
OWN_LOGS = "/var/log/bootagent/"
_TAIL_LINES = 5
_TAIL_BYTES = 8192


def installed(machine: Machine, definitions: str, app: str) -> list[str]:
    """The service directories this agent made for ``app``, even half-way."""
    root = machine.real(definitions)
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if entry.name.startswith(f"{app}.") and _is_ours(entry))


def apps_installed(machine: Machine, definitions: str) -> list[str]:
    """The apps that have service directories of this agent."""
    root = machine.real(definitions)
    if not root.is_dir():
        return []
    return sorted({entry.name.partition(".")[0] for entry in root.iterdir() if "." in entry.name and _is_ours(entry)})


def _is_ours(entry: Path) -> bool:
    return (entry / MARKER).exists()


def patience(machine: Machine, definitions: str, name: str) -> float:
    """How many seconds a service may take to stop, as it was installed."""
    try:
        return float((machine.real(definitions) / name / PATIENCE).read_text())
    except (OSError, ValueError):
        return STOP_SECONDS


def remove(machine: Machine, definitions: str, service_dir: str, name: str, *, within: float | None = None) -> None:
    """Stop a service for good: its processes, both runsvs, the link and the directory.

    ``within`` None: it may take as long as it might when it was installed.
    """
    outer = machine.real(definitions) / name
    within = patience(machine, definitions, name) if within is None else within
    link = machine.real(service_dir) / name
    takedown.end(machine, outer, within)  # whoever holds its output would keep the log's program from ending
    link.unlink(missing_ok=True)
    if runit.is_supervised(outer):
        runit.leave(machine, outer, within=within)
    cgroups.remove(machine, name)
    boot_order.forget(machine, name)
    _forget_secrets(machine, name)
    machine.remove_tree(outer)


def _forget_secrets(machine: Machine, name: str) -> None:
    place = together(machine, name)
    machine.remove_tree(place)
    with contextlib.suppress(OSError):  # others are in it
        place.parent.rmdir()


LogEnd = tuple[int, int]


def log_end(machine: Machine, log: str) -> LogEnd:
    """Where a service's log ends now: inode and size of svlogd's current file."""
    with contextlib.suppress(OSError, BootagentError), _log_file(machine, log) as file:
        found = os.fstat(file.fileno())
        return found.st_ino, found.st_size
    return 0, 0


def log_tail(machine: Machine, log: str, *, since: LogEnd) -> str:
    """The last lines of a service's log, of those written ``since``; empty when there are none."""
    with contextlib.suppress(OSError, BootagentError), _log_file(machine, log) as file:
        found = os.fstat(file.fileno())
        begin = since[1] if found.st_ino == since[0] else 0
        file.seek(max(begin, found.st_size - _TAIL_BYTES))
        return "\n".join(file.read(_TAIL_BYTES).decode(errors="replace").splitlines()[-_TAIL_LINES:])
    return ""


def _log_file(machine: Machine, log: str) -> IO[bytes]:
    with beneath.directory(machine.real(log)) as parent:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open("current", flags, dir_fd=parent)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BootagentError(f"{log}/current is no regular file")
    return os.fdopen(descriptor, "rb")


@dataclass(frozen=True)
class ServiceDirectory:
    """One service directory as it should be. ``identity`` None: as the agent itself.

    ``needs`` are mountpoints: at a boot, runsvdir may be there before they are. Nor may ``secrets`` be: a directory as
    ``chpst -e`` reads it, on a tmpfs, which somebody else fills. What ``env`` says goes over them; None unsets a
    variable. What everybody has goes over them too, but for the names in ``without``. ``shims`` go before any PATH.
    """

    name: str
    files: Files
    env: tuple[tuple[str, str | None], ...]
    log: str
    identity: Identity | None
    definitions: str
    service_dir: str
    needs: tuple[str, ...] = ()
    secrets: str | None = None
    without: tuple[str, ...] = ()
    shims: Shims | None = None
    confinement: Confinement = FREE
    cgroup: cgroups.Limits | None = None

    def outer(self, machine: Machine) -> Path:
        """Root's directory."""
        return machine.real(self.definitions) / self.name

    def inner(self, machine: Machine) -> Path:
        """The user's directory."""
        return self.outer(machine) / "service"

    def fingerprint(self) -> str:
        """Equal exactly when the definition is."""
        files = [(path, hashlib.sha256(content).hexdigest(), mode) for path, content, mode in self.files]
        others = (self.identity, self.shims, self.confinement, self.cgroup)
        rest = (self.name, self.env, self.log, self.secrets, self.without, *(one and vars(one) for one in others))
        return hashlib.sha256(json.dumps([files, *rest]).encode()).hexdigest()

    def is_installed(self, machine: Machine) -> bool:
        """Whether every file and the link are as they should be, and no other is there."""
        outer, link = self.outer(machine), machine.real(self.service_dir) / self.name
        if not link.is_symlink() or link.readlink() != outer:
            return False
        if self.cgroup and not cgroups.is_made(machine, self.name, self.cgroup):
            return False
        return _present(outer) == {path: (content, mode) for path, content, mode in self._outer_files(machine)}

    def install(self, machine: Machine, *, stop_within: float) -> None:
        """Write the files, stop what ran from the old ones, and hand the service to runsvdir."""
        outer, inner = self.outer(machine), self.inner(machine)
        if self.cgroup:
            cgroups.make(machine, self.name, self.cgroup)
        self._make_log(machine)
        for directory in (outer, inner):
            machine.make_directory(directory)
        if not (outer / MARKER).exists():
            self.unmark(machine)  # ours from the first file on, so that a killed run's leavings are found
        wanted = {path: (content, mode) for path, content, mode in self._outer_files(machine)}
        self._forget_other_user(machine)
        self._note_patience(machine, stop_within)
        before = _present(outer)
        takedown.end(machine, outer, stop_within)  # the work of one release is not to go on beside that of another
        for path in before.keys() - wanted.keys():
            (outer / path).unlink()
        for path, (content, mode) in wanted.items():
            if before.get(path) != (content, mode):
                self._write(machine, path, content, mode)
        for place in (inner, inner / "log"):
            with beneath.directory(place, "supervise", create=True, owner=self.identity, claim=True) as supervise:
                os.fchmod(supervise, 0o700)
        # Where mounts change places, the log's program may still be in the old one.
        # And secrets that have changed reach the service only through its runsv.
        if runit.is_supervised(outer) and (self.needs or self.secrets or _reaches_runsv(before, wanted)):
            runit.restart(machine, outer, within=stop_within)
        self._forget_what_is_left(machine)
        machine.make_directory(machine.real(self.service_dir))
        machine.link(machine.real(self.service_dir) / self.name, outer)

    def _forget_other_user(self, machine: Machine) -> None:
        """What runsv wrote as another user the new one could not touch: stop it all and begin afresh."""
        outer = self.outer(machine)
        try:
            found = (outer / "service/supervise").lstat().st_uid
        except FileNotFoundError:
            return
        if found != (self.identity.uid if self.identity else os.geteuid()):
            remove(machine, self.definitions, self.service_dir, self.name)
            self.unmark(machine)
            machine.make_directory(self.inner(machine))

    def _note_patience(self, machine: Machine, stop_within: float) -> None:
        path, content = self.outer(machine) / PATIENCE, f"{stop_within:g}\n".encode()
        if not path.exists() or path.read_bytes() != content:
            machine.write(path, content)

    def _forget_what_is_left(self, machine: Machine) -> None:
        """Of a definition that had a control group, or secrets."""
        if not self.cgroup:
            cgroups.remove(machine, self.name)
        if not self.secrets:
            _forget_secrets(machine, self.name)

    def _make_log(self, machine: Machine) -> None:
        """Make the log directory; svlogd writes it as the user. It may lie where another user can write."""
        path = self.log.strip("/")
        with beneath.directory(machine.root, str(PurePosixPath(path).parent), create=True):
            pass
        with beneath.directory(machine.root, path, create=True, owner=self.identity) as log:
            uid, gid = (self.identity.uid, self.identity.gid) if self.identity else (os.geteuid(), os.getegid())
            if self.log.startswith(OWN_LOGS):
                os.fchmod(log, 0o750)
            if os.fstat(log).st_uid == uid:
                return
            if not self.log.startswith(OWN_LOGS):
                raise MachineError(
                    f"log directory {self.log} of {self.name} does not belong to its user", remedy="chown it"
                )
            for entry in os.scandir(log):  # the service's user has changed
                os.chown(entry.name, uid, gid, dir_fd=log, follow_symlinks=False)
            os.fchown(log, uid, gid)

    def start(self, machine: Machine) -> None:
        """Ask for it to be up, if runit has it and somebody asked for it to be down."""
        for directory, identity in ((self.outer(machine), None), (self.inner(machine), self.identity)):
            found = runit.status(directory)
            if found and not found.wants_up:
                runit.start(machine, directory, identity=identity)

    def _write(self, machine: Machine, path: str, content: bytes, mode: int) -> None:
        target = self.outer(machine) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        # The user gets the files; the directories stay root's, so that no link can be slipped under root's writes.
        machine.write(target, content, mode=mode, owner=self.identity if path.startswith("service/") else None)

    def environment(self, machine: Machine) -> dict[str, str | None]:
        """All variables of the service but for its secrets; None for those it is not to have."""
        common = {**MINIMAL_ENVIRONMENT, **login_environment(self.identity)}
        given: dict[str, str | None] = {name: value for name, value in common.items() if name not in self.without}
        given |= {**dict(self.env), leftovers.VARIABLE: str(self.outer(machine))}
        return {**given, **(self.shims.over(given) if self.shims else {})}

    def _outer_files(self, machine: Machine) -> list[tuple[str, bytes, int]]:
        files = [("run", self._run_script(machine), 0o755)]
        variables = runit.environment_directory(self.environment(machine))
        files += [(f"env/{name}", value, 0o600) for name, value in variables.items()]
        files += [(f"service/{path}", content, mode) for path, content, mode in confined(self.files, self.confinement)]
        if "log/run" not in [path for path, _, _ in self.files]:
            # The service's own PATH may lead anywhere.
            path, log = MINIMAL_ENVIRONMENT["PATH"], shlex.quote(str(machine.real(self.log)))
            files.append(("service/log/run", f"#!/bin/sh\nPATH={path}\nexec svlogd -tt {log}\n".encode(), 0o755))
        return files

    def _run_script(self, machine: Machine) -> bytes:
        return RunScript(
            name=self.name,
            directory=str(self.outer(machine)),
            identity=self.identity,
            needs=self.needs,
            secrets=self.secrets,
            cgroup=self.cgroup,
            confinement=self.confinement,
        ).text(machine)

    # --- the marker --------------------------------------------------------------------------------------------

    def read_marker(self, machine: Machine, *, keep_release: bool) -> dict[str, str | None] | None:
        """What the marker says; without its release when that does not matter. None when there is none."""
        try:
            found: dict[str, str | None] = json.loads((self.outer(machine) / MARKER).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return {**found, "release": None} if keep_release and found else found

    def write_marker(self, machine: Machine, marker: Mapping[str, str | None]) -> None:
        """Say that this release and definition works."""
        content = json.dumps(marker).encode() + b"\n"
        path = self.outer(machine) / MARKER
        if path.read_bytes() != content:
            machine.write(path, content, mode=0o600)  # it digests the environment, which holds secrets

    def unmark(self, machine: Machine) -> None:
        """Say that the directory is ours and nothing is known to work."""
        outer = self.outer(machine)
        machine.make_directory(outer)
        machine.write(outer / MARKER, b"{}\n", mode=0o600)


def _present(outer: Path) -> dict[str, tuple[bytes, int]]:
    """The files of a service directory but for the marker and what runsv keeps."""
    if not outer.is_dir():
        return {}
    found: dict[str, tuple[bytes, int]] = {}
    for path, _ in beneath.files(outer, ".", without="supervise"):
        if path not in (MARKER, PATIENCE, boot_order.WAIT):
            try:
                found[path] = beneath.read(outer, path)
            except (FileNotFoundError, BootagentError):  # swollen, or no file: not what it should be in any case
                found[path] = (b"", 0)
    return found


def _reaches_runsv(before: Mapping[str, object], wanted: Mapping[str, object]) -> bool:
    """Whether a change concerns what the inner runsv was started with, not only what it runs."""

    def started_with(files: Mapping[str, object]) -> dict[str, object]:
        return {path: item for path, item in files.items() if not path.startswith("service/") or "/log/" in path}

    return started_with(before) != started_with(wanted)
