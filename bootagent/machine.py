"""The machine under the agent: the only runner of programs and writer of files.

Logical paths (``str``, as a configuration writes them) become real ones (``Path``, under ``root``) through
:meth:`Machine.real` alone; everything that touches the disk takes real paths, so the type checker tells them apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import shlex
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from bootagent.errors import BootagentError, CommandError, MachineError

#: The whole environment a program gets unless it is given more: a boot has none to inherit.
MINIMAL_ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
TAIL_BYTES = 4096
#: Of what a program prints, no more than this is kept: its end.
OUTPUT_BYTES = 1024 * 1024
KILL_SECONDS = 5.0
REMOVE_SECONDS = 600.0
BUSY_SECONDS = 5.0


@dataclass(frozen=True)
class Identity:
    """A user and group to act as. ``groups`` are the supplementary ones."""

    user: str
    group: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True)
class Transfer:
    """Progress of one long piece of work, in bytes; ``total`` is None while unknown."""

    label: str
    done: int
    total: int | None


@dataclass(frozen=True)
class Note:
    """Something worth a line in the log and on the timeline."""

    label: str
    details: Mapping[str, object] = field(default_factory=dict)


#: The process groups of the programs that run now.
_PROGRAMS: set[int] = set()

Listener = Callable[[Transfer | Note], None]


@dataclass(frozen=True)
class FreeSpace:
    """What a filesystem has left for an unprivileged user: bytes, and inodes (None where it does not count them)."""

    free_bytes: int
    inodes: int | None


class Machine:
    """Runs programs and writes files below ``root``. ``listener`` hears of progress."""

    def __init__(self, root: Path = Path("/"), listener: Listener = lambda event: None) -> None:
        self.root = root.absolute()
        self.tell = listener

    def heard_by(self, hear: Callable[[Note], None]) -> Machine:
        """The same machine, whose notes go to ``hear`` as well."""

        def tell(event: Transfer | Note) -> None:
            if isinstance(event, Note):
                hear(event)
            self.tell(event)

        return Machine(self.root, tell)

    def real(self, path: str) -> Path:
        """The real path of a logical absolute one.

        Raises BootagentError when it is not absolute or climbs with ``..``.
        """
        parts = path.split("/")
        if not path.startswith("/") or ".." in parts:
            raise BootagentError(f"{path!r} is not an absolute path without '..'")
        return self.root.joinpath(*[part for part in parts if part])

    # --- users -----------------------------------------------------------------------------------------------

    def identity(self, user: str | None, group: str | None = None) -> Identity | None:
        """The identity to act as for ``user``; None means "as I am": no user was named, it is us, or we are not root.

        Raises MachineError when the user or group does not exist.
        """
        if user is None or os.geteuid() != 0:
            return None
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise MachineError(
                f"user {user!r} does not exist on this machine", remedy=f"create it, e.g. adduser --system {user}"
            ) from None
        try:
            main = grp.getgrnam(group) if group else grp.getgrgid(entry.pw_gid)
        except KeyError:
            raise MachineError(f"group {group or entry.pw_gid!r} does not exist on this machine") from None
        if entry.pw_uid == os.geteuid() and main.gr_gid == os.getegid():
            return None
        extra = tuple(gid for gid in os.getgrouplist(user, entry.pw_gid) if gid != main.gr_gid)
        return Identity(user, main.gr_name, entry.pw_uid, main.gr_gid, extra, entry.pw_dir)

    def identity_of(self, uid: int) -> Identity | None:
        """The identity of a user id; None, for as we are, when there is no such user any more."""
        with contextlib.suppress(KeyError):
            return self.identity(pwd.getpwuid(uid).pw_name)
        return None

    # --- programs --------------------------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        timeout: float,
        identity: Identity | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        check: bool = True,
        shown: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program with a minimal environment plus ``env``, no standard input, the end of its output kept.

        ``env`` is as :meth:`start` has it. ``shown`` is what errors call the program; None: its command line.

        The program's whole process group is killed when it ends, and after ``timeout`` seconds.
        Raises CommandError when it cannot be started, fails (with ``check``) or is late.
        """
        shown = shown or shlex.join(str(word) for word in argv)
        with tempfile.TemporaryFile() as output:
            process = self.start(
                argv, stdout=output, stderr=subprocess.STDOUT, identity=identity, cwd=cwd, env=env, own_group=True
            )
            _PROGRAMS.add(process.pid)
            try:
                code = process.wait(timeout)
            except BaseException as caught:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):  # in an uninterruptible wait for a dead disk
                    process.wait(KILL_SECONDS)
                if isinstance(caught, subprocess.TimeoutExpired):
                    raise CommandError(
                        f"{shown} took longer than {timeout:g} s", tail=_tail(output, TAIL_BYTES)
                    ) from None
                raise
            finally:
                _PROGRAMS.discard(process.pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever it left behind in the background
            text = _tail(output, OUTPUT_BYTES)
            if check and code != 0:
                raise CommandError(f"{shown} {_ending(code)}", tail=text[-TAIL_BYTES:])
        return subprocess.CompletedProcess([str(word) for word in argv], code, text)

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        identity: Identity | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        own_group: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start a program with a minimal environment plus ``env``, where None is a variable that it is not to have.

        Raises CommandError when that is impossible.
        """
        given: dict[str, str | None] = {**MINIMAL_ENVIRONMENT, **login_environment(identity), **(env or {})}
        # Bytes: what a locale cannot encode would end up, whole, in an error.
        environment = {encoded(name): encoded(value) for name, value in given.items() if value is not None}
        words = [str(word) for word in argv]
        try:
            return subprocess.Popen(
                words,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env=environment,
                user=identity.uid if identity else None,
                group=identity.gid if identity else None,
                extra_groups=identity.groups if identity else None,
                start_new_session=own_group,
            )
        except OSError as error:
            remedy = f"install {words[0]}" if isinstance(error, FileNotFoundError) else None
            raise CommandError(f"cannot start {shlex.join(words)}: {error.strerror}", remedy=remedy) from error

    # --- files -----------------------------------------------------------------------------------------------

    def write(self, path: Path, content: bytes, *, mode: int = 0o644, owner: Identity | None = None) -> None:
        """Replace a file as a whole and durably: temporary file, fsync, rename, fsync of the directory."""
        # Always of one name: what a power cut left of it is gone with the next write.
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode)
                if owner:
                    os.fchown(file.fileno(), owner.uid, owner.gid)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)

    def link(self, path: Path, target: Path | str) -> None:
        """Point the symbolic link ``path`` at ``target`` atomically and durably.

        Raises BootagentError when something that is no link stands in its place: it may hold someone's data.
        """
        if path.exists() and not path.is_symlink():
            raise BootagentError(f"{path} is not a symbolic link", remedy="move it away")
        fresh = path.with_name(f".{path.name}.new")
        fresh.unlink(missing_ok=True)  # left by a run that was killed here
        fresh.symlink_to(target)
        fresh.replace(path)
        sync_directory(path.parent)

    def make_directory(self, path: Path, *, mode: int = 0o755) -> None:
        """Create a directory and its missing parents, where only we may write; ``mode`` is the last one's, if made."""
        if path.is_dir():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            path.chmod(mode)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory tree, if it is there. It is renamed first: half a tree never bears its name."""
        doomed = path.with_name(f".{path.name}.removed")
        if doomed.exists():  # left by a run that was killed here
            self.delete(doomed, within=path.parent)
        if path.exists():
            path.rename(doomed)
            self.delete(doomed, within=path.parent)

    def delete(self, path: Path, *, within: Path) -> None:
        """rm(1) from the directory ``within``: it walks by descriptors, follows no link and minds no depth.

        What somebody has mounted deeper down is not touched, and then this fails.

        Tried again for a moment: what a killed run left at work may still be writing. Raises CommandError.
        """
        name = f"./{path.name}"
        if os.geteuid() != 0:  # root needs no permission
            self.run(["chmod", "-Rf", "u+rwX", "--", name], timeout=REMOVE_SECONDS, cwd=within, check=False)
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self.run(["rm", "-rf", "--one-file-system", "--", name], timeout=REMOVE_SECONDS, cwd=within)
                return
            except CommandError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def sync_filesystem(self, path: Path) -> None:
        """Make everything written to the filesystem that holds ``path`` durable: one syncfs(2), through sync(1)."""
        self.run(["sync", "--file-system", path], timeout=600)

    def free_space(self, path: Path) -> FreeSpace:
        """What the filesystem that holds ``path`` (or its nearest existing parent) has left, from statvfs(3)."""
        while not path.exists():
            path = path.parent
        found = os.statvfs(path)
        return FreeSpace(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)

    @contextlib.contextmanager
    def locked(self, path: Path) -> Iterator[IO[str] | None]:
        """Hold an exclusive flock(2) on ``path``; yields the open file, or None when another process holds it."""
        # Not to be opened by others: flock(2) asks for no more than a descriptor, and they could hold it for ever.
        self.make_directory(path.parent, mode=0o700)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            yield file


def kill_programs() -> None:
    """Kill every program that :meth:`Machine.run` waits for, with whatever it has started. For a signal handler."""
    for pid in tuple(_PROGRAMS):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def encoded(word: str) -> bytes:
    """A word of an environment as programs get it, whatever the locale: UTF-8, and bytes that are none as they were."""
    return word.encode(errors="surrogateescape")


def login_environment(identity: Identity | None) -> dict[str, str]:
    """The variables a login would set for a user; for the agent's own when None."""
    if identity:
        user, home = identity.user, identity.home
    else:
        try:
            entry = pwd.getpwuid(os.geteuid())
            user, home = entry.pw_name, entry.pw_dir
        except KeyError:
            user, home = str(os.geteuid()), "/"
    return {"HOME": home, "USER": user, "LOGNAME": user, "SHELL": "/bin/sh"}


def writable_by_others(path: Path) -> str | None:
    """Why someone other than root and us could change ``path``, as a clause; None when nobody can.

    Every directory and link on the way is looked at too: who may rename one may replace what is in it.
    """
    trusted = {0, os.geteuid()}
    path.stat()  # that it is there, and no link leads in circles
    for place in _walked(path.absolute()):
        found = place.lstat()
        if found.st_uid not in trusted:
            return f"{place} belongs to uid {found.st_uid}"
        if stat.S_ISLNK(found.st_mode):
            continue
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        own_group = os.geteuid() != 0 and found.st_gid == os.getegid()
        loose = found.st_mode & (stat.S_IWOTH if own_group or found.st_gid == 0 else stat.S_IWOTH | stat.S_IWGRP)
        if loose and not sticky:
            return f"{place} can be written by others (mode {stat.S_IMODE(found.st_mode):o})"
    return None


def _walked(path: Path) -> list[Path]:
    """Every directory and link that decides what an absolute path leads to, and what it leads to."""
    here, left, places = Path("/"), list(path.parts[1:]), [Path("/")]
    while left:
        place = here / left.pop(0)
        if place.name == "..":
            here = here.parent
            continue
        places.append(place)
        if place.is_symlink():
            target = place.readlink()
            left = [*(target.parts[1:] if target.is_absolute() else target.parts), *left]
            here = Path("/") if target.is_absolute() else here
        else:
            here = place
    return places


def sync_directory(path: Path) -> None:
    """fsync(2) a directory, so that the names in it are durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tail(file: IO[bytes], most: int) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - most))
    return file.read(most).decode(errors="replace")


def _ending(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
