"""The unpacking process, run as it is in earnest: honest archives come out as they went in, hostile ones not at all."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootagent.pull import program
from bootagent.pull.unpack import EXIT_CUT_OFF, EXIT_DAMAGED, EXIT_FAILED, EXIT_REFUSED

pytestmark = pytest.mark.spawns

MTIME = 1_600_000_000
Snapshot = dict[str, tuple[Any, ...]]


class Outcome(NamedTuple):
    code: int
    report: str
    complaint: str


class Arena:
    """A directory to unpack into, with something beside it that must stay as it is."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.into = base / "into"
        self.into.mkdir()
        (base / "beside").write_text("untouched")
        (base / "beside").chmod(0o600)

    def unpack(self, archive: bytes, kind: str = "tar", **limits: int) -> Outcome:
        most_bytes, most_files = limits.get("max_bytes", 1 << 30), limits.get("max_files", 100_000)
        reserve = limits.get("reserve", 0)
        command = program.unpacker(kind, max_bytes=most_bytes, max_files=most_files, reserve=reserve)
        with tempfile.TemporaryFile() as file:
            file.write(archive)
            file.seek(0)
            done = subprocess.run(command, stdin=file, capture_output=True, cwd=self.into, env={}, check=False)
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode().strip())

    def expect_nothing_outside(self) -> None:
        assert sorted(path.name for path in self.base.iterdir()) == ["beside", "into"]
        found = (self.base / "beside").stat()
        assert (self.base / "beside").read_text() == "untouched"
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert found.st_nlink == 1


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    return Arena(tmp_path)


def snapshot(tree: Path) -> Snapshot:
    """Everything a release must keep of a tree: types, modes, contents, link targets and the times of files."""
    found: Snapshot = {}
    for path in tree.rglob("*"):
        status = path.lstat()
        name = str(path.relative_to(tree))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_dir():
            found[name] = ("directory", stat.S_IMODE(status.st_mode))
        else:
            found[name] = ("file", stat.S_IMODE(status.st_mode), int(status.st_mtime), path.read_bytes())
    return found


def rich_tree(root: Path) -> Path:
    """A tree with everything in it that a release may hold."""
    tree = root / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "dépôt" / ("n" * 200) / ("m" * 120)).mkdir(parents=True)
    (tree / "bin").mkdir()
    (tree / "bin/run").write_text("#!/bin/sh\n")
    (tree / "bin/run").chmod(0o755)
    (tree / "big").write_bytes(os.urandom(3_000_001))
    (tree / "nothing").touch()
    (tree / "private").write_text("secret")
    (tree / "private").chmod(0o600)
    (tree / "group").write_text("shared")
    (tree / "group").chmod(0o664)
    (tree / "naïve 日本.txt").write_text("text")
    (tree / "dépôt" / ("n" * 200) / ("m" * 120) / "deep").write_text("deep")
    (tree / "link").symlink_to("bin/run")
    (tree / "bin/up").symlink_to("../group")
    (tree / "dangling").symlink_to("not/there")
    (tree / "long-link").symlink_to("dépôt/" + "n" * 200 + "/" + "m" * 120 + "/deep")
    (tree / "locked").mkdir()
    (tree / "locked/file").write_text("inside")
    (tree / "locked").chmod(0o555)
    os.link(tree / "bin/run", tree / "second-name")
    for path in tree.rglob("*"):
        os.utime(path, (MTIME, MTIME), follow_symlinks=False)
    return tree


# --- what real programs make -----------------------------------------------------------------------------------


def gnu_tar(tree: Path, *options: str) -> bytes:
    return subprocess.run(["tar", "-cf", "-", *options, "-C", tree, "."], check=True, stdout=subprocess.PIPE).stdout


