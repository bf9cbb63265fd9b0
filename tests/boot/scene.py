"""What a boot takes place in: a cloud with releases in a bucket, the wire to it, and machines."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bootagent.sandbox.cloud import Cloud
from tests.boot.image import GUEST, Image
from tests.boot.vm import PATIENCE, Disk, Vm
from tests.boot.wire import Wire

BUCKET = "deploys"
_RUN = "config/service/server/run"
#: Where the apps listen in the guest.
PORTS = {"web": 8080, "jobs": 8081, "shop": 8080, "builds": 8080}


@dataclass(frozen=True)
class Answer:
    """What an app says: its version and environment, its process, and for how many seconds that has run."""

    version: str
    environment: str
    pid: int
    age: float = field(compare=False)


class Scene:
    """One simulated instance's surroundings."""

    def __init__(self, cloud: Cloud, wire: Wire, place: Path) -> None:
        self.cloud = cloud
        self.wire = wire
        self.place = place
        cloud.create_bucket(BUCKET)

    def publish(
        self,
        version: str,
        app: str = "web",
        *,
        environments: tuple[str, ...] = ("staging",),
        more: Mapping[str, str] | None = None,
    ) -> str:
        """Commit a version of an app and publish it as its developers do; ``more`` are further files. Its commit."""
        repository = self.place / "repositories" / app
        if not repository.exists():
            repository.mkdir(parents=True)
            self._git(repository, "init", "--quiet")
        files = {"VERSION": f"{version}\n", "server.py": (GUEST / "server.py").read_text(), **(more or {})}
        for name, text in files.items():
            path = repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self._git(repository, "add", "--all")
        self._git(repository, "commit", "--quiet", "--message", version)
        for environment in environments:
            place = f"s3://{BUCKET}/{app}/{environment}.json"
            subprocess.run(
                [sys.executable, "-m", "bootagent", "publish", place, "--repo", str(repository)],
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=self.cloud.process_environment(),
            )
        return self._git(repository, "rev-parse", "HEAD").strip()

    def _git(self, repository: Path, *words: str) -> str:
        who = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "gc.auto=0"]
        argv = ["git", "-C", str(repository), *who, *words]
        return subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout

    def machine(
        self, image: Image, name: str = "machine", *, disk: Disk | None = None, metadata: int | None = None
    ) -> Vm:
        """A machine on a fresh disk, or on ``disk``; it is off. ``metadata`` is another metadata service's port."""
        port = metadata or port_of(self.cloud.metadata.endpoint)
        disk = disk or Disk(self.place / f"{name}.qcow2", image)
        forward = {there: _free_port() for there in set(PORTS.values())}
        return Vm(name, disk, self.place, metadata=port, s3=self.wire.port, forward=forward)


def deploy(directory: Path, version: str, deploy_to: str) -> Path:
    """Put a version where Capistrano would, for machines that see ``directory`` as ``deploy_to``; its release."""
    releases = directory / "releases"
    releases.mkdir(parents=True, exist_ok=True)
    release = releases / f"{20260101000000 + len(list(releases.iterdir()))}"
    script = f"#!/bin/sh\nexec 2>&1\ncd {deploy_to}/current || exit 111\nexec python3 -IS server.py\n"
    files = {"VERSION": f"{version}\n", "server.py": (GUEST / "server.py").read_text(), _RUN: script}
    for name, text in files.items():
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        (release / name).write_text(text)
    (release / _RUN).chmod(0o755)
    (release / "log").mkdir()
    shutil.chown(release / "log", "nobody")
    fresh = directory / "current.fresh"
    fresh.symlink_to(f"{deploy_to}/releases/{release.name}")
    fresh.rename(directory / "current")
    return release


def port_of(endpoint: str) -> int:
    """The port of a loopback URL."""
    return int(endpoint.rpartition(":")[2])


def ask(vm: Vm, app: str = "web", path: str = "/") -> Answer:
    """What the app says to a client outside the machine. Raises OSError when nobody answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{vm.forward[PORTS[app]]}{path}", timeout=10) as response:
        version, environment, pid, age = response.read().decode().split()
    return Answer(version, environment, int(pid), float(age))


def wait_for_version(vm: Vm, version: str, app: str = "web", within: float = PATIENCE) -> Answer:
    """Wait until the app says this version."""
    deadline = time.monotonic() + within
    said: object = None
    while time.monotonic() < deadline:
        try:
            said = ask(vm, app)
            if said.version == version:
                return said
        except (OSError, ValueError) as error:
            said = error
        assert vm.is_on(), f"{vm.name} went off:\n{vm.console_tail()}"
        time.sleep(0.1)
    raise AssertionError(f"{app} on {vm.name} never said {version}, but {said}:\n{vm.console_tail()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
