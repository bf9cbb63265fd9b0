"""One marked block in /etc/fstab, see fstab(5); all that is outside it stays as it is, byte for byte."""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from bootagent import footprint
from bootagent.errors import BootagentError, CommandError, MachineError
from bootagent.machine import Machine

PATH = "/etc/fstab"
BEGIN = "# BEGIN bootagent"
END = "# END bootagent"
#: A volume that is lost does not hold up the boot, and is not waited for longer than this (systemd.mount(5)).
PATIENT = ("nofail", "x-systemd.device-timeout=10s")

RELOAD_SECONDS = 60.0

_ESCAPED = re.compile(r"[ \t\n\r\\#]")
_BLANKS = " \t\r"
_OCTAL = re.compile(r"\\([0-7]{3})")
#: Lanes run side by side in one process, and each reads the file, changes it and writes it.
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """A line: what is mounted, where (a logical path), as which filesystem, and how. It is neither dumped nor checked.

    The boot does not check it, because xfs needs none and ext4 replays its journal when it is mounted.
    """

    source: str
    point: str
    filesystem: str
    options: tuple[str, ...]

    def __str__(self) -> str:
        fields = (self.source, self.point, self.filesystem, ",".join(self.options))
        return " ".join([*map(_escaped, fields), "0", "0"])


def volume(source: str, point: str, filesystem: str, options: Sequence[str]) -> Entry:
    """The line for a disk that may be missing at boot."""
    return Entry(source, point, filesystem, (*options, *(word for word in PATIENT if word not in options)))


def bind(source: str, point: str) -> Entry:
    """The line that shows the mountpoint ``source`` at ``point`` too; systemd leaves it out while that has no mount."""
    return Entry(source, point, "none", ("bind", PATIENT[0], f"x-systemd.requires={source}"))


# --- text ----------------------------------------------------------------------------------------------------


def entries(text: str) -> tuple[Entry, ...]:
    """The lines of our block. Raises BootagentError when its markers, or a line in it, are damaged."""
    start, end = _block(text)
    found = []
    for number, line in list(_lines(text))[start:end]:
        if line.strip() and line.strip() not in (BEGIN, END):
            found.append(_parsed(line, number))
    return tuple(found)


def merged(text: str, wanted: Iterable[Entry], unwanted: Collection[str] = ()) -> str:
    """The text with these entries in our block, in place of those with the same mountpoint.

    ``unwanted`` are mountpoints whose entries go. A mount comes after those it needs. Without entries there is no
    block. Raises BootagentError when the block is damaged, or a mountpoint has a line outside it.
    """
    wanted = list(wanted)
    start, end = _block(text)
    lines = list(_lines(text))
    _refuse_others(lines[:start] + lines[end:], {_tidy(entry.point) for entry in wanted})
    by_point = {_tidy(entry.point): entry for entry in (*entries(text), *wanted)}
    for point in unwanted:
        by_point.pop(_tidy(point), None)
    before = "\n".join(line for _, line in lines[:start])
    after = "\n".join(line for _, line in lines[end:])
    if start == end:  # no block yet
        before, after = text, ""
        if before and not before.endswith("\n"):
            before += "\n" if by_point else ""
    elif start:
        before += "\n"
    block = "\n".join([BEGIN, *map(str, _in_order(list(by_point.values()))), END, ""]) if by_point else ""
    return before + block + after


# --- the file ------------------------------------------------------------------------------------------------


def current(machine: Machine) -> tuple[Entry, ...]:
    """The lines of our block in /etc/fstab. Raises BootagentError when it is damaged."""
    return entries(_read(machine))


def is_so(machine: Machine, wanted: Iterable[Entry], unwanted: Collection[str] = ()) -> bool:
    """Whether :func:`update` would change nothing. Raises BootagentError, as it does."""
    text = _read(machine)
    return merged(text, wanted, unwanted) == text


