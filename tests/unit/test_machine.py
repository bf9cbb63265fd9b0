"""Programs run and files written the careful way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bootagent import lock
from bootagent.errors import EXIT_TRY_LATER, BootagentError, CommandError, LockedError
from bootagent.machine import (
    MINIMAL_ENVIRONMENT,
    TAIL_BYTES,
    Identity,
    Machine,
    login_environment,
    writable_by_others,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as other users")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- paths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "real"),
    [("/", "."), ("/srv/web", "srv/web"), ("/srv//web/", "srv/web"), ("/srv/a..b", "srv/a..b"), ("//x", "x")],
)
def test_paths_lie_below_the_root(machine: Machine, path: str, real: str) -> None:
    assert machine.real(path) == machine.root / real


@pytest.mark.parametrize("path", ["", "srv", "../x", "/..", "/srv/../..", "./x"])
def test_paths_that_do_not_are_refused(machine: Machine, path: str) -> None:
    with pytest.raises(BootagentError, match="not an absolute path"):
        machine.real(path)


def test_a_relative_root_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    machine = Machine(Path("here"))
    monkeypatch.chdir("/")
    assert machine.real("/x") == tmp_path / "here/x"


# --- programs ----------------------------------------------------------------------------------------------------


def test_a_unit_test_cannot_start_a_program_by_accident(machine: Machine) -> None:
    with pytest.raises(AssertionError, match="spawns"):
        machine.run(["true"], timeout=5)


@pytest.mark.spawns
def test_a_program_gets_a_minimal_environment_and_no_input(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    shown = machine.run(["env"], timeout=10, env={"MORE": "y"}).stdout
    variables = dict(line.split("=", 1) for line in shown.splitlines())
    assert variables == {**MINIMAL_ENVIRONMENT, **login_environment(None), "MORE": "y"}
    assert machine.run(["cat"], timeout=10).stdout == ""


@pytest.mark.spawns
def test_words_are_words(machine: Machine) -> None:
    words = ["a b", "$HOME", "`id`", "'", '"', "*", "", "-n"]
    assert machine.run(["printf", "%s\\n", *words], timeout=10).stdout.splitlines() == words


@pytest.mark.spawns
def test_both_outputs_come_together_in_order_whatever_the_bytes(machine: Machine) -> None:
    script = "echo one; echo two >&2; printf '\\377\\n'"
    assert machine.run(["sh", "-c", script], timeout=10).stdout == "one\ntwo\n\ufffd\n"


@pytest.mark.spawns
def test_a_failure_is_quoted_and_has_the_end_of_what_was_said(machine: Machine) -> None:
    with pytest.raises(CommandError) as caught:
        machine.run(["sh", "-c", "yes line | head -n 5000; echo 'the end'; exit 7"], timeout=10)
    assert (
        str(caught.value)
        == "sh -c 'yes line | head -n 5000; echo '\"'\"'the end'\"'\"'; exit 7' failed with exit code 7"
    )
    assert caught.value.tail.endswith("the end\n")
    assert len(caught.value.tail) == TAIL_BYTES
    with pytest.raises(CommandError, match=r"^the hook failed with exit code 7$"):
        machine.run(["sh", "-c", "exit 7"], timeout=10, shown="the hook")
    with pytest.raises(CommandError, match=r"^the hook took longer than 0\.1 s$"):
        machine.run(["sleep", "10"], timeout=0.1, shown="the hook")


@pytest.mark.spawns
def test_a_failure_can_be_looked_at_instead(machine: Machine) -> None:
    assert machine.run(["sh", "-c", "exit 7"], timeout=10, check=False).returncode == 7


@pytest.mark.spawns
def test_a_signal_is_named(machine: Machine) -> None:
    with pytest.raises(CommandError, match="was killed by SIGKILL"):
        machine.run(["sh", "-c", "kill -9 $$"], timeout=10)


@pytest.mark.spawns
def test_an_absent_program_is_a_sentence_with_a_remedy(machine: Machine) -> None:
    with pytest.raises(CommandError, match=r"cannot start no-such-program x: No such file or directory") as caught:
        machine.run(["no-such-program", "x"], timeout=10)
    assert caught.value.remedy == "install no-such-program"


@pytest.mark.spawns
def test_a_file_that_cannot_be_run_is_a_sentence(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("echo\n")
    with pytest.raises(CommandError, match="Permission denied"):
        machine.run([tmp_path / "plain"], timeout=10)


@pytest.mark.spawns
def test_a_late_program_is_killed_with_its_children(machine: Machine, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(CommandError, match=r"took longer than 0\.5 s") as caught:
        machine.run(["sh", "-c", f"trap '' TERM; sleep 60 & echo $! > {tmp_path}/pid; echo begun; wait"], timeout=0.5)
    assert time.monotonic() - began < 10
    assert caught.value.tail == "begun\n"
    assert is_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.spawns
def test_an_interrupted_wait_kills_too(machine: Machine, tmp_path: Path) -> None:
    """^C, or the signal of a service manager, must not leave a hook running behind our back."""
    pid = tmp_path / "pid"

    def interrupt() -> None:
        while not pid.exists() or not pid.read_text().endswith("\n"):
            time.sleep(0.01)
        time.sleep(0.3)  # by now it is waited for
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        machine.run(["sh", "-c", f"echo $$ > {pid}; exec sleep 60"], timeout=30)
    thread.join()
    assert is_gone(int(pid.read_text()))


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.spawns
def test_a_program_runs_where_it_is_told(machine: Machine, tmp_path: Path) -> None:
    assert machine.run(["pwd"], timeout=10, cwd=tmp_path).stdout == f"{tmp_path}\n"


@as_root
@pytest.mark.spawns
def test_a_program_acts_as_its_identity_and_no_more(machine: Machine) -> None:
    identity = Identity("nobody", "nogroup", 65534, 65534, (1,), "/nonexistent")
    shown = machine.run(
        ["sh", "-c", "id -u; id -g; id -G; echo $USER $HOME"], timeout=10, identity=identity, cwd=Path("/")
    )
    assert shown.stdout.splitlines() == ["65534", "65534", "65534 1", "nobody /nonexistent"]


# --- users -------------------------------------------------------------------------------------------------------


def test_no_user_means_as_we_are(machine: Machine) -> None:
    assert machine.identity(None) is None


@as_root
def test_identities(machine: Machine) -> None:
    nobody = machine.identity("nobody")
    assert nobody is not None
    assert (nobody.user, nobody.uid) == ("nobody", 65534)
    assert nobody.gid not in nobody.groups
    assert machine.identity("root") is None
    other = machine.identity("root", "daemon")
    assert other is not None
    assert (other.uid, other.group) == (0, "daemon")


@as_root
@pytest.mark.parametrize(("user", "group"), [("no-such-user", None), ("nobody", "no-such-group")])
def test_an_unknown_user_or_group_is_named(machine: Machine, user: str, group: str | None) -> None:
    with pytest.raises(BootagentError, match=f"'{group or user}' does not exist on this machine"):
        machine.identity(user, group)


def test_who_is_not_root_acts_as_himself(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert machine.identity("no-such-user") is None


# --- files -------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_as_a_whole(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    before = path.open()
    machine.write(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert before.read() == "old"  # who has the old one open keeps it whole
    assert names(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        machine.write(path, b"new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_write_replaces_a_link_and_not_what_it_points_at(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    machine.write(tmp_path / "link", b"new")
    assert ((tmp_path / "real").read_text(), (tmp_path / "link").is_symlink()) == ("old", False)


@pytest.mark.parametrize("before", ["", "old", "gone"])
def test_a_link_is_switched(machine: Machine, tmp_path: Path, before: str) -> None:
    (tmp_path / "old").mkdir()
    if before:
        (tmp_path / "current").symlink_to(before)
    (tmp_path / ".current.new").symlink_to("left by a run that was killed")
    machine.link(tmp_path / "current", "new")
    assert (tmp_path / "current").readlink() == Path("new")
    assert names(tmp_path) == ["current", "old"]
    assert names(tmp_path / "old") == []  # not put into what it pointed at


def test_a_link_is_never_absent(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("0")
    stop = threading.Event()
    seen: list[str] = []

    def watch() -> None:
        while not stop.is_set():
            try:
                (tmp_path / "current").readlink()
            except FileNotFoundError:
                seen.append("absent")

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(200):
        machine.link(tmp_path / "current", str(number))
    stop.set()
    watcher.join()
    assert seen == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_is_no_link_is_not_replaced_by_one(machine: Machine, tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "current")
    with pytest.raises(BootagentError, match="is not a symbolic link"):
        machine.link(tmp_path / "current", "new")
    assert not (tmp_path / "current").is_symlink()


def test_a_directory_is_made_with_its_mode_and_an_old_one_left_alone(machine: Machine, tmp_path: Path) -> None:
    machine.make_directory(tmp_path / "a/b", mode=0o700)
    machine.make_directory(tmp_path / "a/b", mode=0o755)
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700


@pytest.mark.spawns
def test_a_tree_is_removed_even_when_half_removed_before(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "tree/deep").mkdir(parents=True)
    (tmp_path / ".tree.removed/deep").mkdir(parents=True)
    (tmp_path / "tree/link").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    machine.remove_tree(tmp_path / "tree")
    machine.remove_tree(tmp_path / "tree")
    assert names(tmp_path) == ["kept"]


def test_free_space_of_a_place_to_come(machine: Machine, tmp_path: Path) -> None:
    found = machine.free_space(tmp_path / "not/yet/there")
    assert found.free_bytes > 0
    assert found.inodes is None or found.inodes > 0


# --- the lock ----------------------------------------------------------------------------------------------------


def test_one_at_a_time_and_the_holder_is_named(machine: Machine) -> None:
    assert not lock.is_held(machine)
    with lock.Lock(machine, "reconfigure", 0):
        assert lock.is_held(machine)
        with pytest.raises(LockedError) as caught, lock.Lock(machine, "run", 0):
            pass
    assert caught.value.exit_code == EXIT_TRY_LATER
    assert f"pid {os.getpid()}, reconfigure, since 20" in str(caught.value)
    assert "--lock-wait" in str(caught.value)
    assert not lock.is_held(machine)


def test_the_lock_is_free_after_a_failure_inside(machine: Machine) -> None:
    with pytest.raises(ValueError, match="inside"), lock.Lock(machine, "run", 0):
        raise ValueError("inside")
    with lock.Lock(machine, "run", 0):
        pass


def test_the_lock_is_waited_for(machine: Machine) -> None:
    holding, free = threading.Event(), threading.Event()

    def hold() -> None:
        with lock.Lock(machine, "run", 0):
            holding.set()
            free.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(10)
    threading.Timer(0.3, free.set).start()
    began = time.monotonic()
    with lock.Lock(machine, "reconfigure", 10):
        assert 0.2 < time.monotonic() - began < 5
    thread.join()


def test_a_holder_that_says_nothing_is_no_reason_to_fail(machine: Machine) -> None:
    path = machine.real(lock.PATH)
    with machine.locked(path):
        for content in ("", "{", "{}"):
            path.write_text(content)
            with pytest.raises(LockedError), lock.Lock(machine, "run", 0):
                pass


def test_asking_whether_it_is_held_is_in_nobodys_way(machine: Machine) -> None:
    """``status --wait`` asks five times a second, and a boot that begins at that moment must not be turned away."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            lock.is_held(machine)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(100):
            with lock.Lock(machine, "run", 0):
                pass
    finally:
        stop.set()
        for asker in askers:
            asker.join()


# --- trust -------------------------------------------------------------------------------------------------------


def test_who_could_write_a_file_is_named_as_a_clause(tmp_path: Path) -> None:
    path = tmp_path / "hook"
    path.touch()
    assert writable_by_others(path) is None
    path.chmod(0o757)
    assert writable_by_others(path) == f"{path} can be written by others (mode 757)"
    with pytest.raises(FileNotFoundError):
        writable_by_others(tmp_path / "none")


@pytest.mark.spawns
def test_an_environment_is_utf_8_whatever_the_locale() -> None:
    script = """
import sys
from bootagent.machine import Machine
found = Machine().run(["env"], timeout=60, env={"A": "h\\u00fcsh \\udcff", "LANG": None}).stdout
assert "A=h\\u00fcsh \\ufffd" in found.splitlines() and "LANG=" not in found, found.encode()
assert sys.getfilesystemencoding() == "ascii"
"""
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
