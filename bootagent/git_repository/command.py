"""git as the app's user, under one deadline; what it complains of, in one line."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootagent.errors import BootagentError, CommandError, MachineError, plain
from bootagent.git_repository.access import Access, key_file, ssh_command
from bootagent.git_repository.address import Address, without_secrets
from bootagent.machine import Identity, Machine

#: What no configuration of the user or of the mirror may change. Tidying up is done apart from fetching, and what is
#: fetched comes as packs, which are there whole or not at all.
_SETTINGS = (
    "core.hooksPath=/dev/null",
    "gc.auto=0",
    "maintenance.auto=false",
    "fetch.unpackLimit=1",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=60",
)
#: What no configuration of the machine, the user or the mirror may change about a commit's files.
_PLAIN_SETTINGS = ("core.attributesFile=/dev/null", "core.autocrlf=false", "core.eol=lf", "tar.umask=0022")
_ISOLATED = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_ATTR_NOSYSTEM": "1"}
#: Of what git says, the lines that say nothing.
_NOISE = re.compile(
    r"Cloning into |Fetching |Please make sure|and the repository exists|warning: |hint: |remote: *$|"
    r"Could not create directory|error: could not fetch origin|@+|(fatal: )?Could not read from remote repository"
)
_PREFIX = re.compile(r"^(fatal|error|ERROR|remote): ")
#: How a failure reads that is the remote's or the network's, and no damage to what is here.
_REMOTE = re.compile(
    r"Could not read from remote|unable to access|resolve host|[Cc]onnection |unable to connect|unable to look up|"
    r"early EOF|hung up|RPC failed|curl |Authentication failed|could not read (Username|Password)|"
    r"does not appear to be a git repository|[Rr]epository .*not found|does not exist|dubious ownership|not allowed"
)
_NOT_INSTALLED = re.compile(r"failed to execute (\S+): No such file")


class GitError(CommandError):
    """git failed; ``said`` is what it complained of, without secrets."""

    def __init__(self, said: str, tail: str) -> None:
        super().__init__(said, tail=tail)
        self.said = said

    @property
    def is_remote(self) -> bool:
        """Whether it is the remote's or the network's failure."""
        return _REMOTE.search(self.tail) is not None


@dataclass(frozen=True)
class Git:
    """Runs git on behalf of ``identity`` until ``deadline`` (monotonic); ``environment`` is for talking to remotes."""

    machine: Machine
    identity: Identity | None
    deadline: float
    environment: Mapping[str, str]
    access: Access

    def remote(self, address: Address, *words: str | Path) -> str:
        """Run git where it may talk to ``address``: as the machine and the user have configured it.

        Returns what it printed. Raises GitError when it fails, MachineError when it is late.
        """
        environment = {**self.environment, "GIT_ALLOW_PROTOCOL": address.protocols}
        return self._run(argv(words), f"git {words[0]} of {address}", environment, None)

    def local(self, *words: str | Path, cwd: Path | None = None, config: Sequence[str] = ()) -> str:
        """Run git where it talks to nobody and finds no configuration but the repository's own."""
        environment = {"GIT_ALLOW_PROTOCOL": "", "GIT_LITERAL_PATHSPECS": "1", **_QUIET, **_ISOLATED}
        return self._run(argv(words, (*_PLAIN_SETTINGS, *config)), "git", environment, cwd)

    def program(self, words: Sequence[str | Path], *, cwd: Path | None = None) -> str:
        """Run another program in the same way; whether it fails or not, what it printed."""
        return self._call([*_TIED, *words], str(words[0]), {}, cwd)[1]

    def left(self) -> float:
        """Seconds until the deadline, and always a few more than none."""
        return max(0.1, self.deadline - time.monotonic())

    def _run(self, words: Sequence[str | Path], doing: str, environment: Mapping[str, str], cwd: Path | None) -> str:
        code, output = self._call(words, doing, environment, cwd)
        if code != 0:
            if missing := _NOT_INSTALLED.search(output):
                raise BootagentError(f"{missing[1]} is not installed", remedy=f"install {missing[1]} in the image")
            tail = without_secrets(plain(output))
            raise GitError(said(tail) or f"git ended with {code}", tail)
        return output

    def _call(
        self, words: Sequence[str | Path], doing: str, environment: Mapping[str, str], cwd: Path | None
    ) -> tuple[int, str]:
        timeout = self.left()
        try:
            done = self.machine.run(
                words, timeout=timeout, identity=self.identity, cwd=cwd, env=environment, check=False
            )
        except CommandError as error:
            if time.monotonic() < self.deadline:
                raise
            # The command's own words could hold a secret.
            raise MachineError(
                f"{doing} did not end in time" + (f": {last}" if (last := said(without_secrets(error.tail))) else ""),
                remedy="check the route to it, or give it more time",
            ) from None
        return done.returncode, done.stdout


#: Should this run be killed, the next must not find its git still at work.
_TIED = ("setpriv", "--pdeathsig", "KILL", "--")
#: Nothing is asked of anybody, and nothing is shown page by page.
_QUIET = {"GIT_TERMINAL_PROMPT": "0", "GIT_PAGER": "cat", "LC_ALL": "C.UTF-8"}


def argv(words: Sequence[str | Path], settings: Sequence[str] = ()) -> list[str | Path]:
    """The command line of git, which dies with us; ``settings`` come after our own."""
    configured = [word for setting in (*_SETTINGS, *settings) for word in ("-c", setting)]
    return [*_TIED, "git", "--no-replace-objects", *configured, *words]


@contextlib.contextmanager
def opened(machine: Machine, access: Access, identity: Identity | None, within: float) -> Iterator[Git]:
    """git with the means to get in, for ``within`` seconds. Raises AwsError and BootagentError: there is no key."""
    deadline = time.monotonic() + within
    with key_file(machine, access, identity) as key:
        ssh = ssh_command(key, machine.real(access.known_hosts))
        environment = {**_QUIET, "GIT_SSH_COMMAND": ssh, "GIT_SSH_VARIANT": "ssh"}
        yield Git(machine, identity, deadline, environment, access)


def explained(doing: str, address: Address, error: GitError, access: Access) -> MachineError:
    """A failure of the remote's as a sentence with a remedy; ``doing`` completes "cannot …". Worth another try."""
    return MachineError(f"cannot {doing}: {error.said}", remedy=_remedy(address, error.tail, access))


def _remedy(address: Address, tail: str, access: Access) -> str | None:
    if "Host key verification failed" in tail or "requested strict checking" in tail:
        scan = f"ssh-keyscan {address.host} >> {access.known_hosts}"
        return f"when the image is baked: {scan}; and compare it with what its owner says its key is"
    if "Permission denied (" in tail or "Repository not found" in tail:
        who = f"the owner of {access.key}" if access.key else "the app's user, or say which key in source.key"
        return f"let {who} read the repository"
    if "could not read Username" in tail or "could not read Password" in tail or "Authentication failed" in tail:
        return "configure a credential helper for git in the image, or use ssh with source.key"
    if "resolve host" in tail or "unable to look up" in tail:
        return "check the name, and this machine's DNS"
    if "dubious ownership" in tail:
        return f"git config --system --add safe.directory {address.real.removeprefix('file://')}"
    return None


def said(tail: str) -> str:
    """The last two lines with something to say."""
    lines = [line.strip() for line in tail.splitlines()]
    telling = [_PREFIX.sub("", line).rstrip(".") for line in lines if line and not _NOISE.match(line)]
    return "; ".join(telling[-2:]) or next((_PREFIX.sub("", line).rstrip(".") for line in lines if line), "")
