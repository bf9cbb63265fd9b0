"""The files of a runit service directory: from a command, or from a release, and what its process is held to."""

from __future__ import annotations

import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from bootagent import beneath
from bootagent.errors import BootagentError, MachineError

_SCRIPTS = ("run", "finish", "check", "log/run", "log/finish", "log/check")
#: What a service's own ``run`` is called when something of ours goes before it.
OWN_RUN = "run.own"
#: Above it setrlimit(2) refuses even root.
MOST_FILES = Path("/proc/sys/fs/nr_open")

Files = tuple[tuple[str, bytes, int], ...]


@dataclass(frozen=True)
class Confinement:
    """What a service's process begins with, and hands on: umask(2), in octal digits, and setrlimit(2), hard and soft.

    Sizes in bytes; ``memory`` is address space; ``processes`` are those of its user. None: as it is.
    """

    umask: str | None = None
    memory: int | None = None
    open_files: int | None = None
    processes: int | None = None
    core: int | None = None
    file_size: int | None = None

    def limits(self) -> dict[str, int]:
        """The limits there are, by the names prlimit(1) has for them."""
        known = {
            "as": self.memory,
            "nofile": self.open_files,
            "nproc": self.processes,
            "core": self.core,
            "fsize": self.file_size,
        }
        return {name: value for name, value in known.items() if value is not None}

    def raising(self) -> list[str]:
        """Lines of a shell script, run by root, that let it ask for these later: only root can raise a hard limit."""
        found = []
        for name, value in self.limits().items():
            hard = f'"$(prlimit --pid $$ --{name} --output HARD --noheadings --raw)"'
            found.append(f"[ {hard} = unlimited ] || [ {hard} -ge {value} ] || prlimit --pid $$ --{name}=:{value}")
        return found

    def check(self, name: str) -> None:
        """Raises MachineError when the kernel lets nobody, not even root, give so much to ``name``."""
        most = int(MOST_FILES.read_text())
        if self.open_files is not None and self.open_files > most:
            raise MachineError(
                f"{name} wants limits.open_files = {self.open_files}, and this machine allows {most} ({MOST_FILES})",
                remedy="lower it, or raise fs.nr_open by sysctl",
            )

    def script(self, then: str) -> bytes | None:
        """A script that begins so and goes on with ``then``; None when there is nothing to say.

        prlimit(1), not chpst(8): ``chpst -m`` also makes the address space limit the stack's, which is what each thread
        gets, and sets soft limits only. What it complains of is for the service's log.
        """
        lines = [] if self.umask is None else [f"umask {self.umask}"]
        if words := [f"--{name}={value}" for name, value in self.limits().items()]:
            lines.append(f"/usr/bin/prlimit --pid $$ {shlex.join(words)} 2>&1 || exit 111")
        return "\n".join(["#!/bin/sh", *lines, f"exec {shlex.quote(then)}", ""]).encode() if lines else None


FREE = Confinement()


def from_command(directory: Path, command: tuple[str, ...]) -> Files:
    """The files of a service that runs ``command`` in ``directory``."""
    script = f"#!/bin/sh\nexec 2>&1\ncd {shlex.quote(str(directory))} || exit 111\nexec {shlex.join(command)}\n"
    return (("run", script.encode(), 0o755),)


def from_release(release: Path, relative: str) -> Files:
    """The files of a service directory in a release, unchanged; what runsv makes itself is left out.

    Raises BootagentError when there is no ``run``, or something that is no regular file.
    """
    found: list[tuple[str, bytes, int]] = []
    for path, entry in beneath.files(release, relative, without="supervise"):
        if not stat.S_ISREG(entry.st_mode):
            raise BootagentError(f"{relative}/{path} of the release is no regular file")
        content, mode = beneath.read(release, f"{relative}/{path}")
        if content.partition(b"\n")[0].startswith(b"#!") and content.partition(b"\n")[0].endswith(b"\r"):
            raise BootagentError(f"{relative}/{path} of the release has DOS line ends", remedy="convert it")
        executable = mode & 0o100 or path in _SCRIPTS or path.startswith("control/")
        mode = (mode & 0o755) | 0o600  # what the release keeps from others stays so
        found.append((path, content, mode | (mode & 0o444) >> 2 if executable else mode))
    if "run" not in [path for path, _, _ in found]:
        raise BootagentError(f"{relative} of the release has no run script")
    return tuple(found)


def confined(files: Files, confinement: Confinement) -> Files:
    """The same service, held to ``confinement``: its ``run``, unchanged, is called :data:`OWN_RUN` then.

    runsv and svlogd stay free: too few open files would end the one, a limit of file sizes the other.
    """
    script = confinement.script(f"./{OWN_RUN}")
    if script is None:
        return files
    if OWN_RUN in [path for path, _, _ in files]:
        raise BootagentError(
            f"the service has a file {OWN_RUN}, and umask or limits need that name", remedy="rename it"
        )
    own = [(OWN_RUN if path == "run" else path, content, mode) for path, content, mode in files]
    return (("run", script, 0o755), *own)
