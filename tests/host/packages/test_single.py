"""The single file: unpacked once, safely, by whoever runs it, on any Python."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Ran
from tests.host.packages.conftest import Built, Unprivileged

NOBODY = 65534
PATH = "/usr/bin:/bin"


class User:
    """A user who has the single file, and a cache of his own."""

    def __init__(self, run: Unprivileged, file: Path, cache: Path) -> None:
        self._run = run
        self.file = file
        self.cache = cache

    def __call__(self, *words: str, python: str = "/usr/bin/python3", **env: str) -> Ran:
        named = {"PATH": PATH, "HOME": "/nonexistent", "XDG_CACHE_HOME": str(self.cache), **env}
        return self._run([python, str(self.file), *words], named)

    @property
    def trees(self) -> list[str]:
        """What is unpacked."""
        return sorted(path.name for path in (self.cache / "bootagent").iterdir())


@pytest.fixture
def user(built: Built, as_nobody: Unprivileged, machine_root: Path) -> Iterator[User]:
    file = machine_root / "bootagent.pyz"
    shutil.copy(built.pyz, file)
    cache = machine_root / "cache"
    cache.mkdir()
    own(cache)
    yield User(as_nobody, file, cache)
    assert not Path("/var/cache/bootagent").exists() or os.geteuid() == 0


def own(path: Path) -> None:
    """Give a path to the user."""
    if os.geteuid() == 0:
        shutil.chown(path, NOBODY, NOBODY)


def pythons() -> list[str]:
    """The Pythons that this machine has, one of each version: the system's, whatever is on PATH, and pyenv's."""
    names = ["/usr/bin/python3", sys.executable, *(f"python3.{minor}" for minor in range(7, 16))]
    others = sorted(map(str, Path.home().glob(".pyenv/versions/3.*/bin/python3")))
    found: dict[str, str] = {}
    for name in [*filter(None, map(shutil.which, names)), *others]:
        shown = subprocess.run([name, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True)
        if shown.returncode == 0 and shown.stdout != "3 6\n":
            found.setdefault(shown.stdout, name)
    return list(found.values())


@pytest.mark.parametrize("python", pythons())
def test_every_python(python: str, built: Built, tmp_path: Path) -> None:
    # As whoever runs the tests, in a tree unpacked by hand: root's cache is the machine's, and not for a test.
    with zipfile.ZipFile(built.pyz) as archive:
        archive.extractall(tmp_path)
    program = str(tmp_path / "tree/bin/bootagent")
    version = subprocess.run([python, "-c", "import sys; print(sys.version_info >= (3, 10))"], capture_output=True)
    if version.stdout == b"True\n":
        words = [python, "-IS", program, "schema"]
        assert '"$defs"' in subprocess.run(words, capture_output=True, text=True, check=True).stdout
        imported = "import sys; sys.path.insert(0, sys.argv[1]); import boto3, requests, structlog, tomli"
        services = ("s3", "ec2", "sts", "ssm", "autoscaling", "elbv2")
        code = f"{imported}\nfor name in {services}: boto3.client(name, 'eu-west-1')"
        subprocess.run([python, "-IS", "-c", code, str(tmp_path / "tree/lib")], env={}, check=True)
    else:
        done = subprocess.run([python, str(built.pyz), "--version"], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("bootagent needs Python 3.10 or newer; ")


def test_it_unpacks_itself_once(user: User) -> None:
    first = user("--version")
    assert (first.code, first.stderr) == (0, "")
    assert first.stdout.startswith("bootagent ")
    (name,) = user.trees
    tree = user.cache / "bootagent" / name
    assert len(list(tree.rglob("*.pyc"))) > 300
    before = tree.stat()
    assert user("--version").code == 0
    assert (tree.stat().st_ino, user.trees) == (before.st_ino, [name])
    assert user("status", "--root", str(user.cache)).code == 75


def test_many_at_once(user: User) -> None:
    with ThreadPoolExecutor(4) as pool:
        ran = list(pool.map(lambda _: user("--version"), range(4)))
    assert [one.code for one in ran] == [0, 0, 0, 0], ran
    assert len(user.trees) == 1


@pytest.mark.parametrize("what", ["cache", "cache/bootagent", "cache/bootagent/TREE"])
def test_nothing_is_imported_that_others_could_have_written(what: str, user: User) -> None:
    assert user("--version").code == 0
    (name,) = user.trees
    place = user.cache.parent / what.replace("TREE", name)
    place.chmod(0o777)
    ran = user("--version")
    assert (ran.code, ran.stdout) == (1, "")
    assert "others could change what is in it; chown it to yourself, chmod go-w" in ran.stderr
    assert str(place) in ran.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_tree_somebody_else_made(user: User) -> None:
    assert user("--version").code == 0
    (name,) = user.trees
    tree = user.cache / "bootagent" / name
    shutil.chown(tree, 1234, 1234)
    assert "others could change" in user("--version").stderr
    shutil.rmtree(tree)
    tree.symlink_to("/tmp")
    ran = user("--version")
    assert (ran.code, ran.stdout) == (1, "")


def test_nowhere_to_unpack(user: User) -> None:
    ran = user("--version", XDG_CACHE_HOME="")
    assert (ran.code, ran.stdout) == (1, "")
    assert ran.stderr == (
        "bootagent: cannot unpack itself: /nonexistent: Permission denied; "
        "XDG_CACHE_HOME may name a directory of your own\n"
    )
    assert "Traceback" not in user("--version", XDG_CACHE_HOME="relative", HOME=str(user.file)).stderr


def test_what_nobody_uses_is_removed(user: User) -> None:
    place = user.cache / "bootagent"
    place.mkdir()
    own(place)
    for name in ("0" * 32, "f" * 32, ".fresh-killed", "kept"):
        (place / name / "lib").mkdir(parents=True)
        own(place / name)
        own(place / name / "lib")
    lock = os.open(place / ("f" * 32), os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert user("--version").code == 0
    finally:
        os.close(lock)
    (tree,) = {*user.trees} - {"f" * 32, "kept"}
    assert tree not in ("0" * 32, ".fresh-killed")
    assert user.trees == sorted([tree, "f" * 32, "kept"])


def test_a_tree_in_use_is_locked(user: User, as_nobody: Unprivileged) -> None:
    """The daemon holds on to it for as long as it runs, through every exec."""
    config = user.cache / "config.toml"
    config.write_text("")
    own(config)
    assert user("--version").code == 0
    (name,) = user.trees
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
    words = ["/usr/bin/python3", str(user.file), "run", "--config", str(config), "--root", str(user.cache)]
    env = {"PATH": PATH, "XDG_CACHE_HOME": str(user.cache), "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"}
    with subprocess.Popen([*drop, *words], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as daemon:
        try:
            deadline = time.monotonic() + 60
            while b"daemon" not in Path(f"/proc/{daemon.pid}/cmdline").read_bytes():
                assert daemon.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            lock = os.open(user.cache / "bootagent" / name, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(lock)
        finally:
            daemon.terminate()


def test_install_below_a_root(user: User) -> None:
    machine = user.cache / "machine"
    for name in ("usr/lib/systemd", "usr/bin", "etc/bootagent"):
        (machine / name).mkdir(parents=True)
    (machine / "etc/bootagent/config.toml").write_text("# mine\n")
    for path in [machine, *machine.rglob("*")]:
        own(path)
    ran = user("install", "--root", str(machine))
    assert ran.code == 0, ran.stderr
    assert ran.stderr == "bootagent: there is no runsvdir; install runit, which runs the services\n"
    assert (machine / "usr/bin/bootagent").read_bytes() == user.file.read_bytes()
    assert os.access(machine / "usr/bin/bootagent", os.X_OK)
    assert (machine / "etc/bootagent/config.toml").read_text() == "# mine\n"
    assert (machine / "etc/systemd/system/multi-user.target.wants/bootagent.service").is_symlink()


def test_install_beside_the_package(user: User) -> None:
    (user.cache / "usr/bin").mkdir(parents=True)
    (user.cache / "usr/bin/bootagent").symlink_to("/opt/bootagent/bin/bootagent")
    ran = user("install", "--root", str(user.cache))
    assert (ran.code, ran.stdout) == (1, "")
    assert "is a package's; remove that first" in ran.stderr


def test_install_where_runit_is_init(user: User) -> None:
    machine = user.cache / "machine"
    (machine / "etc/service").mkdir(parents=True)
    for path in [machine, *machine.rglob("*")]:
        own(path)
    assert user("install", "--root", str(machine)).code == 0
    assert (machine / "etc/service/bootagent").readlink() == Path("/etc/sv/bootagent")
    assert os.access(machine / "etc/sv/bootagent/run", os.X_OK)
    assert os.access(machine / "etc/sv/bootagent/log/run", os.X_OK)