@pytest.mark.parametrize("form", ["gnu", "pax", "posix"])
def test_a_tree_comes_out_of_gnu_tar_as_it_went_in(
    arena: Arena, tmp_path_factory: pytest.TempPathFactory, form: str
) -> None:
    tree = rich_tree(tmp_path_factory.mktemp("source"))
    outcome = arena.unpack(gnu_tar(tree, f"--format={form}"))
    assert outcome.code == 0, outcome.complaint
    assert snapshot(arena.into) == snapshot(tree)
    assert (arena.into / "second-name").samefile(arena.into / "bin/run")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tree_comes_out_of_tarfile_as_it_went_in(
    arena: Arena, tmp_path_factory: pytest.TempPathFactory, form: int
) -> None:
    tree = rich_tree(tmp_path_factory.mktemp("source"))
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as archive:
        archive.add(tree, arcname=".")
    outcome = arena.unpack(content.getvalue())
    assert outcome.code == 0, outcome.complaint
    assert snapshot(arena.into) == snapshot(tree)
    with tarfile.open(fileobj=io.BytesIO(content.getvalue())) as archive:
        members = len(archive.getmembers())
    size = sum(len(entry[3]) for name, entry in snapshot(tree).items() if entry[0] == "file" and name != "second-name")
    assert outcome.report == f'{{"files": {members}, "size": {size}}}\n'


