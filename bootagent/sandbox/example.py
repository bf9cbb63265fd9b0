"""The sample app the sandbox boots when it is given no configuration: a real service in a real git repository."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from bootagent.errors import BootagentError
from bootagent.machine import MINIMAL_ENVIRONMENT

APP = "hello"
TAGS = {"Role": "web", "Environment": "staging"}
DEPLOY_TO = "/srv/hello"
SETTINGS = "/etc/hello/settings.json"

#: The port the sample configuration names, for a free one to take its place.
_PORT = "8080"
_AUTHOR = {"NAME": "Sample Author", "EMAIL": "author@example.com", "DATE": "2026-01-01T00:00:00+00:00"}


@dataclass(frozen=True)
class Example:
    """The sample app, written out below a directory."""

    repository: Path
    config: Path
    settings: Path
    port: int

    @property
    def url(self) -> str:
        """Where the app answers once it is up."""
        return f"http://127.0.0.1:{self.port}/"

    def release(self, version: str) -> None:
        """Commit a new version that works."""
        self._edit("VERSION", lambda text: f"{version}\n")
        self._commit(f"Release {version}")

    def release_broken(self, version: str) -> None:
        """Commit a new version that exits as it starts."""
        self._edit("VERSION", lambda text: f"{version}\n")
        self._edit("server.py", lambda text: text.replace("def main():\n", f"def main():\n    {_MISTAKE}\n"))
        self._commit(f"Release {version}")

    def _edit(self, name: str, change: Callable[[str], str]) -> None:
        file = self.repository / name
        file.write_text(change(file.read_text()))

    def _commit(self, message: str) -> None:
        git("add", "--all", cwd=self.repository)
        git("commit", "--quiet", "--message", message, cwd=self.repository)


_MISTAKE = 'sys.exit("cannot reach the database")'


def write(directory: Path) -> Example:
    """Write the app's repository (one commit, v1), its configuration and its settings into ``directory``."""
    repository = directory / "repository"
    with resources.as_file(resources.files("bootagent.sandbox") / "sample") as sample:
        shutil.copytree(sample / "app", repository, ignore=shutil.ignore_patterns("__pycache__"))
        settings = Path(shutil.copy(sample / "settings.json", directory))
        template = (sample / "bootagent.toml").read_text()
    for file in repository.rglob("*"):
        # Whether a package keeps the executable bit is up to whoever packed it.
        if file.is_file() and file.read_bytes().startswith(b"#!"):
            file.chmod(0o755)
    port = _free_port()
    config = directory / "bootagent.toml"
    config.write_text(template.replace(_PORT, str(port)))
    git("init", "--quiet", "--initial-branch", "main", cwd=repository)
    example = Example(repository, config, settings, port)
    example._commit("Release v1")
    return example


def git(*words: str, cwd: Path) -> None:
    """Run git with a fixed author and date and nobody's own settings, so that the commits are the same everywhere.

    Raises BootagentError with what it said.
    """
    environment = {
        **MINIMAL_ENVIRONMENT,
        "HOME": str(cwd),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{key}": value for who in ("AUTHOR", "COMMITTER") for key, value in _AUTHOR.items()},
    }
    try:
        done = subprocess.run(["git", *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BootagentError("git is not installed", remedy="install git") from None
    if done.returncode:
        raise BootagentError(f"git {words[0]} failed: {done.stderr.strip()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
