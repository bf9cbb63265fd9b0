"""The NFS source: the release that the server's ``current`` names.

Everything below the mountpoint is asked by a child under a deadline, since a server that dies hangs whoever asks.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from bootagent import mounts
from bootagent.config.model import App, NfsSource
from bootagent.errors import BootagentError, CommandError, MachineError
from bootagent.machine import Identity, Machine
from bootagent.sources.revision import InPlace, Revision, Tree

ASK_SECONDS = 15.0
REVISION = "REVISION"


def resolve(machine: Machine, app: App, source: NfsSource) -> Revision:
    """Read where ``current`` leads and what its REVISION says. The export must be mounted.

    Raises MachineError when the server does not answer, BootagentError when there is no release to see.
    """
    asked = f"{source.mountpoint}/{source.path}" if source.copy else f"{app.deploy_to}/current"
    ask = _Asker(machine, machine.identity(app.user, app.group))
    if mounts.at(machine, source.mountpoint) is None:
        raise MachineError(f"{source} is not mounted at {source.mountpoint}")
    ask.afresh(str(PurePosixPath(asked).parent))
    target = ask.link(asked)
    place = _directory(ask, asked, target) if source.copy else _in_place(ask, asked, target)
    if not ask.is_directory(place):
        raise BootagentError(f"{asked} of {source} is no release", remedy="deploy to the server first")
    ask.afresh(place)
    revision = ask.first_line(f"{place}/{REVISION}")
    made = revision or ask.identity(place)
    name = PurePosixPath(place if source.copy else target).name if target else made
    return Revision(
        id=f"nfs:{source.server}:{source.export}:{name}:{made}",
        label=name,
        origin=f"{source}/{source.path if source.copy else 'current'}",
        content=Tree(place) if source.copy else InPlace(),
    )


def _in_place(ask: _Asker, link: str, target: str | None) -> str:
    if target is None or ask.is_directory(link):
        return link
    raise _unseen(link, target)


def _directory(ask: _Asker, asked: str, target: str | None) -> str:
    """The directory behind what is to be copied, links resolved: they may lead elsewhere before the copy is made.

    An absolute link means a place on the server; the mount may stand elsewhere.
    """
    parts = PurePosixPath(target or "").parts
    moved = PurePosixPath(asked).parent.joinpath(*parts[-2:])
    elsewhere = (target, str(moved)) if target and target.startswith("/") and ".." not in parts else ()
    for place in (asked, *elsewhere):
        if found := ask.resolved(place):
            return found
    if target:
        raise _unseen(asked, target)
    return asked


def _unseen(link: str, target: str) -> BootagentError:
    return BootagentError(
        f"{link} leads to {target}, which is not to be seen on this machine",
        remedy="mount the export where the server has it, make the link relative, or set copy = true",
    )


class _Asker:
    """Asks about paths that may hang, as the app's user."""

    def __init__(self, machine: Machine, identity: Identity | None) -> None:
        self._machine = machine
        self._identity = identity

    def afresh(self, directory: str) -> None:
        """Let the kernel ask the server about a directory: what it has seen there it believes for a minute, nfs(5)."""
        self._ask("stat", "--cached=never", "--format=", "--", self._real(directory))

    def link(self, path: str) -> str | None:
        """Where a symbolic link points; None for anything else."""
        return self._ask("readlink", "--", self._real(path))

    def resolved(self, path: str) -> str | None:
        """The path without links, "." and ".."; None when it leads nowhere, or out of the machine's root."""
        found = self._ask("readlink", "--canonicalize-existing", "--", self._real(path))
        root = PurePosixPath(self._real("/"))
        if found is None or not PurePosixPath(found).is_relative_to(root):
            return None
        return f"/{PurePosixPath(found).relative_to(root)}"

    def is_directory(self, path: str) -> bool:
        """Whether it is one, links followed."""
        return self._ask("test", "-d", self._real(path)) is not None

    def first_line(self, path: str) -> str | None:
        """Of a file; None when there is none that can be read, or it is empty."""
        said = self._ask("head", "-c", "200", "--", self._real(path))
        return next(iter((said or "").strip().splitlines()), None)

    def identity(self, path: str) -> str:
        """What changes when a directory is another one, or gets or loses an entry."""
        return self._ask("stat", "--dereference", "--format=%i.%Y", "--", self._real(path)) or "unknown"

    def _real(self, path: str) -> str:
        return mounts.place(self._machine, path)

    def _ask(self, *argv: str) -> str | None:
        try:
            done = self._machine.run(argv, timeout=ASK_SECONDS, identity=self._identity, check=False)
        except CommandError as error:
            raise MachineError(f"the NFS server does not answer: {error.sentence}") from error
        return done.stdout.rstrip("\n") if done.returncode == 0 else None
