"""git as the app's user, under one deadline; what it complains of, in one line."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
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
    r"To add an exception|git config --global|"
    r"Could not create directory|error: could not fetch origin|@+|tar: Exiting|fatal: 'tar |"
    r"(fatal: )?Could not read from remote repository"
)
_PREFIX = re.compile(r"^(fatal|error|ERROR|remote): ")
#: How a failure reads that is the remote's, the network's or the disk's, so that a new mirror would not help.
_OUTSIDE = re.compile(
    r"Could not read from remote|unable to access|resolve host|[Cc]onnection |unable to connect|unable to look up|"
    r"early EOF|hung up|RPC failed|curl |Authentication failed|could not read (Username|Password)|"
    r"does not appear to be a git repository|[Rr]epository .*not found|does not exist|dubious ownership|not allowed|"
    r"No space left|Disk quota"
)
_NOT_INSTALLED = re.compile(r"failed to execute (\S+): No such file")


class GitError(CommandError):
    """git failed; ``said`` is what it complained of, without secrets."""

    def __init__(self, said: str, tail: str) -> None:
        super().__init__(said, tail=tail)
        self.said = said

    @property
    def is_outside(self) -> bool:
        """Whether it is the remote's, the network's or the disk's failure, and the mirror is none the worse."""
        return _OUTSIDE.search(self.tail) is not None


@dataclass(frozen=True)
class Git:
    """Runs git on behalf of ``identity`` until ``deadline``, in seconds on the monotonic clock."""

    machine: Machine
    access: Access
    identity: Identity | None
    deadline: float

    def remote(self, address: Address, *words: str | Path, directory: Path | None = None) -> str:
        """Run git where it may talk to ``address``: as the machine and the user have configured it.

        ``directory`` is the repository it works in. Returns what it printed. Raises GitError when it fails,
        MachineError when it is late, and AwsError or BootagentError when the key cannot be had.
        """
        with key_file(self.machine, self.access, self.identity) as key:
            ssh = ssh_command(key, self.machine.real(self.access.known_hosts))
            environment = {
                **_QUIET,
                "GIT_ALLOW_PROTOCOL": address.protocols,
                "GIT_SSH_COMMAND": ssh,
                "GIT_SSH_VARIANT": "ssh",
            }
            return self._git(argv(words, directory), f"git {words[0]} of {address}", environment, None)

    def local(self, directory: Path, *words: str | Path, cwd: Path | None = None, settings: Sequence[str] = ()) -> str:
        """Run git where it talks to nobody and finds no configuration but the repository's own. Raises as above."""
        environment = {**_QUIET, **_ISOLATED, "GIT_ALLOW_PROTOCOL": "", "GIT_LITERAL_PATHSPECS": "1"}
        return self._git(argv(words, directory, (*_PLAIN_SETTINGS, *settings)), f"git {words[0]}", environment, cwd)

    def program(self, words: Sequence[str | Path], cwd: Path) -> str:
        """Run another program in the same way; what it printed, whether it failed or not."""
        return self._call([*_TIED, *words], str(words[0]), {}, cwd)[1]

    def _git(self, words: Sequence[str | Path], doing: str, environment: Mapping[str, str], cwd: Path | None) -> str:
        code, output = self._call(words, doing, environment, cwd)
        if code == 0:
            return output
        if missing := _NOT_INSTALLED.search(output):
            raise BootagentError(f"{missing[1]} is not installed", remedy=f"install {missing[1]} in the image")
        tail = _shown(output)
        raise GitError(said(tail) or f"git ended with {code}", tail)

    def _call(
        self, words: Sequence[str | Path], doing: str, environment: Mapping[str, str], cwd: Path | None
    ) -> tuple[int, str]:
        timeout = max(0.1, self.deadline - time.monotonic())
        try:
            done = self.machine.run(
                words, timeout=timeout, identity=self.identity, cwd=cwd, env=environment, check=False
            )
        except CommandError as error:
            if time.monotonic() < self.deadline:
                raise
            # Not the error's own sentence: it has the URL, and all that is in it.
            last = said(_shown(error.tail))
            raise MachineError(
                f"{doing} did not end in time" + (f": {last}" if last else ""),
                remedy="check the route to it, or give it more time",
            ) from None
        return done.returncode, done.stdout


#: Should this run be killed, the next must not find its git still at work.
_TIED = ("setpriv", "--pdeathsig", "KILL", "--")
#: Nothing is asked of anybody, and nothing is shown page by page.
_QUIET = {"GIT_TERMINAL_PROMPT": "0", "GIT_PAGER": "cat", "LC_ALL": "C.UTF-8"}


def argv(words: Sequence[str | Path], directory: Path | None, settings: Sequence[str] = ()) -> list[str | Path]:
    """The command line of git, which dies with us; ``settings`` come after our own."""
    configured = [word for setting in (*_SETTINGS, *settings) for word in ("-c", setting)]
    where = [f"--git-dir={directory}"] if directory else []
    return [*_TIED, "git", "--no-replace-objects", *configured, *where, *words]


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


def _shown(output: str) -> str:
    return without_secrets(plain(output.replace("\r", "\n")))
