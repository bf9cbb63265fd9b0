"""How to get into a repository: the deploy key, for as long as a command runs, and the hosts that ssh may trust."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bootagent import aws
from bootagent.errors import BootagentError
from bootagent.machine import Identity, Machine

#: In memory, and gone with the boot. Not in /run/bootagent, which nobody but root may enter.
KEYS = "/run/bootagent-keys"
KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts"
MAX_KEY_BYTES = 64 * 1024
#: For the connection alone, in seconds; then a silent server is given up after three of the others.
_CONNECT_SECONDS = 15
_ALIVE_SECONDS = 15


@dataclass(frozen=True)
class Access:
    """``key``: None, a deploy key's logical path, or ``ssm:`` and a parameter of ``region``. ``known_hosts``: logical.

    Without a key, ssh uses what the app's user has at home.
    """

    key: str | None = None
    known_hosts: str = KNOWN_HOSTS
    region: str | None = None


@dataclass(frozen=True)
class Commit:
    """What to check out: one commit of a repository, with its submodules or without; the rest is as Access has it."""

    url: str
    sha: str
    submodules: bool = False
    key: str | None = None
    known_hosts: str = KNOWN_HOSTS
    region: str | None = None

    @property
    def access(self) -> Access:
        """How to get at it."""
        return Access(self.key, self.known_hosts, self.region)


@contextlib.contextmanager
def key_file(machine: Machine, access: Access, identity: Identity | None) -> Iterator[Path | None]:
    """A file with the deploy key that only ``identity`` can read, there inside ``with``; None without a key.

    Raises AwsError, and BootagentError when there is no such key or everybody may read it.
    """
    if access.key is None:
        yield None
        return
    content = _content(machine, access.key, access.region)
    directory = _fresh_directory(machine)
    try:
        path = directory / "key"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        if identity:
            os.chown(path, identity.uid, identity.gid)
            os.chown(directory, identity.uid, identity.gid)
        yield path
    finally:
        # What the user put there in the meantime, he could put anywhere: nothing is followed.
        shutil.rmtree(directory, ignore_errors=True)


def ssh_command(key: Path | None, known_hosts: Path) -> str:
    """For GIT_SSH_COMMAND, which git has a shell read: git(1). Options are those of ssh_config(5).

    Nothing is asked, no unknown host is trusted, and a dead one is given up.
    """
    options = [
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        f'UserKnownHostsFile="{known_hosts}"',
        "GlobalKnownHostsFile=/dev/null",
        f"ConnectTimeout={_CONNECT_SECONDS}",
        f"ServerAliveInterval={_ALIVE_SECONDS}",
        "ForwardAgent=no",
        "ForwardX11=no",
        "ControlMaster=no",
        "ControlPath=none",
    ]
    if key:
        options += ["IdentitiesOnly=yes", "IdentityAgent=none"]
    words = ["ssh", *(word for option in options for word in ("-o", option))]
    return shlex.join([*words, "-i", str(key)] if key else words)


def _content(machine: Machine, key: str, region: str | None) -> bytes:
    if key.startswith("ssm:"):
        content = aws.parameter(key.removeprefix("ssm:"), region).encode()
    else:
        content = _file(machine, key)
    if not content.lstrip().startswith(b"-----BEGIN "):
        raise BootagentError(f"{key} is no private key", remedy="it begins with -----BEGIN, as ssh-keygen wrote it")
    # Parameters lose their last newline, and gain carriage returns, on the way through a browser; ssh minds both.
    return content.replace(b"\r\n", b"\n").strip() + b"\n"


def _file(machine: Machine, key: str) -> bytes:
    try:
        with machine.real(key).open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o004:
                raise BootagentError(f"every user may read the deploy key {key}", remedy=f"chmod 600 {key}")
            return file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise BootagentError(
            f"deploy key {key} cannot be read: {error.strerror}", remedy="put it there when the image is baked"
        ) from None


def _fresh_directory(machine: Machine) -> Path:
    keys = machine.real(KEYS)
    machine.make_directory(keys, mode=0o711)
    for left in keys.iterdir():  # by a run that was killed
        if not Path(f"/proc/{left.name.partition('.')[0]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{os.getpid()}.", dir=keys))