def test_ustar_prefixes_are_joined(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> None:
    tree = tmp_path_factory.mktemp("source")
    (tree / ("a" * 90) / ("b" * 90)).mkdir(parents=True)
    (tree / ("a" * 90) / ("b" * 90) / "file").write_text("x")
    assert arena.unpack(gnu_tar(tree, "--format=ustar")).code == 0
    assert (arena.into / ("a" * 90) / ("b" * 90) / "file").read_text() == "x"


def test_a_git_archive_is_unpacked(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> None:
    tree = tmp_path_factory.mktemp("repository")
    (tree / ("d" * 120)).mkdir()
    (tree / ("d" * 120) / ("f" * 120)).write_text("long")
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o755)
    (tree / "link").symlink_to("run")
    git = [
        "git",
        "-C",
        str(tree),
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "-c",
        "init.defaultBranch=main",
    ]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    archive = subprocess.run([*git, "archive", "HEAD"], check=True, stdout=subprocess.PIPE).stdout
    outcome = arena.unpack(archive)
    assert outcome.code == 0, outcome.complaint
    shutil.rmtree(tree / ".git")
    assert {name: entry[0] for name, entry in snapshot(arena.into).items()} == {
        name: entry[0] for name, entry in snapshot(tree).items()
    }
    assert (arena.into / ("d" * 120) / ("f" * 120)).read_text() == "long"
    assert os.access(arena.into / "run", os.X_OK)


def test_fractions_of_seconds_in_pax_times_are_kept(arena: Arena) -> None:
    assert arena.unpack(tar(member("f", b"x", pax_headers={"mtime": "1600000000.25"}))).code == 0
    assert (arena.into / "f").stat().st_mtime_ns == 1_600_000_000_250_000_000


def test_names_that_are_not_utf8_are_kept_byte_for_byte(arena: Arena) -> None:
    name = os.fsdecode(b"caf\xe9")
    assert arena.unpack(tar(member(name, b"latin"), form=tarfile.GNU_FORMAT)).code == 0
    assert [os.fsencode(path.name) for path in arena.into.iterdir()] == [b"caf\xe9"]


def test_world_write_is_taken_away(arena: Arena) -> None:
    assert arena.unpack(tar(member("d", kind=tarfile.DIRTYPE, mode=0o777), member("d/f", b"", mode=0o666))).code == 0
    assert stat.S_IMODE((arena.into / "d").stat().st_mode) == 0o775
    assert stat.S_IMODE((arena.into / "d/f").stat().st_mode) == 0o664


def test_a_later_member_replaces_an_earlier_one(arena: Arena) -> None:
    archive = tar(
        member("f", b"one"),
        member("other", kind=tarfile.LNKTYPE, link="f"),
        member("f", b"two"),
        member("was-link", kind=tarfile.SYMTYPE, link="f"),
        member("was-link", b"file"),
        member("was-file", b"file"),
        member("was-file", kind=tarfile.SYMTYPE, link="f"),
    )
    assert arena.unpack(archive).code == 0
    assert (arena.into / "f").read_text() == "two"
    assert (arena.into / "other").read_text() == "one"
    assert not (arena.into / "was-link").is_symlink()
    assert (arena.into / "was-file").is_symlink()


def test_one_block_of_zeros_ends_an_archive_and_what_follows_the_end_is_read(arena: Arena) -> None:
    whole = tar(member("f", b"x"))
    assert arena.unpack(whole[:1024] + bytes(512)).code == 0
    shutil.rmtree(arena.into)
    arena.into.mkdir()
    assert arena.unpack(whole + b"rest" * 100_000).code == 0


def test_circles_of_links_are_harmless_and_kept(arena: Arena) -> None:
    assert (
        arena.unpack(tar(member("a", kind=tarfile.SYMTYPE, link="b"), member("b", kind=tarfile.SYMTYPE, link="a"))).code
        == 0
    )
    assert (arena.into / "a").is_symlink()


# --- a property: whatever the tree, it round-trips -------------------------------------------------------------

_PART = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=40).filter(
    lambda text: text not in (".", "..") and len(text.encode()) <= 255
)
_NAMES = st.lists(st.lists(_PART, min_size=1, max_size=6).map("/".join), max_size=12, unique=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(names=_NAMES, data=st.data(), form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_any_tree_round_trips(names: list[str], data: st.DataObject, form: int) -> None:
    parents = {"/".join(name.split("/")[:end]) for name in names for end in range(1, name.count("/") + 1)}
    expected: Snapshot = dict.fromkeys(parents, ("directory", 0o755))
    members = []
    for name in names:
        if name in parents:
            continue
        content = data.draw(st.binary(max_size=1500))
        mode = data.draw(st.integers(0, 0o777)) | 0o400
        if data.draw(st.integers(0, 3)) == 0:
            members.append(member(name, kind=tarfile.SYMTYPE, link="../" * name.count("/") + "x"))
            expected[name] = ("link", "../" * name.count("/") + "x")
        else:
            members.append(member(name, content, mode=mode))
            expected[name] = ("file", mode & 0o775, MTIME, content)
    if not members:
        return
    with tempfile.TemporaryDirectory() as base:
        arena = Arena(Path(base))
        outcome = arena.unpack(tar(*members, form=form))
        assert outcome.code == 0, outcome.complaint
        assert snapshot(arena.into) == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_archive_never_ends_well_by_writing_elsewhere(data: st.DataObject) -> None:
    whole = bytearray(
        tar(member("d/f", b"content" * 100), member("l", kind=tarfile.SYMTYPE, link="d/f"), member("z", b"1"))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as base:
        arena = Arena(Path(base))
        outcome = arena.unpack(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
        assert outcome.code in (0, EXIT_REFUSED, EXIT_DAMAGED, EXIT_CUT_OFF), outcome.complaint
        assert "Traceback" not in outcome.complaint
        arena.expect_nothing_outside()


# --- hostile archives ------------------------------------------------------------------------------------------


class Member(NamedTuple):
    info: tarfile.TarInfo
    content: bytes


def member(
    name: str,
    content: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    mode: int = 0o644,
    pax_headers: dict[str, str] | None = None,
) -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname, info.mode, info.mtime = len(content), kind, link, mode, MTIME
    info.pax_headers = pax_headers or {}
    return Member(info, content)


def tar(*members: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as archive:
        for one in members:
            archive.addfile(one.info, io.BytesIO(one.content))
    return content.getvalue()


def raw(
    name: bytes = b"f",
    size: bytes = b"00000000000\0",
    kind: bytes = b"0",
    link: bytes = b"",
    mode: bytes = b"0000644\0",
) -> bytes:
    """A header block with fields of one's own making and a right checksum."""
    block = bytearray(512)
    for at, value in ((0, name), (100, mode), (124, size), (136, b"00000000000\0"), (156, kind), (157, link)):
        block[at : at + len(value)] = value
    block[257:265] = b"ustar\00000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    content = b"".join(records)
    return raw(b"PaxHeader", b"%011o\0" % len(content), kind) + content + bytes(-len(content) % 512)


END = bytes(1024)
SYMLINK, HARDLINK, DIRECTORY = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
DEEP = "/".join("d" * 200)

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "absolute name": (lambda: tar(member("/tmp/x", b"1")), "absolute name"),
    "two slashes": (lambda: tar(member("//tmp/x", b"1")), "absolute name"),
    "climbs": (lambda: tar(member("../beside", b"1")), "climbs"),
    "climbs inside": (lambda: tar(member("a/../../beside", b"1")), "climbs"),
    "ends in dots": (lambda: tar(member("a/..", b"1")), "not a name"),
    "directory climbs": (lambda: tar(member("a/../..", kind=DIRECTORY)), "climbs"),
    "file named dot": (lambda: tar(member("a/.", b"1")), "not a name"),
    "empty name": (lambda: raw(b"") + END, "not a name"),
    "file with a slash": (lambda: raw(b"a/") + END, "not a name"),
    "absolute link": (lambda: tar(member("l", kind=SYMLINK, link="/etc/passwd")), "absolute path"),
    "outward link": (lambda: tar(member("a/l", kind=SYMLINK, link="../../beside")), "out of the release"),
    "outward and back": (
        lambda: tar(member("l", kind=SYMLINK, link="../into/f"), member("f", b"")),
        "out of the release",
    ),
    "empty link": (lambda: raw(b"l", kind=b"2") + END, "impossible target"),
    "chained links": (
        lambda: tar(
            member("a/b/c/up", kind=SYMLINK, link="../../.."),
            member("out", kind=SYMLINK, link="a/b/c/up/.."),
        ),
        "out of the release",
    ),
    "chained links, reversed": (
        lambda: tar(
            member("out", kind=SYMLINK, link="a/b/c/up/.."),
            member("a/b/c/up", kind=SYMLINK, link="../../.."),
        ),
        "out of the release",
    ),
    "through a link": (
        lambda: tar(member("l", kind=SYMLINK, link="d"), member("d", kind=DIRECTORY), member("l/f", b"1")),
        "behind the symbolic link",
    ),
    "link over a directory": (
        lambda: tar(member("d", kind=DIRECTORY), member("d", kind=SYMLINK, link="x")),
        "a symbolic link and a directory",
    ),
    "directory over a link": (
        lambda: tar(member("d", kind=SYMLINK, link="x"), member("d", kind=DIRECTORY)),
        "behind the symbolic link",
    ),
    "file over a directory": (lambda: tar(member("d", kind=DIRECTORY), member("d", b"1")), "a file and a directory"),
    "directory over a file": (lambda: tar(member("d", b"1"), member("d", kind=DIRECTORY)), "a file and a directory"),
    "file below a file": (lambda: tar(member("d", b"1"), member("d/f", b"1")), "a file and a directory"),
    "hard link outside": (lambda: tar(member("h", kind=HARDLINK, link="../beside")), "climbs"),
    "absolute hard link": (lambda: tar(member("h", kind=HARDLINK, link="/etc/passwd")), "absolute name"),
    "hard link to later": (
        lambda: tar(member("h", kind=HARDLINK, link="f"), member("f", b"1")),
        "not an earlier regular",
    ),
    "hard link to itself": (
        lambda: tar(member("f", b"1"), member("f", kind=HARDLINK, link="f")),
        "not an earlier regular",
    ),
    "hard link to a link": (
        lambda: tar(member("l", kind=SYMLINK, link="f"), member("h", kind=HARDLINK, link="l")),
        "not an earlier regular",
    ),
    "hard link to a directory": (
        lambda: tar(member("d", kind=DIRECTORY), member("h", kind=HARDLINK, link="d")),
        "not an earlier regular",
    ),
    "hard link through a link": (
        lambda: tar(member("l", kind=SYMLINK, link="d"), member("d/f", b""), member("h", kind=HARDLINK, link="l/f")),
        "behind the symbolic link",
    ),
    "hard link with content": (lambda: raw(b"h", b"00000000001\0", b"1", b"f") + bytes(512) + END, "bytes of content"),
    "directory with content": (lambda: raw(b"d/", b"00000000001\0", b"5") + bytes(512) + END, "bytes of content"),
    "character device": (lambda: tar(member("c", kind=tarfile.CHRTYPE)), "a character device"),
    "block device": (lambda: tar(member("b", kind=tarfile.BLKTYPE)), "a block device"),
    "fifo": (lambda: tar(member("p", kind=tarfile.FIFOTYPE)), "a fifo"),
    "unknown type": (lambda: raw(kind=b"Z") + END, "unknown type"),
    "old sparse": (lambda: raw(kind=b"S") + END, "a sparse file"),
    "pax sparse": (lambda: pax(b"22 GNU.sparse.major=1\n") + raw() + END, "a sparse file"),
    "set-user-id": (lambda: tar(member("s", b"1", mode=0o4755)), "set-user-id"),
    "set-group-id": (lambda: tar(member("s", b"1", mode=0o2755)), "set-group-id"),
    "set-group-id directory": (lambda: tar(member("s", kind=DIRECTORY, mode=0o2755)), "set-group-id"),
    "sticky file": (lambda: tar(member("s", b"1", mode=0o1644)), "sticky"),
    "control character": (lambda: tar(member("a\nb", b"1")), "not a name"),
    "control character in a directory": (lambda: tar(member("a\x1b[2J/b", b"1")), "control characters"),
    "control character in a target": (lambda: tar(member("l", kind=SYMLINK, link="a\nb")), "impossible target"),
    "NUL in a pax name": (lambda: pax(b"12 path=a\0b\n") + raw() + END, "NUL"),
    "long component": (lambda: tar(member("n" * 256, b"1")), "not a name"),
    "long name": (lambda: tar(member("/".join(["n" * 250] * 13), b"1")), "longer than"),
    "deep": (lambda: tar(member(DEEP, b"1")), "too deep"),
    "large extended header": (lambda: raw(size=b"%011o\0" % (2 << 20), kind=b"x") + bytes(2 << 20) + END, "allowed"),
    "global name": (lambda: pax(b"10 path=x\n", kind=b"g") + raw() + END, "global pax header"),
    "named twice": (
        lambda: pax(b"10 path=x\n") + raw(b"L", b"00000000002\0", b"L") + b"y\0" + bytes(510) + raw() + END,
        "by a pax header and by a GNU header",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_hostile_archives_are_refused(arena: Arena, what: str) -> None:
    make, sentence = REFUSED[what]
    outcome = arena.unpack(make())
    assert outcome.code == EXIT_REFUSED, outcome
    assert sentence in outcome.complaint
    assert "\n" not in outcome.complaint
    arena.expect_nothing_outside()
    assert not [path for path in arena.into.rglob("*") if path.is_symlink()]


DAMAGED: dict[str, tuple[Callable[[], bytes], int]] = {
    "nothing": (lambda: b"", EXIT_CUT_OFF),
    "zeros only": (lambda: END, EXIT_DAMAGED),
    "no end mark": (lambda: raw(), EXIT_CUT_OFF),
    "half a block": (lambda: raw() + b"half", EXIT_CUT_OFF),
    "half a file": (lambda: tar(member("f", b"x" * 5000))[:3000], EXIT_CUT_OFF),
    "file without its padding": (lambda: raw(size=b"00000000001\0") + b"x", EXIT_CUT_OFF),
    "half an extended header": (lambda: pax(b"10 path=x\n")[:600], EXIT_CUT_OFF),
    "lonely extended header": (lambda: pax(b"10 path=x\n") + END, EXIT_CUT_OFF),
    "two extended headers": (lambda: pax(b"10 path=x\n") * 2 + raw() + END, EXIT_DAMAGED),
    "zeros in the middle": (lambda: raw() + bytes(512) + raw(b"g") + END, EXIT_DAMAGED),
    "wrong checksum": (lambda: raw()[:-1] + b"x" + END, EXIT_DAMAGED),
    "text": (lambda: b"<html>not found</html>" * 100, EXIT_DAMAGED),
    "negative size": (lambda: raw(size=b"\xff" * 12) + END, EXIT_DAMAGED),
    "size with underscores": (lambda: raw(size=b"0000_000001\0") + END, EXIT_DAMAGED),
    "size not octal": (lambda: raw(size=b"00000000009\0") + END, EXIT_DAMAGED),
    "pax length too long": (lambda: pax(b"99 path=x\n") + raw() + END, EXIT_DAMAGED),
    "pax length zero": (lambda: pax(b"0 path=x\n") + raw() + END, EXIT_DAMAGED),
    "pax without equals": (lambda: pax(b"8 pathx\n") + raw() + END, EXIT_DAMAGED),
    "pax size not a number": (lambda: pax(b"11 size=-1\n") + raw() + END, EXIT_DAMAGED),
    "pax time not a number": (lambda: pax(b"14 mtime=noon\n") + raw() + END, EXIT_DAMAGED),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_archives_are_told_from_whole_ones(arena: Arena, what: str) -> None:
    make, code = DAMAGED[what]
    outcome = arena.unpack(make())
    assert outcome.code == code, outcome
    assert "Traceback" not in outcome.complaint
    arena.expect_nothing_outside()


def test_the_number_of_files_is_limited(arena: Arena) -> None:
    archive = tar(*(member(f"f{number}") for number in range(11)))
    assert "10 files allowed" in arena.unpack(archive, max_files=10).complaint


def test_directories_nobody_named_count_as_files(arena: Arena) -> None:
    outcome = arena.unpack(tar(member("a/b/c/d/e/f/g/h/i/j/k/l", b"")), max_files=5)
    assert (outcome.code, "directories included" in outcome.complaint) == (EXIT_REFUSED, True)


def test_an_archive_that_names_its_directories_may_hold_just_as_many_as_allowed(arena: Arena) -> None:
    members = [member("d", kind=DIRECTORY), member("d/e", kind=DIRECTORY), member("d/e/f", b"1")]
    assert arena.unpack(tar(*members), max_files=3).code == 0


def test_the_number_of_bytes_is_limited_before_they_are_written(arena: Arena) -> None:
    bomb = raw(b"bomb", b"\x80" + (1 << 40).to_bytes(11, "big"))
    outcome = arena.unpack(bomb, max_bytes=1 << 20)
    assert (outcome.code, f"{1 << 20} bytes allowed" in outcome.complaint) == (EXIT_REFUSED, True)
    assert not list(arena.into.iterdir())


def test_bytes_that_must_stay_free_stay_free(arena: Arena) -> None:
    outcome = arena.unpack(tar(member("f", b"x")), reserve=1 << 60)
    assert (outcome.code, "must stay free" in outcome.complaint) == (EXIT_REFUSED, True)


def test_an_endless_tail_is_refused(arena: Arena) -> None:
    assert "goes on and on" in arena.unpack(tar(member("f", b"x")) + bytes(4 << 20), max_bytes=1 << 20).complaint


def test_only_an_empty_directory_is_unpacked_into(arena: Arena) -> None:
    (arena.into / "old").touch()
    assert "not empty" in arena.unpack(tar(member("f", b"x"))).complaint


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small filesystem")
def test_a_full_disk_is_a_sentence(arena: Arena) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=5,mode=755", "none", arena.into], check=True)
    try:
        outcome = arena.unpack(tar(*(member(f"f{number}") for number in range(9))))
    finally:
        subprocess.run(["umount", arena.into], check=True)
    assert (outcome.code, outcome.complaint.startswith("No space left on device")) == (EXIT_FAILED, True)


# --- zip -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("zip"), reason="needs Info-ZIP")
def test_a_tree_comes_out_of_zip_as_it_went_in(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> None:
    tree = rich_tree(tmp_path_factory.mktemp("source"))
    subprocess.run(["zip", "-qry", "../tree.zip", "."], cwd=tree, check=True)
    outcome = arena.unpack((tree.parent / "tree.zip").read_bytes(), "zip")
    assert outcome.code == 0, outcome.complaint
    assert snapshot(arena.into) == snapshot(tree)


def zipped(*entries: tuple[str, bytes, int]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data, mode in entries:
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return content.getvalue()


FILE, LINK = 0o100644, 0o120777
HOSTILE_ZIPS = {
    "climbs": (zipped(("../beside", b"1", FILE)), "climbs"),
    "absolute": (zipped(("/tmp/x", b"1", FILE)), "absolute name"),
    "outward link": (zipped(("l", b"../beside", LINK)), "out of the release"),
    "through a link": (zipped(("l", b"d", LINK), ("l/f", b"1", FILE)), "behind the symbolic link"),
    "set-user-id": (zipped(("s", b"1", 0o104755)), "set-user-id"),
    "fifo": (zipped(("p", b"", 0o010644)), "neither a file"),
    "directory over a file": (zipped(("d", b"1", FILE), ("d/f", b"1", FILE)), "a file and a directory"),
    "NUL": (zipped(("aXb", b"1", FILE)).replace(b"aXb", b"a\0b"), "NUL"),
}


@pytest.mark.parametrize("what", HOSTILE_ZIPS)
def test_hostile_zips_are_refused_by_the_same_rules(arena: Arena, what: str) -> None:
    archive, sentence = HOSTILE_ZIPS[what]
    outcome = arena.unpack(archive, "zip")
    assert outcome.code == EXIT_REFUSED, outcome
    assert sentence in outcome.complaint
    arena.expect_nothing_outside()


def test_a_zip_bomb_is_limited(arena: Arena) -> None:
    assert "bytes allowed" in arena.unpack(zipped(("b", bytes(5 << 20), FILE)), "zip", max_bytes=1 << 20).complaint


@pytest.mark.parametrize(
    "damage", [lambda z: z[:-10], lambda z: z.replace(b"stored", b"sTored"), lambda z: b"PK" + bytes(99)]
)
def test_damaged_zips_are_told_from_whole_ones(arena: Arena, damage: Callable[[bytes], bytes]) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("f", "stored")
    assert arena.unpack(damage(content.getvalue()), "zip").code == EXIT_DAMAGED


# --- the program itself ----------------------------------------------------------------------------------------


def test_memory_stays_small_whatever_the_archive_holds(arena: Arena, tmp_path: Path) -> None:
    process = subprocess.Popen(
        program.unpacker("tar", max_bytes=1 << 30, max_files=100_000, reserve=0), stdin=subprocess.PIPE, cwd=arena.into
    )
    assert process.stdin
    process.stdin.write(raw(b"large", b"%011o\0" % (200 << 20)))
    for _ in range(200):
        process.stdin.write(bytes(1 << 20))
    process.stdin.flush()
    peak = Path(f"/proc/{process.pid}/status").read_text().split("VmHWM:")[1].split()[0]
    process.stdin.write(END)
    process.stdin.close()
    assert process.wait() == 0
    assert int(peak) < 20 << 10


def test_the_program_needs_nothing_but_an_interpreter(arena: Arena) -> None:
    """It is given its source, so it neither finds nor wants the package, its directory or an environment."""
    command = program.unpacker("tar", max_bytes=9, max_files=9, reserve=0)
    assert command[1:4] == ["-I", "-S", "-c"]
    done = subprocess.run(
        [sys.executable, *command[1:]], input=tar(member("f", b"x")), cwd=arena.into, env={}, check=False
    )
    assert done.returncode == 0
    assert len(command[4]) < 128 << 10, "MAX_ARG_STRLEN of Linux"


@pytest.fixture(autouse=True)
def unlock(tmp_path: Path) -> Iterator[None]:
    """Let pytest remove the directories that a test has locked."""
    yield
    for path in tmp_path.rglob("locked"):
        path.chmod(0o755)
