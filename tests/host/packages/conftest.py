"""The packages, built once a session from the files as they are now, and a Debian to install them into."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Ran

CHECKOUT = Path(__file__).parents[3]
#: What the package depends on is in it, so that a test installs without a network.
INCLUDED = ("systemd", "systemd-sysv", "python3", "runit", "runit-run", "ca-certificates", "zstd")
_FRESH_SECONDS = 7 * 24 * 3600


def needs(program: str) -> None:
    """Skip the test where a program is missing that tests/run installs."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed; tests/run installs it")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can install packages")


@dataclass(frozen=True)
class Built:
    """A checkout that is committed, and what ``packaging/build`` made of it."""

    checkout: Path
    deb: Path
    pyz: Path


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One test process at a time."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(checkout: Path, output: Path, *words: str, env: Mapping[str, str] | None = None, umask: int = 0o022) -> str:
    """Run a checkout's ``packaging/build``; what it prints."""
    done = subprocess.run(
        [sys.executable, "packaging/build", "--output", str(output), *words],
        cwd=checkout,
        env={**os.environ, **(env or {})},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def git(checkout: Path, *words: str) -> str:
    """Run git in a checkout, as somebody who may commit."""
    who = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgSign=false"]
    return subprocess.run(["git", *who, *words], cwd=checkout, check=True, capture_output=True, text=True).stdout


def committed(place: Path) -> Path:
    """The files of this checkout as they are now, committed in a repository of their own, with the wheels at hand."""
    listed = git(CHECKOUT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, listed):
        if (CHECKOUT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, place / name)
    git(place, "init", "--quiet")
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--message=now")
    with_wheels(place)
    return place


def with_wheels(checkout: Path) -> None:
    """Spare a checkout the download of what another has fetched."""
    (CHECKOUT / "build/wheels").mkdir(parents=True, exist_ok=True)
    (checkout / "build").mkdir()
    (checkout / "build/wheels").symlink_to(CHECKOUT / "build/wheels")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The packages; built by whichever test process comes first."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "packages"
    place.mkdir(exist_ok=True)
    place.parent.chmod(0o755)  # other users run the single file
    place.chmod(0o755)
    with alone(place / "lock"):
        if not (place / "done").exists():
            checkout = place / "checkout"
            checkout.mkdir()
            build(committed(checkout), place / "out")
            (place / "done").touch()
    (deb,) = (place / "out").glob("bootagent_*_all.deb")
    return Built(place / "checkout", deb, place / "out/bootagent.pyz")


@pytest.fixture(scope="session")
def debian() -> Path:
    """A Debian 12 root to lay others over, kept for a week."""
    needs("mmdebstrap")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bootagent-tests"
    cache.mkdir(parents=True, exist_ok=True)
    base = cache / f"bookworm-{'-'.join(INCLUDED)}"
    with alone(cache / "lock"):
        if not base.exists() or time.time() - base.stat().st_mtime > _FRESH_SECONDS:
            fresh = base.with_suffix(".fresh")
            for left in (fresh, base):
                shutil.rmtree(left, ignore_errors=True)
            words = ["--quiet", "--variant=minbase", f"--include={','.join(INCLUDED)}", "bookworm", str(fresh)]
            subprocess.run(["mmdebstrap", *words], check=True, stdin=subprocess.DEVNULL)
            os.utime(fresh)
            fresh.rename(base)
    return base


class Root:
    """A Debian root directory in which programs can be run, as in a machine that has not booted."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def run(self, *words: str, env: Mapping[str, str] | None = None, timeout: float = 120) -> Ran:
        """Run a program in there, in namespaces of its own that end with it; the network is this machine's."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", f"--root={self.place}", "--mount-proc", "--"]
        done = subprocess.run(
            [*own, *words],
            env={"PATH": path, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def path(self, name: str) -> Path:
        """A file in there."""
        return self.place / name.lstrip("/")

    def is_there(self, name: str) -> bool:
        """Whether there is anything of that name, a dangling link included."""
        return os.path.lexists(self.path(name))


@pytest.fixture
def root(debian: Path, machine_root: Path) -> Iterator[Root]:
    """A fresh Debian root; what is written to it is in memory."""
    written, place = machine_root / "written", machine_root / "debian"
    with mounted(written, "-t", "tmpfs", "tmpfs"):
        for name in ("upper", "work"):
            (written / name).mkdir(mode=0o755)
        layers = f"lowerdir={debian},upperdir={written}/upper,workdir={written}/work"
        with mounted(place, "-t", "overlay", "overlay", "-o", layers):
            yield Root(place)


@contextlib.contextmanager
def mounted(place: Path, *words: str) -> Iterator[None]:
    """Something mounted at a directory of its own."""
    place.mkdir()
    subprocess.run(["mount", *words, str(place)], check=True)
    try:
        yield
    finally:
        # Lazily: what a failed test has left running in there is killed later.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def bake(root: Root, *words: str | Path) -> Ran:
    """Run ``packaging/bake`` on a root."""
    done = subprocess.run(
        [str(CHECKOUT / "packaging/bake"), str(root.place), "--no-recommends", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


Unprivileged = Callable[[Sequence[str], Mapping[str, str]], Ran]


@pytest.fixture
def as_nobody() -> Unprivileged:
    """Runs a program as a user who is not root, with this environment and nothing else."""

    def run(words: Sequence[str], env: Mapping[str, str]) -> Ran:
        drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [*drop, *words], env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run
