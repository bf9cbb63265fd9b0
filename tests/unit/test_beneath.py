"""Work in a directory that someone else may write: no link is followed, nothing hangs."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bootagent import beneath
from bootagent.errors import BootagentError
from bootagent.machine import Identity, Machine

NOBODY = Identity("nobody", "nogroup", 65534, 65534, (), "/")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
pytestmark = pytest.mark.timeout(30)  # a FIFO that is waited for is waited for forever


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory beside one that nothing may touch."""
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "root/a/b/file").write_text("inside")
    (tmp_path / "outside/b").mkdir(parents=True)
    (tmp_path / "outside/b/file").write_text("outside")
    return tmp_path / "root"


@pytest.fixture
def outside(tmp_path: Path, root: Path) -> Callable[[], dict[str, str]]:
    """What is in the directory that nothing may touch."""
    place = tmp_path / "outside"

    def look() -> dict[str, str]:
        return {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()}

    return look


UNTOUCHED = {"b/file": "outside"}


def operations(root: Path, path: str) -> dict[str, Callable[[], object]]:
    """Everything that walks to ``path`` and acts there."""
    return {
        "directory": lambda: enter(root, path),
        "create": lambda: enter(root, path, create=True),
        "read": lambda: beneath.read(root, path),
        "write": lambda: beneath.write(root, path, b"new", mode=0o644, owner=None),
        "link": lambda: beneath.link(Machine(root), root, path, "/target", owner=None, replace=True),
        "files": lambda: list(beneath.files(root, path)),
        "subdirectories": lambda: beneath.subdirectories(root, path),
    }


def enter(root: Path, path: str, *, create: bool = False, owner: Identity | None = None) -> list[str]:
    with beneath.directory(root, path, create=create, owner=owner) as descriptor:
        return sorted(entry.name for entry in os.scandir(descriptor))


WORDS = list(operations(Path(), ""))

# --- links -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("target", ["../outside", "{outside}", "b", "."])
def test_a_link_in_the_way_is_refused(
    root: Path, outside: Callable[[], dict[str, str]], word: str, target: str
) -> None:
    """Even one that stays inside: it may have moved by the time it is used."""
    (root / "a").rename(root / "was")
    (root / "a").symlink_to(target.format(outside=root.parent / "outside"))
    with pytest.raises(BootagentError, match="'a' is a link or no directory"):
        operations(root, "a/b/file")[word]()
    assert outside() == UNTOUCHED


@pytest.mark.parametrize("word", WORDS)
def test_a_link_further_down_is_refused(root: Path, outside: Callable[[], dict[str, str]], word: str) -> None:
    (root / "a/b/file").unlink()
    (root / "a/b").rmdir()
    (root / "a/b").symlink_to(root.parent / "outside/b")
    with pytest.raises(BootagentError, match="'b' is a link or no directory"):
        operations(root, "a/b/file")[word]()
    assert outside() == UNTOUCHED


@pytest.mark.parametrize("word", ["directory", "create", "files", "subdirectories"])
def test_a_link_in_the_place_of_the_directory_itself_is_refused(root: Path, word: str) -> None:
    (root / "c").symlink_to(root.parent / "outside")
    with pytest.raises(BootagentError):
        operations(root, "c")[word]()


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("make", [Path.touch, os.mkfifo])
def test_what_is_no_directory_in_the_way_is_refused(root: Path, word: str, make: Callable[[Path], None]) -> None:
    make(root / "c")
    with pytest.raises(BootagentError, match="'c' is a link or no directory"):
        operations(root, "c/b/file")[word]()


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("path", ["../outside/b/file", "a/../../outside/b/file", "a/b/../../../outside/new"])
def test_no_path_climbs_out(root: Path, outside: Callable[[], dict[str, str]], word: str, path: str) -> None:
    """Callers check their paths; this is the module whose name promises it."""
    with pytest.raises(BootagentError):
        operations(root, path)[word]()
    assert outside() == UNTOUCHED


def test_the_root_itself_may_be_a_link_since_it_is_ours(root: Path) -> None:
    alias = root.parent / "alias"
    alias.symlink_to(root)
    assert beneath.read(alias, "a/b/file")[0] == b"inside"


def test_a_link_swapped_in_between_two_looks_is_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch, outside: Callable[[], dict[str, str]]
) -> None:
    """The directory was opened before the swap, so the write goes where it was."""
    real = os.open

    def swapping(path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if str(path).startswith(".file"):
            (root / "a/b").rename(root / "moved")
            (root / "a/b").symlink_to(root.parent / "outside/b")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swapping)
    beneath.write(root, "a/b/file", b"new", mode=0o644, owner=None)
    assert (root / "moved/file").read_bytes() == b"new"
    assert outside() == UNTOUCHED


# --- reading -----------------------------------------------------------------------------------------------------


