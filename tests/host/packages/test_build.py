"""What ``packaging/build`` makes: the same bytes each time, pure Python, only what is used, and clean to lintian."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

from tests.host.packages.conftest import Built, build, git, needs, with_wheels

LIBRARY = "./opt/bootagent/lib/"


def members(deb: Path) -> dict[str, tarfile.TarInfo]:
    """What a package installs."""
    needs("dpkg-deb")
    archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        return {member.name: member for member in found}


def test_the_same_bytes_from_the_same_commit(built: Built, tmp_path: Path) -> None:
    elsewhere = tmp_path / "a directory elsewhere"
    git(tmp_path, "clone", "--quiet", str(built.checkout), str(elsewhere))
    with_wheels(elsewhere)
    (elsewhere / "README.md").touch()
    env = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": str(tmp_path), "COLUMNS": "200", "PYTHONHASHSEED": "7"}
    build(elsewhere, tmp_path / "out", env=env, umask=0o077)
    assert (tmp_path / "out" / built.deb.name).read_bytes() == built.deb.read_bytes()
    assert (tmp_path / "out" / built.pyz.name).read_bytes() == built.pyz.read_bytes()


def test_a_commit_is_packed_and_not_what_lies_about(built: Built, tmp_path: Path) -> None:
    elsewhere = tmp_path / "dirty"
    git(tmp_path, "clone", "--quiet", str(built.checkout), str(elsewhere))
    with_wheels(elsewhere)
    (elsewhere / "bootagent/stray.py").write_text("x = 1\n")
    with (elsewhere / "bootagent/errors.py").open("a") as file:
        file.write("# changed\n")
    build(elsewhere, tmp_path / "out")
    assert (tmp_path / "out" / built.deb.name).read_bytes() == built.deb.read_bytes()
    (newer,) = build(elsewhere, tmp_path / "out", "--work-tree", "deb").split()
    assert f"{LIBRARY}bootagent/stray.py" in members(Path(newer))
    assert Path(newer).name != built.deb.name


def test_nothing_is_native_and_little_is_botocore(built: Built) -> None:
    names = members(built.deb)
    library = [name for name in names if name.startswith(LIBRARY) and names[name].isreg()]
    suffixes = {Path(name).suffix for name in library if "/sandbox/sample/" not in name}
    assert suffixes <= {".py", ".json", ".gz", ".pem"}
    services = {name.split("/")[6] for name in library if re.match(rf"{LIBRARY}botocore/data/[^/]+/", name)}
    credentials = {"signin", "sso", "sso-oidc", "sts"}
    assert services - credentials == {"autoscaling", "ec2", "elb", "elbv2", "s3", "secretsmanager", "ssm"}
    assert not [name for name in library if "/tests/" in name or "examples" in name]
    assert sum(names[name].size for name in library) < 9_000_000


def test_files_are_roots_and_nobody_else_can_write_them(built: Built) -> None:
    for name, member in members(built.deb).items():
        assert (member.uid, member.gid) == (0, 0), name
        assert member.issym() or member.mode in (0o644, 0o755), name


def test_both_packages_hold_the_same_tree(built: Built) -> None:
    with zipfile.ZipFile(built.pyz) as archive:
        single = {name.removeprefix("tree/") for name in archive.namelist() if name.startswith("tree/lib/")}
    debian = {name.removeprefix("./opt/bootagent/") for name, member in members(built.deb).items() if member.isreg()}
    assert {name for name in debian if name.startswith("lib/")} - single == {
        name for name in debian if name.startswith("lib/systemd/")
    }


def test_lintian_finds_nothing(built: Built) -> None:
    needs("lintian")
    done = subprocess.run(
        ["lintian", "--info", "--fail-on=error,warning,info", "--allow-root", str(built.deb)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