def update(machine: Machine, wanted: Iterable[Entry], unwanted: Collection[str] = ()) -> bool:
    """Bring our block in /etc/fstab up to date: see :func:`merged`; whether there was something to change.

    A file that says so already is not written. Raises BootagentError.
    """
    with _LOCK:
        text = _read(machine)
        fresh = merged(text, wanted, unwanted)
        if fresh == text:
            return False
        path = machine.real(PATH)
        footprint.note(machine, PATH, until="stop")
        try:
            mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
            machine.make_directory(path.parent)
            machine.write(path, fresh.encode(errors="surrogateescape"), mode=mode)
        except OSError as error:
            raise MachineError(f"cannot write {PATH}: {error.strerror}") from None
        return True


def tell_systemd(machine: Machine) -> None:
    """Have systemd, if it runs the machine, read /etc/fstab again. Raises MachineError.

    With an old idea of a mountpoint, it unmounts at once what is mounted there from another device.
    """
    if machine.real("/run/systemd/system").is_dir():  # sd_booted(3)
        try:
            machine.run(["systemctl", "daemon-reload"], timeout=RELOAD_SECONDS)
        except CommandError as error:
            raise MachineError(f"systemd does not read {PATH} again: {error}") from error


# --- inside --------------------------------------------------------------------------------------------------


def _read(machine: Machine) -> str:
    path = machine.real(PATH)
    if path.is_symlink():
        raise BootagentError(f"{PATH} is a symbolic link", remedy="put the file itself in its place")
    try:
        return path.read_bytes().decode(errors="surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise MachineError(f"cannot read {PATH}: {error.strerror}") from None


def _lines(text: str) -> Iterable[tuple[int, str]]:
    """Each line with its number. The last is what follows the last newline, so that joining gives the text again."""
    return enumerate(text.split("\n"), 1)


def _block(text: str) -> tuple[int, int]:
    """Our block as a slice of the lines, its markers included; an empty slice where there is none."""
    lines = text.split("\n")
    begins = [index for index, line in enumerate(lines) if line.strip() == BEGIN]
    ends = [index for index, line in enumerate(lines) if line.strip() == END]
    if not begins and not ends:
        return 0, 0
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        where = ", ".join(str(index + 1) for index in sorted(begins + ends))
        raise BootagentError(
            f"{PATH} does not have one line {BEGIN!r} and one line {END!r} behind it: see line {where}",
            remedy="remove these lines and what bootagent wrote between them",
        )
    return begins[0], ends[0] + 1


def _parsed(line: str, number: int) -> Entry:
    fields = [_unescaped(field) for field in _fields(line)]
    if fields[0].startswith("#") or not 4 <= len(fields) <= 6:
        raise BootagentError(
            f"{PATH}, line {number}: {line.strip()!r} is no mount, but stands in bootagent's block",
            remedy="move it out of the block",
        )
    return Entry(fields[0], fields[1], fields[2], tuple(fields[3].split(",")))


def _refuse_others(lines: list[tuple[int, str]], points: set[str]) -> None:
    for number, line in lines:
        fields = _fields(line)
        if len(fields) < 2 or fields[0].startswith("#"):
            continue
        if (point := _tidy(_unescaped(fields[1]))) in points:
            raise BootagentError(
                f"{PATH}, line {number} mounts something else at {point}: {line.strip()!r}",
                remedy="remove the line, or choose another mountpoint",
            )


def _in_order(left: list[Entry]) -> list[Entry]:
    """By mountpoint, but none before what it is mounted in, or what it shows a second time."""
    left = sorted(left, key=lambda entry: entry.point)
    done: list[Entry] = []
    while left:
        ready = (entry for entry in left if not any(_needs(entry, other) for other in left if other is not entry))
        chosen = next(ready, left[0])  # in a circle, any is as good as another
        left.remove(chosen)
        done.append(chosen)
    return done


def _needs(entry: Entry, other: Entry) -> bool:
    inside = f"{_tidy(other.point).rstrip('/')}/"
    needed = (entry.point, entry.source) if "bind" in entry.options else (entry.point,)
    return any(f"{_tidy(path)}/".startswith(inside) for path in needed)


def _tidy(point: str) -> str:
    return "/" + "/".join(part for part in point.split("/") if part)


def _fields(line: str) -> list[str]:
    return re.split(f"[{_BLANKS}]+", line.strip(_BLANKS))


def _escaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: f"\\{ord(match[0]):03o}", text)


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
