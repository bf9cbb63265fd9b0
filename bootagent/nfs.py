"""NFS as a client sees it: what to ask mount(8) for, and what its refusals mean."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from bootagent import mounts
from bootagent.errors import CommandError, MachineError
from bootagent.machine import Machine, Note
from bootagent.mounts import Mount

#: ``hard``: a server that is away for a moment must not look like an I/O error; ``noresvport``: a new connection may
#: come from a new port, which load balancers of file servers need: nfs(5), and Amazon EFS's recommended options.
DEFAULTS = ("ro", "nosuid", "nodev", "hard", "noresvport", "timeo=600", "retrans=2", "nfsvers=4.2")
#: mount.nfs(8) would try by itself for two minutes; the patience here is the agent's.
_ONE_TRY = "retry=0"
#: How long one try may take, and the pause before the next.
TRY_SECONDS = 30.0
PAUSE_SECONDS = 2.0
NAME_SECONDS = 10.0
#: Amazon EFS file systems, by id or by name: Amazon EFS User Guide, "Mounting EFS file systems".
_EFS = re.compile(r"(fs-[0-9a-f]+)(\.efs\.[a-z0-9-]+\.amazonaws\.com(\.cn)?)?")
_EFS_HELPER = "/sbin/mount.efs"
#: Where amazon-efs-utils keeps a file for each mount by way of its proxy: FILE_SYSTEM.MOUNTPOINT.PORT, the slashes of
#: the mountpoint as dots, without the first.
_EFS_STATES = "/var/run/efs"
#: Its proxy speaks to the server, and it chooses these by itself: amazon-efs-utils, README; nfs(5).
_TRANSPORT = re.compile(
    "nfsvers|minorversion|hard|soft|softerr|softreval|timeo|retrans|retry|rsize|wsize|(no)?resvport|port|proto|tcp|udp"
    "|rdma|sec|addr|clientaddr|nconnect|max_connect|mount(port|proto|vers|host)|notls"
)
_NOT = {"ro": "rw", "rw": "ro", "hard": "soft", "soft": "hard", "suid": "nosuid", "dev": "nodev"}
_REMEDIES = (
    ("access denied", "export it to this machine, and see that the path is the exported one"),
    ("no such file or directory", "see whether the server exports that path"),
    ("connection refused", "is the NFS server running, on port 2049?"),
    ("not supported", 'the server speaks another version of NFS: options = ["nfsvers=4.1"]'),
    ("unknown filesystem type", "install nfs-common"),
    ("need a /sbin/mount", "install nfs-common"),
)


def options(more: Sequence[str]) -> tuple[str, ...]:
    """The mount options: the defaults, and ``more``, each of which wins over a default it contradicts."""
    gone = {_key(option) for option in more} | {_NOT.get(option, option) for option in more}
    return (*(option for option in DEFAULTS if _key(option) not in gone), *more)


def _key(option: str) -> str:
    key = option.partition("=")[0]
    return "nfsvers" if key in ("vers", "nfsvers") else key


def efs_options(more: Sequence[str]) -> tuple[str, ...]:
    """The options for the EFS helper: an encrypted mount, as strict as any other, and how NFS is spoken left to it."""
    others = (option for option in options(more) if not _TRANSPORT.fullmatch(_key(option)) and option != "tls")
    return ("tls", *others)


def is_nfs(mount: Mount) -> bool:
    """Whether a mount is one of NFS, of whatever version."""
    return mount.filesystem in ("nfs", "nfs4")


def is_shown_by(machine: Machine, mount: Mount, server: str, export: str, wanted: Sequence[str]) -> bool:
    """Whether a mount is the one of this export, read-only or not as wanted."""
    shown, efs = mount.source.rstrip("/"), _EFS.fullmatch(server)
    is_it = shown == f"{server}:{export}".rstrip("/")
    if efs and shown == f"127.0.0.1:{export}".rstrip("/"):  # the EFS helper's way
        is_it = _is_of_efs(machine, mount, efs[1])
    return is_nfs(mount) and is_it and ("ro" in mount.options) == ("ro" in options(wanted))


def _is_of_efs(machine: Machine, mount: Mount, file_system: str) -> bool:
    """Whether a mount by way of a local port is one of this file system, by what the EFS helper has written down."""
    port = next((option[5:] for option in mount.super_options if option.startswith("port=")), r"[0-9]+")
    name = f"{file_system}.{mount.point.lstrip('/').replace('/', '.')}."
    try:
        states = [path.name for path in machine.real(_EFS_STATES).iterdir()]
    except OSError:
        return False
    return any(re.fullmatch(re.escape(name) + port, state) for state in states)


def mount(machine: Machine, server: str, export: str, point: str, wanted: Sequence[str], within: float) -> None:
    """Mount an export, trying again until ``within`` seconds are over; each try resolves the server's name anew.

    Raises MachineError that says what stood in the way at last.
    """
    deadline, told = time.monotonic() + within, False
    while True:
        try:
            _try(machine, server, export, point, wanted, min(TRY_SECONDS, max(1.0, deadline - time.monotonic())))
            mounts.probe(machine, point, min(TRY_SECONDS, max(1.0, deadline - time.monotonic())))
            return
        except MachineError as error:
            if time.monotonic() + PAUSE_SECONDS >= deadline:
                said = f"{server}:{export} could not be mounted at {point} within {within:g} s: {error.sentence}"
                raise MachineError(said, remedy=error.remedy) from error
            if not told:
                machine.tell(Note(f"waiting for {server}:{export}", {"why": error.sentence}))
                told = True
        time.sleep(PAUSE_SECONDS)


def _try(machine: Machine, server: str, export: str, point: str, wanted: Sequence[str], within: float) -> None:
    there = mounts.at(machine, point)
    if there and is_shown_by(machine, there, server, export, wanted):
        return  # an earlier try got this far, and the server did not answer then
    efs = _EFS.fullmatch(server)
    if efs and machine.real(_EFS_HELPER).exists():
        mounts.mount(machine, f"{efs[1]}:{export}", point, "efs", efs_options(wanted), within)
        return
    host = server if efs is None or efs[2] else _whole_name(server)
    _resolve(machine, host)
    try:
        mounts.mount(machine, f"{host}:{export}", point, "nfs", [*options(wanted), _ONE_TRY], within)
    except MachineError as error:
        said = error.sentence.lower()
        remedy = next((remedy for words, remedy in _REMEDIES if words in said), None)
        remedy = remedy or "is it up, and does its security group let this machine in at port 2049?"
        raise MachineError(error.sentence, remedy=remedy) from error


def _whole_name(file_system: str) -> str:
    raise MachineError(
        f"{file_system} is only an id, and {_EFS_HELPER} is not installed",
        remedy=f"install amazon-efs-utils, or name {file_system}.efs.REGION.amazonaws.com",
    )


def _resolve(machine: Machine, host: str) -> None:
    """See that the name has an address, in a child: a resolver may take its time."""
    try:
        machine.run(["getent", "ahosts", "--", host.strip("[]")], timeout=NAME_SECONDS)
    except CommandError:
        raise MachineError(f"the name {host} has no address", remedy="check the name, and the VPC's DNS") from None
