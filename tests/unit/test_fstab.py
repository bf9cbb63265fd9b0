"""The block in /etc/fstab, as text and as a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootagent import fstab
from bootagent.errors import BootagentError
from bootagent.fstab import Entry
from bootagent.machine import Machine

CP = fstab.volume("/dev/disk/by-id/nvme-vol1", "/cp", "xfs", ("nouuid", "noatime"))
WEB = fstab.bind("/cp", "/srv/web")
ROOT = "UUID=0f /  ext4\terrors=remount-ro 0 1\n"
BLOCK = """\
# BEGIN bootagent
/dev/disk/by-id/nvme-vol1 /cp xfs nouuid,noatime,nofail,x-systemd.device-timeout=10s 0 0
/cp /srv/web none bind,nofail,x-systemd.requires=/cp 0 0
# END bootagent
"""


def test_the_block_is_put_behind_what_is_there() -> None:
    assert fstab.merged(ROOT, [WEB, CP]) == ROOT + BLOCK


def test_a_second_time_nothing_changes() -> None:
    assert fstab.merged(ROOT + BLOCK, [CP, WEB]) == ROOT + BLOCK
    assert fstab.merged(ROOT + BLOCK, [CP]) == ROOT + BLOCK


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("# one\r\nUUID=0f / ext4 defaults 0 1\r\n", "\r\n# and so on\r\n"),
        (" \t# odd\n\n\n", "tmpfs /tmp tmpfs defaults 0 0"),
        ("caf\udce9 /x ext4 ro 0 0\n", ""),
    ],
)
def test_all_outside_the_block_stays(before: str, after: str) -> None:
    changed = fstab.merged(before + BLOCK + after, [fstab.volume("/dev/disk/by-id/nvme-vol2", "/cp", "xfs", ())])
    assert changed == before + BLOCK.replace("vol1", "vol2").replace("nouuid,noatime,", "") + after
    assert fstab.merged(before + BLOCK + after, [], ["/cp", "/srv/web"]) == before + after


def test_a_missing_newline_at_the_end_is_added_and_nothing_else() -> None:
    assert fstab.merged(ROOT.rstrip("\n"), [CP, WEB]) == ROOT + BLOCK
    assert fstab.merged(ROOT.rstrip("\n"), [], ["/cp"]) == ROOT.rstrip("\n")
    assert fstab.merged(BLOCK.rstrip("\n"), [CP, WEB]) == BLOCK


def test_a_block_with_the_other_line_ends_is_still_ours() -> None:
    assert fstab.merged(BLOCK.replace("\n", "\r\n"), [CP]) == BLOCK


def test_one_mountpoint_is_removed_alone() -> None:
    left = fstab.merged(ROOT + BLOCK, [], ["/srv/web/"])
    assert fstab.entries(left) == (CP,)
    assert left.startswith(ROOT)


@pytest.mark.parametrize(
    "text",
    [
        "# BEGIN bootagent\n",
        "# END bootagent\n",
        "# END bootagent\n# BEGIN bootagent\n",
        BLOCK + BLOCK,
        "# BEGIN bootagent\n" + BLOCK,
        BLOCK + "# END bootagent\n",
    ],
)
def test_damaged_markers_are_refused(text: str) -> None:
    with pytest.raises(BootagentError, match="see line 1"):
        fstab.merged(text, [CP])


@pytest.mark.parametrize("line", ["# my note", "/dev/sdb /b", "a b c d e f g"])
def test_what_is_no_mount_of_ours_in_the_block_is_refused(line: str) -> None:
    with pytest.raises(BootagentError, match=r"line 2: .* is no mount"):
        fstab.merged(f"# BEGIN bootagent\n{line}\n# END bootagent\n", [CP])


@pytest.mark.parametrize("other", ["LABEL=x /cp ext4 defaults 0 2", "\tnas:/x  /cp/ nfs ro\r", "/a /c\\160 none bind"])
def test_a_line_of_someone_else_for_the_mountpoint_is_refused(other: str) -> None:
    with pytest.raises(BootagentError, match=r"line 2 mounts something else at /cp"):
        fstab.merged(f"# LABEL=y /cp ext4 defaults 0 2\n{other}\n", [CP])
    assert fstab.merged(f"{other}\n", [fstab.volume("/dev/x", "/cpu", "xfs", ())]).startswith(other)


def test_each_mount_comes_after_what_it_needs() -> None:
    entries = [
        fstab.bind("/z", "/a"),
        fstab.volume("/dev/1", "/z", "xfs", ()),
        fstab.volume("/dev/2", "/a/below", "xfs", ()),
        fstab.volume("/dev/3", "/m", "ext4", ()),
        fstab.bind("/a/below/it", "/0"),
    ]
    points = [entry.point for entry in fstab.entries(fstab.merged("", entries))]
    assert sorted(points) == ["/0", "/a", "/a/below", "/m", "/z"]
    assert points.index("/z") < points.index("/a") < points.index("/a/below") < points.index("/0")


def test_mounts_that_need_each_other_come_to_an_end() -> None:
    circle = [fstab.bind("/a", "/b"), fstab.bind("/b", "/a")]
    assert len(fstab.entries(fstab.merged("", circle))) == 2


NAME = st.text("ab \t\n\\#é.", min_size=1, max_size=5)


@given(st.lists(st.tuples(NAME, NAME), max_size=4))
def test_odd_names_come_back(names: list[tuple[str, str]]) -> None:
    wanted = {f"/{point}": Entry(f"/dev/{source}", f"/{point}", "xfs", ("ro", "x=1")) for source, point in names}
    text = fstab.merged(ROOT, wanted.values())
    assert {entry.point: entry for entry in fstab.entries(text)} == wanted
    assert fstab.merged(text, wanted.values()) == text


# --- the file ------------------------------------------------------------------------------------------------


def test_the_file_is_made_and_then_not_written_again(machine_root: Path) -> None:
    machine = Machine(machine_root)
    path = machine_root / "etc/fstab"
    assert not fstab.is_so(machine, [CP])
    assert fstab.update(machine, [CP, WEB])
    assert path.read_text() == BLOCK
    assert fstab.current(machine) == (CP, WEB)
    written = path.stat()
    assert fstab.is_so(machine, [CP])
    assert not fstab.update(machine, [CP])
    assert path.stat().st_ino == written.st_ino
    assert path.stat().st_mtime_ns == written.st_mtime_ns


def test_the_files_mode_and_bytes_stay(machine_root: Path) -> None:
    path = machine_root / "etc/fstab"
    path.parent.mkdir()
    path.write_bytes(b"# caf\xe9\r\n")
    path.chmod(0o600)
    fstab.update(Machine(machine_root), [CP, WEB])
    assert path.read_bytes() == b"# caf\xe9\r\n" + BLOCK.encode()
    assert path.stat().st_mode & 0o777 == 0o600
    fstab.update(Machine(machine_root), [], ["/cp", "/srv/web"])
    assert path.read_bytes() == b"# caf\xe9\r\n"


def test_a_link_is_refused(machine_root: Path) -> None:
    (machine_root / "etc").mkdir()
    (machine_root / "etc/fstab").symlink_to("other")
    with pytest.raises(BootagentError, match="symbolic link"):
        fstab.update(Machine(machine_root), [CP])


def test_without_systemd_nobody_is_told(machine_root: Path) -> None:
    fstab.tell_systemd(Machine(machine_root))  # would start systemctl, which a unit test cannot
