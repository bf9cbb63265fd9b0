"""A release copied from a tree of the image or of a mount, and how a baked tree is known."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bootagent.config.model import ImageSource
from bootagent.errors import BootagentError, MachineError
from bootagent.machine import Machine
from bootagent.sources import image
from bootagent.steps.staged_copy import StagedCopy
from tests.host.stage import USER

ORIGIN = "/opt/web"
RELEASE = "/srv/web/releases/20260101000001"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user")


@pytest.fixture
def machine(machine_root: Path) -> Machine:
    """With the tree to copy, root's, and the directory to copy to, the app's."""
    found = Machine(machine_root)
    origin, releases = found.real(ORIGIN), found.real(RELEASE).parent
    (origin / "bin").mkdir(parents=True)
    (origin / "bin/run").write_text("#!/bin/sh\n")
    (origin / "bin/run").chmod(0o755)
    (origin / "app.rb").write_text("one")
    releases.mkdir(parents=True)
    if owner := found.identity(USER):
        os.chown(releases, owner.uid, owner.gid)
    return found


def step(origin: str = ORIGIN, within: float = 60.0) -> StagedCopy:
    return StagedCopy(RELEASE, origin, within, USER, None)


def staged(machine: Machine) -> list[str]:
    return sorted(path.name for path in machine.real(RELEASE).parent.iterdir())


def test_the_release_is_a_copy_of_the_tree(machine: Machine) -> None:
    origin, release = machine.real(ORIGIN), machine.real(RELEASE)
    (origin / ".git").mkdir()
    (origin / ".git/HEAD").write_text("x")
    (origin / "vendor/.git").mkdir(parents=True)
    (origin / ".hidden").write_text("x")
    (origin / "-rf").write_text("x")
    (origin / "new\nline").write_text("x")
    (origin / "link").symlink_to("bin/run")
    (origin / "dangling").symlink_to("/nowhere")
    (origin / "empty").mkdir()
    (origin / "closed").mkdir()
    (origin / "closed/file").write_text("x")
    (origin / "closed").chmod(0o555)
    os.link(origin / "app.rb", origin / "same.rb")
    os.utime(origin / "app.rb", (1_000_000_000, 1_000_000_000))
    wanted = step()
    assert not wanted.is_satisfied(machine)
    wanted.apply(machine)
    assert wanted.is_satisfied(machine)
    names = {str(path.relative_to(origin)) for path in origin.rglob("*")} - {".git", ".git/HEAD"}
    assert {str(path.relative_to(release)) for path in release.rglob("*")} == names
    assert (release / "link").readlink() == Path("bin/run")
    assert (release / "dangling").readlink() == Path("/nowhere")
    assert stat.S_IMODE((release / "bin/run").stat().st_mode) == 0o755
    assert stat.S_IMODE((release / "closed").stat().st_mode) == 0o555
    assert (release / "app.rb").samefile(release / "same.rb")
    assert not (release / "app.rb").samefile(origin / "app.rb")
    assert (release / "app.rb").stat().st_mtime == 1_000_000_000
    if os.geteuid() == 0:
        owner = pwd.getpwnam(USER).pw_uid
        assert {path.lstat().st_uid for path in (release, *release.rglob("*"))} == {owner}
    (release / "closed").chmod(0o755)


def test_what_a_link_leads_to_is_copied(machine: Machine) -> None:
    machine.real("/opt/current").symlink_to("web")
    step("/opt/current").apply(machine)
    assert (machine.real(RELEASE) / "app.rb").read_text() == "one"
    assert not machine.real(RELEASE).is_symlink()


@root_only
def test_a_file_that_the_user_may_not_read_is_an_error(machine: Machine) -> None:
    secret = machine.real(ORIGIN) / "bin/secret"
    secret.write_text("x")
    secret.chmod(0o600)
    with pytest.raises(BootagentError, match=r"/opt/web could not be copied: .*bin/secret.*let nobody read") as caught:
        step().apply(machine)
    assert not isinstance(caught.value, MachineError)
    assert staged(machine) == []
    secret.chmod(0o644)
    machine.real(ORIGIN).chmod(0o700)
    with pytest.raises(BootagentError, match=r"Permission denied.*let nobody read"):
        step().apply(machine)


def test_an_origin_that_is_absent_empty_or_no_directory_is_an_error(machine: Machine) -> None:
    with pytest.raises(MachineError, match=r"/opt/none could not be copied: .*No such file"):
        step("/opt/none").apply(machine)
    machine.real("/opt/none").mkdir()
    (machine.real("/opt/none") / ".git").mkdir()
    with pytest.raises(MachineError, match=r"/opt/none is empty .*mounted"):
        step("/opt/none").apply(machine)
    with pytest.raises(BootagentError, match="Not a directory"):
        step("/opt/web/app.rb").apply(machine)
    assert staged(machine) == []


def test_a_copy_that_takes_too_long_is_given_up(machine: Machine) -> None:
    for number in range(2000):
        (machine.real(ORIGIN) / f"file{number}").write_bytes(b"x" * 10_000)
    start = time.monotonic()
    with pytest.raises(MachineError, match=r"could not be copied within 0\.001 s"):
        step(within=0.001).apply(machine)
    assert time.monotonic() - start < 20
    assert staged(machine) == []


def test_killed_in_the_middle_the_next_run_succeeds(machine: Machine) -> None:
    origin = machine.real(ORIGIN)
    for number in range(2000):
        (origin / f"file{number}").write_bytes(b"x" * 10_000)
    child = subprocess.Popen([sys.executable, "-c", _APPLY, str(machine.root)])
    partial = machine.real(RELEASE).with_name(f".{Path(RELEASE).name}.partial")
    deadline = time.monotonic() + 60
    while not (partial.is_dir() and any(partial.iterdir())):
        assert time.monotonic() < deadline
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    step().apply(machine)
    assert staged(machine) == [Path(RELEASE).name]
    assert len(list(machine.real(RELEASE).iterdir())) == 2002


_APPLY = f"""
import sys
from pathlib import Path
from bootagent.machine import Machine
from bootagent.steps.staged_copy import StagedCopy
StagedCopy({RELEASE!r}, {ORIGIN!r}, 60, {USER!r}, None).apply(Machine(Path(sys.argv[1])))
"""


# --- what a baked tree is known by ---------------------------------------------------------------------------


def known(machine: Machine) -> tuple[str, str]:
    identity, label, path = image.resolve(machine, ImageSource(ORIGIN))
    assert path == ORIGIN
    return identity, label


def test_a_tree_is_known_by_its_revision_file(machine: Machine) -> None:
    (machine.real(ORIGIN) / "REVISION").write_text("v1.2-3\n")
    assert known(machine) == ("image:v1.2-3", "v1.2-3")


@pytest.mark.parametrize("how", ["branch", "packed", "detached", "work tree"])
def test_a_tree_is_known_by_its_commit(machine: Machine, how: str) -> None:
    origin = machine.real(ORIGIN)

    def git(*words: str, cwd: Path = origin) -> str:
        settings = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
        return subprocess.run(["git", *settings, *words], cwd=cwd, check=True, capture_output=True, text=True).stdout

    if how == "work tree":
        main = machine.real("/opt/main")
        main.mkdir()
        git("init", "-q", cwd=main)
        git("commit", "-q", "--allow-empty", "-m", "x", cwd=main)
        git("worktree", "add", "-q", "-b", "deploy/x", str(origin / "tree"), cwd=main)
        (origin / "tree/.git").rename(origin / ".git")
        sha = git("rev-parse", "deploy/x", cwd=main).strip()
    else:
        git("init", "-q")
        git("commit", "-q", "--allow-empty", "-m", "x")
        git("checkout", "-q", "-b", "deploy/x")
        sha = git("rev-parse", "HEAD").strip()
    if how == "packed":
        git("pack-refs", "--all")
        assert not (origin / ".git/refs/heads/deploy/x").exists()
    if how == "detached":
        git("checkout", "-q", "--detach")
    assert known(machine) == (f"image:{sha}", sha)


def test_a_tree_without_either_is_known_by_its_inode_and_time(machine: Machine) -> None:
    first = known(machine)
    assert known(machine) == first
    (machine.real(ORIGIN) / "REVISION").write_text("not one word\n")
    (machine.real(ORIGIN) / ".git").mkdir()
    os.utime(machine.real(ORIGIN), ns=(0, 1_234_567_890_000_000_000))
    second = known(machine)
    assert second != first
    assert second[1] == "image-1234567890000000000"


def test_a_tree_that_is_not_there_is_an_error(machine: Machine) -> None:
    with pytest.raises(BootagentError, match=r"the image has no /opt/none: No such file .*bake it"):
        image.resolve(machine, ImageSource("/opt/none"))
    with pytest.raises(BootagentError, match="is not a directory"):
        image.resolve(machine, ImageSource("/opt/web/app.rb"))


@pytest.mark.parametrize("name", ["REVISION", ".git/HEAD"])
def test_a_pipe_in_the_tree_is_no_answer_and_not_waited_for(machine: Machine, name: str) -> None:
    origin = machine.real(ORIGIN)
    (origin / ".git").mkdir()
    os.mkfifo(origin / name)
    found: list[str] = []
    # Not to hang with it: who opens a pipe to read waits for whoever writes to it.
    threading.Thread(target=lambda: found.append(known(machine)[0]), daemon=True).start()
    deadline = time.monotonic() + 60
    while not found and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found == [f"image:{origin.stat().st_ino}:{origin.stat().st_mtime_ns}"]
