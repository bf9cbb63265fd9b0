"""The mount table, read from recorded text."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootagent import mounts
from bootagent.disks import filesystems
from bootagent.errors import BootagentError, MachineError
from bootagent.machine import Machine

# Of a Debian 12 instance; the volume's line has no optional field, the bind's has two.
TABLE = r"""21 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw,discard,errors=remount-ro
22 21 0:20 / /proc rw,nosuid,nodev,noexec,relatime shared:5 - proc proc rw
30 21 259:3 / /cp rw,noatime - xfs /dev/nvme1n1 rw,nouuid,attr2,inode64,logbufs=8,logbsize=32k,noquota
31 21 259:3 /app\040one /srv/web\040one rw,noatime shared:9 master:2 - xfs /dev/nvme1n1 rw,nouuid
32 21 0:50 / /apps/worker ro,relatime shared:30 - nfs4 10.0.0.5:/apps\134x ro,vers=4.2,addr=10.0.0.5
"""


def test_every_field_is_read() -> None:
    found = mounts.parse(TABLE)
    assert [mount.point for mount in found] == ["/", "/proc", "/cp", "/srv/web one", "/apps/worker"]
    assert found[3] == mounts.Mount(
        id=31,
        parent=21,
        device="259:3",
        root="/app one",
        point="/srv/web one",
        options=("rw", "noatime"),
        filesystem="xfs",
        source="/dev/nvme1n1",
        super_options=("rw", "nouuid"),
    )
    assert found[4].source == "10.0.0.5:/apps\\x"


def test_an_unknown_line_is_told() -> None:
    with pytest.raises(MachineError, match="no mount"):
        mounts.parse("30 21 259:3 / /cp rw,noatime xfs /dev/nvme1n1 rw\n")


def test_this_machines_table_can_be_read() -> None:
    assert mounts.topmost(mounts.table(), "/") is not None


def mount(id: int, parent: int, point: str) -> mounts.Mount:
    return mounts.Mount(id, parent, f"7:{id}", "/", point, ("rw",), "xfs", "/dev/x", ("rw",))


@pytest.mark.parametrize(
    ("others", "seen"),
    [
        ([], None),
        ([mount(2, 1, "/cp")], 2),
        ([mount(2, 1, "/cp"), mount(3, 2, "/cp")], 3),
        ([mount(3, 2, "/cp"), mount(2, 1, "/cp"), mount(4, 3, "/cp/deeper")], 3),
        ([mount(2, 1, "/cpu"), mount(3, 1, "/c")], None),
        ([mount(2, 1, "/"), mount(3, 2, "/cp")], 3),
        ([mount(3, 1, "/cp"), mount(2, 1, "/")], None),  # what the second root hides
    ],
)
def test_the_topmost_is_found(others: list[mounts.Mount], seen: int | None) -> None:
    found = mounts.topmost([mount(1, 0, "/"), *others], "/cp")
    assert (found.id if found else None) == seen


def test_what_is_below_a_hidden_directory_is_not_seen() -> None:
    table = [mount(1, 0, "/"), mount(2, 1, "/srv/web"), mount(3, 1, "/srv")]
    assert mounts.topmost(table, "/srv/web") is None
    found = mounts.topmost([*table, mount(4, 3, "/srv/web")], "/srv/web")
    assert found is not None
    assert found.id == 4


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            mounts.mount_argv("/dev/nvme1n1", "/cp", "xfs", ("nouuid", "noatime")),
            "mount -t xfs -o nouuid,noatime -- /dev/nvme1n1 /cp",
        ),
        (mounts.mount_argv("10.0.0.5:/apps", "/a", "nfs4", ()), "mount -t nfs4 -- 10.0.0.5:/apps /a"),
        (mounts.bind_argv("/cp", "/srv/web"), "mount --bind -- /cp /srv/web"),
        (mounts.unmount_argv("/cp", lazy=False), "umount --no-canonicalize -- /cp"),
        (mounts.unmount_argv("/cp", lazy=True), "umount --no-canonicalize --lazy -- /cp"),
    ],
)
def test_the_commands(argv: list[str], said: str) -> None:
    assert " ".join(argv) == said


# --- mountpoints ---------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_only_the_mountpoint_itself_is_closed(machine_root: Path) -> None:
    mounts.make_mountpoint(Machine(machine_root), "/srv/apps/web")
    assert [mode(machine_root / path) for path in ("srv", "srv/apps", "srv/apps/web")] == [0o755, 0o755, 0]


def test_an_empty_directory_is_closed_and_a_full_one_left_alone(machine_root: Path) -> None:
    machine = Machine(machine_root)
    (machine_root / "empty").mkdir()
    (machine_root / "full/inside").mkdir(parents=True)
    mounts.make_mountpoint(machine, "/empty", empty=True)
    mounts.make_mountpoint(machine, "/full")
    assert mode(machine_root / "empty") == 0
    assert mode(machine_root / "full") == 0o755
    with pytest.raises(BootagentError, match="such as inside, that the mount would hide"):
        mounts.make_mountpoint(machine, "/full", empty=True)


def test_a_link_or_a_file_is_refused(machine_root: Path) -> None:
    machine = Machine(machine_root)
    (machine_root / "real").mkdir()
    (machine_root / "link").symlink_to("real")
    (machine_root / "file").touch()
    for path, why in (("/link", "symbolic link"), ("/link/below", "symbolic link"), ("/file", "not a directory")):
        with pytest.raises(BootagentError, match=why):
            mounts.make_mountpoint(machine, path)
    assert list((machine_root / "real").iterdir()) == []


# --- disks, as far as /sys goes --------------------------------------------------------------------------------


@pytest.mark.parametrize("size_mib", [1, 2, 3, 300, 10_240, 16_777_216])
def test_a_disk_is_looked_at_in_places_that_are_on_it(size_mib: int) -> None:
    size = size_mib * filesystems.MIB
    found = filesystems.places(size)
    assert found[0] == 0
    assert found[-1] == size - filesystems.MIB
    assert all(0 <= offset <= size - filesystems.MIB for offset in found)
    assert len(found) <= filesystems.SAMPLES + 3
    assert size_mib < 32 or any(offset <= size // 2 < offset + filesystems.MIB for offset in found)
