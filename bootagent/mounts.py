"""The mount table, and mounting: by mount(8) and umount(8), in a child under a deadline.

A dead NFS server hangs whoever touches its mount, beyond the reach of SIGKILL. So this process asks the kernel's table
about a mountpoint, never the mountpoint; whether that answers, a child finds out.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootagent import footprint
from bootagent.errors import BootagentError, CommandError, MachineError, plain
from bootagent.machine import Machine, sync_directory, writable_by_others

#: Of the namespace this thread is in.
TABLE = Path("/proc/thread-self/mountinfo")
#: How long umount(8) may take.
UNMOUNT_SECONDS = 60.0
#: How often a busy mountpoint is tried again.
BUSY_PAUSE_SECONDS = 0.2

_ESCAPE = re.compile(r"\\([0-7]{3})")
_BUSY = "target is busy"


class Silent(MachineError):
    """Nothing was answered in time, not even an error."""


class Busy(MachineError):
    """A mount is in use, and so it stays."""


@dataclass(frozen=True)
class Mount:
    """A line of the table, as in proc_pid_mountinfo(5). ``point`` is a real path; ``device`` is "MAJOR:MINOR".

    ``root`` is what of the filesystem is mounted, other than "/" for a bind mount of a directory in it.
    """

    id: int
    parent: int
    device: str
    root: str
    point: str
    options: tuple[str, ...]
    filesystem: str
    source: str
    super_options: tuple[str, ...]


def parse(text: str) -> tuple[Mount, ...]:
    """The mounts of a mountinfo text, in its order. Raises MachineError for a line that is none."""
    return tuple(_mount(line) for line in text.split("\n") if line)


def table() -> tuple[Mount, ...]:
    """Every mount this process sees. Raises MachineError when the kernel's table cannot be read."""
    try:
        return parse(TABLE.read_text(errors="surrogateescape"))
    except OSError as error:
        raise MachineError(f"cannot read {TABLE}: {error.strerror}", remedy="mount /proc") from None


def topmost(mounts: Iterable[Mount], point: str) -> Mount | None:
    """The mount that a lookup of the real path ``point`` ends at; None when nothing is mounted there, or it is hidden.

    Mounts can be stacked, and one over a parent directory hides what is mounted below.
    """
    by_id = {mount.id: mount for mount in mounts}
    for mount in by_id.values():
        if mount.point == point and not _hidden(mount, by_id):
            return mount
    return None


def at(machine: Machine, point: str) -> Mount | None:
    """What is mounted at a logical path, the topmost; None for nothing. Does not touch the path itself."""
    return topmost(table(), place(machine, point))


def of_device(machine: Machine, device: str) -> tuple[Mount, ...]:
    """Every mount of a block device, "MAJOR:MINOR", bind mounts as well."""
    return tuple(mount for mount in table() if mount.device == device)


def place(machine: Machine, point: str) -> str:
    """The real path of a logical one as the kernel's table has it; the path itself is not touched."""
    # The root may be reached through links; below it, mountpoints are refused that are (see make_mountpoint).
    below = machine.real(point).relative_to(machine.root)
    return str(Path(os.path.realpath(machine.root)) / below)


# --- mounting ------------------------------------------------------------------------------------------------


def mount_argv(source: str | Path, point: str, filesystem: str, options: Sequence[str]) -> list[str]:
    """The mount(8) command for a filesystem; ``point`` is a real path."""
    asked = ["-o", ",".join(options)] if options else []
    return ["mount", "-t", filesystem, *asked, "--", str(source), point]


def bind_argv(source: str, point: str) -> list[str]:
    """The mount(8) command that shows a directory at a second place; both are real paths."""
    return ["mount", "--bind", "--", source, point]


def unmount_argv(point: str, *, lazy: bool) -> list[str]:
    """The umount(8) command; it does not look at the mountpoint first, which may be dead."""
    return ["umount", "--no-canonicalize", *(["--lazy"] if lazy else []), "--", point]


