"""Real repositories to fetch from, and a real sshd that gives them to whoever has the deploy key."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.host.stage import USER, free_port

Files = dict[str, str | bytes | None]
SSHD = "/usr/sbin/sshd"


class Repository:
    """A work tree of a developer's, and the bare repository ``origin`` he pushes to, given to ``user``."""

    def __init__(self, origin: Path, work: Path, user: str | None) -> None:
        self.origin = origin
        self.work = work
        self.user = user
        origin.parent.mkdir(parents=True, exist_ok=True)
        self._run("git", "init", "-q", "--bare", "-b", "main", str(origin), cwd=origin.parent)
        self._run("git", "init", "-q", "-b", "main", str(work), cwd=origin.parent)
        self.git("remote", "add", "origin", str(origin))

    def git(self, *words: str) -> str:
        """Run git in the work tree; what it printed."""
        settings = ["user.name=A Developer", "user.email=dev@example.com", "protocol.file.allow=always"]
        return self._run("git", *(word for setting in settings for word in ("-c", setting)), *words, cwd=self.work)

    def commit(self, files: Files | None = None, *, push: bool = True) -> str:
        """Write ``files`` (None removes one) and commit all there is. Returns the commit's id."""
        for name, content in (files or {}).items():
            path = self.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.git("add", "--all")
        self.git("commit", "-q", "--allow-empty", "-m", "a change")
        if push:
            self.push("HEAD")
        return self.head()

    def head(self) -> str:
        """The id of the commit the work tree is at."""
        return self.git("rev-parse", "HEAD").strip()

    def push(self, *words: str) -> None:
        """Push to the bare repository."""
        self.git("push", "-q", "origin", *words)
        self.give()

    def give(self) -> None:
        """Let the user own the bare repository, so that his git trusts it."""
        if self.user and os.geteuid() == 0:
            subprocess.run(["chown", "-R", f"{self.user}:", str(self.origin)], check=True)

    def _run(self, *argv: str, cwd: Path) -> str:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.work.parent), "GIT_CONFIG_NOSYSTEM": "1"}
        # Pushing goes to a repository that has been given away.
        env |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
        (self.work.parent / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
        done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout


class GitServer:
    """sshd on the loopback interface. The deploy key reads the one repository and can do nothing else.

    ``mode`` decides how: "well"; "late", it says nothing; "cut", the connection ends in the middle of the
    transfer; "stuck", it stays open there.
    """

    def __init__(self, directory: Path, origin: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.sha = ""
        directory.mkdir()
        for name in ("host", "deploy", "foreign"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(directory / name)]
            subprocess.run(argv, check=True)
        self.mode("well")
        script = directory / "serve"
        script.write_text(_SERVE.format(mode=directory / "mode", origin=origin, asked=directory / "asked"))
        script.chmod(0o755)
        public = (directory / "deploy.pub").read_text()
        (directory / "authorized").write_text(f'restrict,command="{script}" {public}')
        (directory / "config").write_text(_CONFIG.format(port=self.port, directory=directory))

    @property
    def url(self) -> str:
        """The repository's address."""
        return f"ssh://root@127.0.0.1:{self.port}/app.git"

    @property
    def known_hosts(self) -> str:
        """What an image would hold for ssh to know this server by."""
        kind, key, _ = (self.directory / "host.pub").read_text().split()
        return f"[127.0.0.1]:{self.port} {kind} {key}\n"

    @property
    def asked(self) -> int:
        """How often somebody got in."""
        with contextlib.suppress(FileNotFoundError):
            return len((self.directory / "asked").read_text().splitlines())
        return 0

    def key(self, name: str = "deploy") -> str:
        """A private key; the server knows "deploy", and not "foreign"."""
        return (self.directory / name).read_text()

    def mode(self, mode: str) -> None:
        """See above."""
        (self.directory / "mode").write_text(mode)

    @contextlib.contextmanager
    def running(self) -> Iterator[GitServer]:
        """Serve inside ``with``."""
        Path("/run/sshd").mkdir(exist_ok=True)
        log = (self.directory / "log").open("wb")
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(self.directory / "config")], stderr=log)
        try:
            _wait_for(self.port)
            yield self
        finally:
            process.terminate()
            process.wait(30)
            log.close()


def available() -> bool:
    """Whether sshd can serve here."""
    return os.geteuid() == 0 and shutil.which(SSHD) is not None


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "sshd did not start"
            time.sleep(0.05)


_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host
PidFile none
AuthorizedKeysFile {directory}/authorized
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin forced-commands-only
AcceptEnv GIT_PROTOCOL
"""
_SERVE = """\
#!/bin/bash
echo "$SSH_ORIGINAL_COMMAND" >>'{asked}'
mode=$(cat '{mode}')
upload() {{ git -c safe.directory='*' upload-pack '{origin}'; }}
case $mode in
late) sleep 60 ;;
cut) upload | dd bs=1 count=60000 status=none ;;
stuck) {{ upload | dd bs=1 count=60000 status=none; sleep 60; }} ;;
*) upload ;;
esac
"""

__all__ = ["USER", "GitServer", "Repository", "available"]