def test_reading_gives_content_and_mode(root: Path) -> None:
    (root / "a/b/file").chmod(0o640)
    assert beneath.read(root, "a/b/file") == (b"inside", 0o640)


@pytest.mark.parametrize("path", ["a/b/none", "a/none/file", "none"])
def test_reading_what_is_not_there(root: Path, path: str) -> None:
    with pytest.raises(FileNotFoundError):
        beneath.read(root, path)


def make_socket(path: Path) -> None:
    where = Path.cwd()
    os.chdir(path.parent)  # a socket's name is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(where)


def make_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, make_link, make_dangling_link, make_socket])
def test_reading_what_is_no_regular_file_is_refused_and_not_waited_for(
    root: Path, make: Callable[[Path], None]
) -> None:
    make(root / "a/odd")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(BootagentError, match="odd"):
        beneath.read(root, "a/odd")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_reading_a_huge_file_is_refused(root: Path) -> None:
    with (root / "a/huge").open("wb") as file:
        file.truncate(beneath.MAX_FILE_BYTES)
        assert len(beneath.read(root, "a/huge")[0]) == beneath.MAX_FILE_BYTES
        file.truncate(beneath.MAX_FILE_BYTES + 1)
    with pytest.raises(BootagentError, match="larger than 4194304 bytes"):
        beneath.read(root, "a/huge")


def test_reading_a_link(root: Path) -> None:
    (root / "a/link").symlink_to("b/../nowhere")
    (root / "loop").symlink_to(root.parent / "outside")
    assert beneath.read_link(root, "a/link") == "b/../nowhere"
    assert beneath.read_link(root, "a/b") is None
    assert beneath.read_link(root, "a/b/file") is None
    assert beneath.read_link(root, "a/none") is None
    assert beneath.read_link(root, "none/none") is None
    assert beneath.read_link(root, "loop/link") is None


def test_listing_files_is_deep_sorted_and_without_directories(root: Path) -> None:
    (root / "a/z").symlink_to("/etc")
    (root / "a/empty").mkdir()
    os.mkfifo(root / "a/b/fifo")
    assert [path for path, _ in beneath.files(root, "a")] == ["b/fifo", "b/file", "z"]
    assert [path for path, _ in beneath.files(root, ".")] == ["a/b/fifo", "a/b/file", "a/z"]


def test_listing_subdirectories(root: Path) -> None:
    (root / "a/z").symlink_to("b")
    (root / "a/c").mkdir()
    (root / "a/file").touch()
    assert beneath.subdirectories(root, "a") == ["b", "c"]
    assert beneath.subdirectories(root, "none") == []
    assert beneath.subdirectories(root, "none/deeper") == []


# --- writing -----------------------------------------------------------------------------------------------------


def test_writing_makes_directories_and_leaves_nothing_else(root: Path) -> None:
    beneath.write(root, "x/y/z", b"new", mode=0o640, owner=None)
    assert beneath.read(root, "x/y/z") == (b"new", 0o640)
    assert [path for path, _ in beneath.files(root, "x")] == ["y/z"]
    assert (root / "x").stat().st_mode & 0o777 == 0o755


def test_writing_over_a_link_replaces_the_link(root: Path, outside: Callable[[], dict[str, str]]) -> None:
    (root / "a/link").symlink_to(root.parent / "outside/b/file")
    beneath.write(root, "a/link", b"new", mode=0o600, owner=None)
    assert not (root / "a/link").is_symlink()
    assert beneath.read(root, "a/link") == (b"new", 0o600)
    assert outside() == UNTOUCHED


@pytest.mark.parametrize("make", [os.mkfifo, Path.touch, make_link, make_dangling_link])
def test_what_lies_where_the_new_file_is_written_first_is_not_used(
    root: Path, make: Callable[[Path], None], outside: Callable[[], dict[str, str]]
) -> None:
    make(root / "a/b/.file.new")
    beneath.write(root, "a/b/file", b"new", mode=0o644, owner=None)
    assert [entry.name for entry in (root / "a/b").iterdir()] == ["file"]
    assert beneath.read(root, "a/b/file")[0] == b"new"
    assert outside() == UNTOUCHED


