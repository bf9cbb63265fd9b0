"""The simulated cloud and machine, for every test that wants a real one.

``cloud``         a :class:`Cloud` of its own for each test: one instance (Role=web, Environment=staging), no bucket
``machine_root``  an empty directory to be a machine's root; whatever still runs in it at the end is killed
``runsvdir``      a real runsvdir on ``machine_root``/etc/service
``agent``         runs the bootagent command line on ``machine_root`` in ``cloud``

Tests below ``tests/unit`` cannot start a process unless they are marked ``@pytest.mark.spawns``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol

import hypothesis
import pytest

from bootagent.sandbox.api import AwsApi
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.supervisor import Supervisor

TAGS = {"Role": "web", "Environment": "staging"}


# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "spawns: this unit test may start processes")


@pytest.fixture(autouse=True)
def no_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to start a process in a unit test that does not say it means to."""
    unit = Path(__file__).parent / "unit"
    if unit not in request.path.parents or request.node.get_closest_marker("spawns"):
        return

    def refuse(self: object, args: object, *rest: object, **options: object) -> NoReturn:
        raise AssertionError(f"a unit test started {args!r}; if it means to, mark it @pytest.mark.spawns")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(subprocess.Popen, "__del__", lambda self: None)


@pytest.fixture(scope="session")
def aws_api() -> Iterator[AwsApi]:
    """One simulated AWS API for all tests of this process; ``cloud`` empties it for each."""
    with AwsApi() as api:
        yield api


@pytest.fixture
def cloud(aws_api: AwsApi) -> Iterator[Cloud]:
    """A fresh cloud: see :class:`Cloud` for ``set_tag``, ``create_bucket``, ``put``, ``count``, ``api.fail``.

    ``cloud.metadata`` has the faults, ``cloud.process_environment()`` is for a process inside.
    """
    with Cloud(tags=TAGS, api=aws_api) as running:
        yield running


@pytest.fixture
def machine_root() -> Iterator[Path]:
    """A root directory for a machine, which any user may enter (pytest's own tmp_path is closed to them)."""
    root = Path(tempfile.mkdtemp(prefix="bootagent-test-"))
    root.chmod(0o755)
    yield root
    while left := processes_of(root):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    shutil.rmtree(root)


@pytest.fixture
def runsvdir(machine_root: Path) -> Iterator[Supervisor]:
    """A real runsvdir on the machine's /etc/service; at the end every service is stopped."""
    with Supervisor(machine_root / "etc/service", log=machine_root / "var/log/runsvdir.log") as supervisor:
        yield supervisor


class Ran(NamedTuple):
    """How a command line ended."""

    code: int
    stdout: str
    stderr: str


class Agent(Protocol):
    """Runs ``bootagent WORDS… --root machine_root``; ``env`` is added to the cloud's environment."""

    def __call__(self, *words: str, env: Mapping[str, str] | None = None, timeout: float = 120) -> Ran: ...


@pytest.fixture
def agent(cloud: Cloud, machine_root: Path) -> Agent:
    """``agent("reconfigure")`` runs it to its end and returns (code, stdout, stderr)."""

    def run(*words: str, env: Mapping[str, str] | None = None, timeout: float = 120) -> Ran:
        done = subprocess.run(
            agent_argv(machine_root, *words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**cloud.process_environment(), **(env or {})},
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


def agent_argv(root: Path, command: str, *words: str) -> list[str]:
    """The argument list of a bootagent command on a machine's root, for a test that starts it itself."""
    return [sys.executable, "-m", "bootagent", command, "--root", str(root), *words]


def processes_of(root: Path) -> list[int]:
    """The running processes that have to do with ``root``: in their arguments, environment or working directory.

    For a directory no one but the test knows. The test itself is not among them, nor is what started it.
    """
    us = {os.getpid(), *_ancestors(os.getpid())}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in us:
            with contextlib.suppress(OSError):
                said = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
                where = str((entry / "cwd").readlink())
                if os.fsencode(root) in said or where == str(root) or where.startswith(f"{root}/"):
                    found.append(int(entry.name))
    return found


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid
