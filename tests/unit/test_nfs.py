"""What is asked of mount(8) for NFS, and which mounts are the wanted ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bootagent import nfs
from bootagent.machine import Machine
from bootagent.mounts import Mount

STRICT = ("ro", "nosuid", "nodev")
PLAIN = Mount(
    id=32,
    parent=21,
    device="0:50",
    root="/",
    point="/apps/web",
    options=("ro", "relatime"),
    filesystem="nfs4",
    source="10.0.0.5:/apps",
    super_options=("ro", "vers=4.2", "addr=10.0.0.5"),
)
#: As amazon-efs-utils mounts it.
EFS = replace(PLAIN, source="127.0.0.1:/", super_options=("ro", "vers=4.1", "port=20149", "addr=127.0.0.1"))
ONE, TWO = "fs-1111aaaa", "fs-2222bbbb"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), nfs.DEFAULTS),
        (("rw",), ("nosuid", "nodev", "hard", "noresvport", "timeo=600", "retrans=2", "nfsvers=4.2", "rw")),
        (("vers=4.1", "soft"), (*STRICT, "noresvport", "timeo=600", "retrans=2", "vers=4.1", "soft")),
    ],
)
def test_what_is_asked_for_wins_over_the_defaults(more: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert nfs.options(more) == expected


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), ("tls", *STRICT)),
        (("rw",), ("tls", "nosuid", "nodev", "rw")),
        (("suid", "noexec"), ("tls", "ro", "nodev", "suid", "noexec")),
        (("tls", "iam", "accesspoint=fsap-1"), ("tls", *STRICT, "iam", "accesspoint=fsap-1")),
        (("vers=4.2", "soft", "timeo=50", "port=2050", "nconnect=4", "notls"), ("tls", *STRICT)),
    ],
)
def test_the_efs_helper_mounts_as_strictly_and_speaks_nfs_its_own_way(
    more: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert nfs.efs_options(more) == expected


@pytest.mark.parametrize(
    ("server", "export", "options", "shown"),
    [
        ("10.0.0.5", "/apps", (), True),
        ("10.0.0.5", "/apps/", (), True),
        ("10.0.0.5", "/apps", ("rw",), False),
        ("10.0.0.5", "/app", (), False),
        ("10.0.0.6", "/apps", (), False),
    ],
)
def test_a_mount_is_known_by_its_source(
    tmp_path: Path, server: str, export: str, options: tuple[str, ...], shown: bool
) -> None:
    assert nfs.is_shown_by(Machine(tmp_path), PLAIN, server, export, options) is shown
    assert not nfs.is_shown_by(Machine(tmp_path), replace(PLAIN, filesystem="xfs"), server, export, options)


@pytest.mark.parametrize(
    ("states", "shown"),
    [
        ((f"{ONE}.apps.web.20149",), ONE),
        ((f"{TWO}.apps.web.20149",), TWO),
        ((f"{ONE}.apps.web.20150", f"{TWO}.apps.web.20149"), TWO),  # the first is left over
        ((f"{ONE}.apps.20149", f"{ONE}.apps.web.two.20149", f"~{ONE}.apps.web.20149"), None),
        ((), None),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".efs.eu-west-1.amazonaws.com"])
def test_a_mount_through_the_efs_helper_is_known_by_what_that_has_written_down(
    tmp_path: Path, states: tuple[str, ...], shown: str | None, suffix: str
) -> None:
    (tmp_path / "var/run/efs").mkdir(parents=True)
    for state in states:
        (tmp_path / "var/run/efs" / state).touch()
    for file_system in (ONE, TWO):
        found = nfs.is_shown_by(Machine(tmp_path), EFS, f"{file_system}{suffix}", "/", ())
        assert found is (file_system == shown)


def test_the_port_of_an_efs_mount_need_not_be_shown(tmp_path: Path) -> None:
    mount = replace(EFS, super_options=("ro",))
    assert not nfs.is_shown_by(Machine(tmp_path), mount, ONE, "/", ())
    (tmp_path / "var/run/efs").mkdir(parents=True)
    (tmp_path / f"var/run/efs/{ONE}.apps.web.20007").touch()
    assert nfs.is_shown_by(Machine(tmp_path), mount, ONE, "/", ())
    assert not nfs.is_shown_by(Machine(tmp_path), mount, "127.0.0.2", "/", ())