def mount(
    machine: Machine, source: str | Path, point: str, filesystem: str, options: Sequence[str], within: float
) -> None:
    """Mount ``source`` (a device's real path, or SERVER:/EXPORT) at a logical path, in at most ``within`` seconds.

    On top of what is mounted there: look with :func:`at` first. Raises MachineError with mount's own words.
    """
    try:
        machine.run(mount_argv(source, place(machine, point), filesystem, options), timeout=within)
    except CommandError as error:
        raise MachineError(f"cannot mount {source} at {point}: {_said(error)}", remedy=error.remedy) from error


def bind(machine: Machine, source: str, point: str, within: float) -> None:
    """Show the directory ``source`` at ``point`` too, both logical. Raises MachineError with mount's own words."""
    try:
        machine.run(bind_argv(place(machine, source), place(machine, point)), timeout=within)
    except CommandError as error:
        raise MachineError(f"cannot bind {source} to {point}: {_said(error)}", remedy=error.remedy) from error


def unmount(
    machine: Machine,
    point: str,
    *,
    lazy: bool = False,
    within: float = UNMOUNT_SECONDS,
    busy_within: float = UNMOUNT_SECONDS,
) -> None:
    """Take away the topmost mount at a logical path; nothing mounted there is fine.

    A busy one is tried again until ``within`` seconds are over, or ``busy_within``. ``lazy`` takes it from sight at
    once, and frees it when its last user is gone. Raises Busy, and another MachineError.
    """
    deadline = time.monotonic() + within
    patient_until = time.monotonic() + min(within, busy_within)
    while at(machine, point):
        try:
            left = max(1.0, deadline - time.monotonic())
            machine.run(unmount_argv(place(machine, point), lazy=lazy), timeout=left)
            return
        except CommandError as error:
            if at(machine, point) is None:  # someone else was quicker
                return
            if _BUSY not in error.tail:
                raise MachineError(f"cannot unmount {point}: {_said(error)}", remedy=error.remedy) from error
            if time.monotonic() > patient_until:
                remedy = f"see who uses it: fuser -vm {point}"
                raise Busy(f"cannot unmount {point}: {_said(error)}", remedy=remedy) from error
        time.sleep(BUSY_PAUSE_SECONDS)


def probe(machine: Machine, path: str, within: float) -> None:
    """See that a directory answers: statfs(2), which asks an NFS server each time, and a look at the directory.

    In a child that is killed after ``within`` seconds, and left behind when that does not help.
    Raises Silent when it does not answer, another MachineError when it answers with an error.
    """
    deadline = time.monotonic() + within
    # The directory behind the mountpoint: with its slash, so that what is mounted by need is mounted.
    directory = f"{place(machine, path)}/."
    for argv in (["stat", "--file-system", "--", directory], ["ls", "-ld", "--", directory]):
        try:
            machine.run(argv, timeout=max(0.1, deadline - time.monotonic()))
        except CommandError as error:
            if not error.tail.strip():
                raise Silent(f"{path} does not answer: no answer within {within:g} s") from error
            raise MachineError(f"{path} does not answer: {_said(error)}") from error


def answers(machine: Machine, path: str, within: float) -> bool:
    """Whether a directory answers within so many seconds: see :func:`probe`."""
    try:
        probe(machine, path, within)
    except MachineError:
        return False
    return True


# --- mountpoints ---------------------------------------------------------------------------------------------