def test_a_new_file_is_secret_until_it_has_its_mode(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    real = os.fchmod

    def noting(descriptor: int, mode: int) -> None:
        modes.append(os.fstat(descriptor).st_mode & 0o777)
        real(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", noting)
    beneath.write(root, "a/secret", b"new", mode=0o644, owner=None)
    assert modes == [0o600]


@as_root
def test_an_owner_gets_what_is_made_and_only_that(root: Path) -> None:
    beneath.write(root, "a/x/y/file", b"new", mode=0o640, owner=NOBODY)
    owners = {path: (root / path).stat().st_uid for path in ("a", "a/x", "a/x/y", "a/x/y/file")}
    assert owners == {"a": 0, "a/x": 65534, "a/x/y": 65534, "a/x/y/file": 65534}
    enter(root, "a/b/c", create=True, owner=NOBODY)
    assert ((root / "a/b").stat().st_uid, (root / "a/b/c").stat().st_uid) == (0, 65534)


# --- linking -----------------------------------------------------------------------------------------------------


def make_full_directory(path: Path) -> None:
    (path / "deep/er").mkdir(parents=True)
    (path / "deep/file").touch()
    (path / "deep/link").symlink_to(path.parents[2] / "outside")


@pytest.mark.spawns
@pytest.mark.parametrize(
    "make", [lambda path: None, Path.touch, os.mkfifo, make_link, make_dangling_link, Path.mkdir, make_full_directory]
)
def test_a_link_replaces_whatever_a_release_holds(
    root: Path, make: Callable[[Path], None], outside: Callable[[], dict[str, str]]
) -> None:
    make(root / "a/log")
    beneath.link(Machine(root), root, "a/log", "/srv/web/shared/log", owner=None, replace=True)
    assert (root / "a/log").readlink() == Path("/srv/web/shared/log")
    assert outside() == UNTOUCHED


@pytest.mark.parametrize("make", [Path.touch, make_full_directory])
def test_data_of_a_release_that_serves_is_not_replaced(root: Path, make: Callable[[Path], None]) -> None:
    make(root / "a/log")
    with pytest.raises(BootagentError, match="no link and not empty"):
        beneath.link(Machine(root), root, "a/log", "/x", owner=None, replace=False)
    assert not (root / "a/log").is_symlink()


@pytest.mark.parametrize("make", [lambda path: None, make_link, make_dangling_link, Path.mkdir])
def test_nothing_and_an_empty_directory_give_way_in_a_release_that_serves(
    root: Path, make: Callable[[Path], None]
) -> None:
    make(root / "a/log")
    beneath.link(Machine(root), root, "a/log", "/x", owner=None, replace=False)
    assert (root / "a/log").readlink() == Path("/x")


@pytest.mark.spawns
def test_a_tree_is_removed_whatever_its_depth_and_never_through_a_link(
    root: Path, outside: Callable[[], dict[str, str]]
) -> None:
    deep = root / "doomed"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.symlink(root.parent / "outside", "link", dir_fd=here)
    os.close(here)
    try:
        beneath.remove_tree(Machine(root), root, "doomed")
        assert not deep.exists() and not list(root.glob(".doomed*"))
    finally:  # too deep for pytest to clean up after a failure
        subprocess.run(["rm", "-rf", str(deep), str(root / ".doomed.removed")], check=True)
    (root / "swapped").symlink_to(root.parent / "outside")
    with pytest.raises(BootagentError):
        beneath.remove_tree(Machine(root), root, "swapped/b")
    assert outside() == UNTOUCHED


def test_linking_makes_the_way(root: Path) -> None:
    beneath.link(Machine(root), root, "tmp/pids", "/x", owner=None, replace=True)
    assert (root / "tmp/pids").readlink() == Path("/x")


# --- the log -----------------------------------------------------------------------------------------------------


def append(root: Path, *lines: str) -> None:
    for line in lines:
        beneath.append_line(root, "revisions.log", line, owner=None)


def test_lines_are_added_once_each_time_they_are_new(root: Path) -> None:
    append(root, "one", "one", "two", "one", "one")
    assert (root / "revisions.log").read_text() == "one\ntwo\none\n"


def test_a_line_that_merely_ends_the_same_is_new(root: Path) -> None:
    append(root, "a one", "one")
    assert (root / "revisions.log").read_text() == "a one\none\n"


def test_a_line_is_added_to_a_long_log(root: Path) -> None:
    (root / "revisions.log").write_text("x" * 99 + "\n" + "Branch ä\n" * 2000)
    append(root, "Branch ä", "new", "new")
    assert (root / "revisions.log").read_text().endswith("Branch ä\nBranch ä\nnew\n")


def test_a_line_does_not_run_into_one_that_was_never_ended(root: Path) -> None:
    (root / "revisions.log").write_text("one\ntw")
    append(root, "three")
    assert (root / "revisions.log").read_text() == "one\ntw\nthree\n"


@pytest.mark.parametrize("make", [make_link, make_dangling_link, Path.mkdir, os.mkfifo])
def test_a_log_that_is_no_file_is_refused_and_not_waited_for(root: Path, make: Callable[[Path], None]) -> None:
    make(root / "revisions.log")
    with pytest.raises((BootagentError, OSError)):
        append(root, "one")
    assert not (root / "nowhere").exists()


@as_root
def test_a_new_log_is_its_owners_and_an_old_one_stays_whose_it_was(root: Path) -> None:
    beneath.append_line(root, "revisions.log", "one", owner=NOBODY)
    assert (root / "revisions.log").stat().st_uid == 65534
    (root / "old.log").write_text("zero\n")
    beneath.append_line(root, "old.log", "one", owner=NOBODY)
    assert (root / "old.log").stat().st_uid == 0
