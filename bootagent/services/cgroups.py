"""A control group of its own for a service: cgroups(7), version 2.

    /sys/fs/cgroup/bootagent/                no process of its own: the kernel wants them in the leaves
    /sys/fs/cgroup/bootagent/APP.NAME/       memory.max, cpu.max, pids.max; the service, its runsv and its svlogd

It lies beside systemd's groups, not among them: systemd leaves alone what it has not made. It is gone after a reboot,
when runit starts the service before the agent has said a word, so the service's script makes it anew: the same writes.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from bootagent.errors import MachineError, UnfitError
from bootagent.machine import Machine, Note

ROOT = "/sys/fs/cgroup"
#: Length of a period in microseconds, the kernel's default; a process gets its share of each.
PERIOD = 100_000
REMOVE_SECONDS = 10.0
_FILES = ("memory.max", "cpu.max", "pids.max")
_REMEDY = "leave out cgroup, or boot with version 2 of it alone (systemd.unified_cgroup_hierarchy=1)"


@dataclass(frozen=True)
class Limits:
    """What all processes of a service may have together: bytes, processors' time, processes. None: no limit."""

    memory: int | None = None
    cpus: float | None = None
    processes: int | None = None

    def values(self) -> dict[str, str]:
        """The files that say so, and what the kernel shows in them then."""
        found = {}
        if self.memory is not None:
            page = os.sysconf("SC_PAGESIZE")
            found["memory.max"] = str(self.memory // page * page)
        if self.cpus is not None:
            found["cpu.max"] = f"{round(self.cpus * PERIOD)} {PERIOD}"
        if self.processes is not None:
            found["pids.max"] = str(self.processes)
        return found


def check(machine: Machine, name: str, limits: Limits) -> None:
    """Raises UnfitError when this machine cannot hold ``name`` to ``limits``."""
    try:
        offered = (machine.real(ROOT) / "cgroup.controllers").read_text().split()
    except OSError:
        raise UnfitError(f"{name} wants a cgroup, and {ROOT} is no cgroup version 2", remedy=_REMEDY) from None
    if missing := [controller for controller in _controllers(limits) if controller not in offered]:
        raise UnfitError(
            f"{name} wants a cgroup, and the kernel offers no controller {', '.join(missing)} in {ROOT}", remedy=_REMEDY
        )


def make(machine: Machine, name: str, limits: Limits) -> None:
    """Make the group, or bring its limits up to date; its processes stay. Raises MachineError."""
    check(machine, name, limits)
    group = _group(machine, name)
    try:
        group.mkdir(parents=True, exist_ok=True)
        for path, text in _writes(machine, name, limits):
            path.write_text(text)
        for file in _FILES:
            if file not in limits.values() and (group / file).exists():
                (group / file).write_text("max")
    except OSError as error:
        raise MachineError(
            f"cannot make the cgroup of {name}: {error.filename or group}: {error.strerror}",
            remedy="leave out cgroup, or let root write there",
        ) from error


def is_made(machine: Machine, name: str, limits: Limits) -> bool:
    """Whether the group is there with these limits and no others."""
    group, wanted = _group(machine, name), limits.values()
    try:
        found = {
            file: (group / file).read_text().strip() for file in _FILES if file in wanted or (group / file).exists()
        }
    except OSError:
        return False
    return group.is_dir() and all(wanted.get(file, "max") in (text, text.split()[0]) for file, text in found.items())


def remove(machine: Machine, name: str) -> None:
    """Remove the group, if it is there, with what still runs in it. Raises MachineError when that does not end."""
    group = _group(machine, name)
    if not group.is_dir():
        return
    with contextlib.suppress(OSError):
        if left := (group / "cgroup.procs").read_text().split():
            machine.tell(Note(f"killing what {name} has left behind", {"pids": " ".join(left)}))
            with (group / "cgroup.kill").open("r+") as kill:  # since Linux 5.14
                kill.write("1")
    deadline = time.monotonic() + REMOVE_SECONDS
    while group.is_dir():
        try:
            group.rmdir()
        except OSError as error:  # a process takes its time to end
            if time.monotonic() > deadline:
                raise MachineError(f"cannot remove the cgroup of {name}: {group}: {error.strerror}") from error
            time.sleep(0.05)
    with contextlib.suppress(OSError):  # others are in it
        group.parent.rmdir()


def lines(machine: Machine, name: str, limits: Limits) -> list[str]:
    """Lines of a shell script, run by root, that make the group and join it; without it the script ends."""
    group = shlex.quote(str(_group(machine, name)))
    writes = [f"echo {text} >{shlex.quote(str(path))}" for path, text in _writes(machine, name, limits)]
    return [f"{line} || exit 111" for line in (f"mkdir -p {group}", *writes, f"echo $$ >{group}/cgroup.procs")]


def _group(machine: Machine, name: str) -> Path:
    return machine.real(ROOT) / "bootagent" / name


def _controllers(limits: Limits) -> list[str]:
    return [file.partition(".")[0] for file in limits.values()]


def _writes(machine: Machine, name: str, limits: Limits) -> list[tuple[Path, str]]:
    """What is written where, in this order: a controller is there when the directory above has it handed down."""
    root = machine.real(ROOT)
    handed = " ".join(f"+{controller}" for controller in _controllers(limits))
    down = [(place / "cgroup.subtree_control", handed) for place in (root, root / "bootagent")] if handed else []
    return down + [(_group(machine, name) / file, text) for file, text in limits.values().items()]