def make_mountpoint(machine: Machine, path: str, *, empty: bool = False) -> None:
    """Make the directory to mount at, and its missing parents.

    It gets mode 000, so that no user writes into it while the mount is absent; so does one that is there and empty.
    Files in it are left alone: they are hidden by the mount, unless ``empty`` refuses them. Where something is mounted,
    nothing is touched. Raises BootagentError for a link and for what is no directory, MachineError for what ``empty``
    refuses.
    """
    if at(machine, path):
        return
    real = Path(place(machine, path))
    for parent in (real, *real.parents):
        if parent.is_symlink():
            remedy = f"name the directory itself, {os.path.realpath(real)}"
            raise BootagentError(f"cannot mount at {path}: {parent} is a symbolic link", remedy=remedy)
    footprint.note(machine, path, until="stop", mountpoint=True)
    real.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        real.mkdir(mode=0o000)
        sync_directory(real.parent)
        return
    if not real.is_dir():
        raise BootagentError(f"cannot mount at {path}: it is not a directory", remedy="move it away")
    name = _something_in(real, path)
    if name is None:
        real.chmod(0o000)
    elif empty:
        raise _full(path, name)


def refuse_full(machine: Machine, path: str) -> None:
    """Raise MachineError when a mount at a logical path would hide files there, unless something is mounted already."""
    real = Path(place(machine, path))
    if at(machine, path) or not real.is_dir():
        return
    if name := _something_in(real, path):
        raise _full(path, name)


def refuse_movable(machine: Machine, path: str, what: str) -> None:
    """Raise BootagentError when others than root may rename a directory on the way: they could have us mount anywhere.

    ``what`` is to be mounted, as a noun.
    """
    parent = machine.real(path).parent
    while not parent.exists():
        parent = parent.parent
    if why := writable_by_others(parent):
        raise BootagentError(
            f"cannot mount {what} at {path}: {why}",
            remedy="have its directories belong to root, or choose another mountpoint",
        )


# --- inside --------------------------------------------------------------------------------------------------


def _something_in(real: Path, path: str) -> str | None:
    """The name of something in a directory; None when it is empty."""
    try:
        return next((inside.name for inside in real.iterdir()), None)
    except OSError as error:
        raise MachineError(f"cannot look into {path}: {error.strerror}") from None


def _full(path: str, name: str) -> MachineError:
    sentence = f"cannot mount at {path}: there are files in it, such as {name}, that the mount would hide"
    return MachineError(sentence, remedy="move them away")


def _mount(line: str) -> Mount:
    # ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [OPTIONAL…] - TYPE SOURCE SUPER_OPTIONS
    before, dash, after = line.partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if not dash or len(fields) < 6 or len(rest) < 3:
        raise MachineError(f"{TABLE} has a line that is no mount: {plain(line)!r}")
    return Mount(
        id=int(fields[0]),
        parent=int(fields[1]),
        device=fields[2],
        root=_unescaped(fields[3]),
        point=_unescaped(fields[4]),
        options=tuple(fields[5].split(",")),
        filesystem=_unescaped(rest[0]),
        source=_unescaped(rest[1]),
        super_options=tuple(_unescaped(rest[2]).split(",")),
    )


def _unescaped(text: str) -> str:
    """Without the octal escapes the kernel puts for blank, tab, newline and backslash."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def _hidden(mount: Mount, by_id: dict[int, Mount]) -> bool:
    """Whether something is mounted on top of it, or over one of its parent directories."""
    child, below = mount, by_id.get(mount.id)
    seen: set[int] = set()
    while below and below.id not in seen:
        seen.add(below.id)
        for other in by_id.values():
            if other.parent == below.id and other.id not in seen and _covers(other.point, child.point):
                return True
        child, below = below, by_id.get(below.parent)
    return False


def _covers(outer: str, inner: str) -> bool:
    return outer == inner or inner.startswith(f"{outer.rstrip('/')}/")


def _said(error: CommandError) -> str:
    """What a program complained about, in one line; without its hint at dmesg(1)."""
    lines = [line.strip() for line in plain(error.tail).splitlines()]
    lines = [line for line in lines if line and "dmesg(1)" not in line]
    if not lines:
        return error.sentence
    # mount: /point: the complaint.
    return re.sub(r"^u?mount(\.\w+)?: (?:/[^:]*: )?", "", lines[0]).rstrip(".")
