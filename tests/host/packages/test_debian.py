"""The Debian package in a Debian root: installed, upgraded, removed, purged, and run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bootagent.sandbox.cloud import Cloud
from bootagent.user_data import install_script
from tests.conftest import Ran
from tests.host.packages.conftest import Built, Root, bake, build, git, needs_root, with_wheels
from tests.host.stage import BUCKET, App

pytestmark = needs_root

CONFIG = """\
[apps.web]
deploy_to = "/srv/web"
source = { type = "s3", url = "s3://deploys/web/{environment}.json" }
[roles.web]
apps = ["web"]
"""
UNIT = "etc/systemd/system/multi-user.target.wants/bootagent.service"


def compiled(root: Root) -> int:
    """How many modules of the agent's library are byte-compiled."""
    return len(list(root.path("/opt/bootagent/lib").rglob("*.pyc")))


def succeeded(ran: Ran) -> Ran:
    assert ran.code == 0, ran.stdout + ran.stderr
    return ran


# --- baking ------------------------------------------------------------------------------------------------------


def test_bake_into_a_root(built: Built, root: Root, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    before = {path.name for path in root.path("/usr/sbin").iterdir()}
    # As on a root whose resolver lives in the /run of a machine that is not running.
    root.path("/etc/resolv.conf").unlink(missing_ok=True)
    root.path("/etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    ran = succeeded(bake(root, "--deb", built.deb, "--config", config))
    assert "config.toml: good" in ran.stdout
    assert ran.stderr == ""
    assert {path.name for path in root.path("/usr/sbin").iterdir()} == before
    assert not [path for path in root.path("/run").iterdir() if path.name != "lock"]
    assert f"{root.place}/" not in Path("/proc/self/mounts").read_text()
    assert root.path("/etc/bootagent/config.toml").read_text() == CONFIG
    assert root.path(UNIT).is_symlink()
    assert not root.is_there("/etc/service/bootagent")  # systemd runs it
    assert compiled(root) > 300

    again = succeeded(bake(root, "--deb", built.deb))
    assert "good" in again.stdout
    config.write_text(f"{CONFIG}[aps.web]\n")
    wrong = bake(root, "--deb", built.deb, "--config", config)
    assert wrong.code == 1
    assert "did you mean 'apps'?" in wrong.stderr
    assert root.path("/etc/bootagent/config.toml").read_text() == CONFIG


def test_bake_where_it_cannot(built: Built, tmp_path: Path) -> None:
    nowhere = bake(Root(tmp_path), "--deb", built.deb)
    assert (nowhere.code, nowhere.stdout) == (1, "")
    assert "is no Debian or Ubuntu root" in nowhere.stderr
    assert "no such file: nothing.deb" in bake(Root(tmp_path), "--deb", "nothing.deb").stderr
    itself = bake(Root(Path("/")), "--deb", built.deb)
    assert (itself.code, itself.stdout) == (1, "")


# --- a package's life --------------------------------------------------------------------------------------------


def test_install_upgrade_remove_purge(built: Built, root: Root, tmp_path: Path) -> None:
    shutil.copy(built.deb, root.path("/tmp/old.deb"))
    succeeded(root.run("dpkg", "--install", "/tmp/old.deb"))
    assert succeeded(root.run("bootagent", "--version")).stdout.startswith("bootagent ")
    assert root.run("bootagent", "check").stderr.count("is missing") == 2
    assert compiled(root) > 300
    modules = compiled(root)
    succeeded(root.run("find", "/opt/bootagent/lib", "-name", "*.pyc", "-delete"))
    succeeded(root.run("/usr/share/python3/runtime.d/bootagent.rtupdate", "rtupdate", "python3.10", "python3.11"))
    assert compiled(root) == modules

    # What people and the agent have written since.
    root.path("/etc/bootagent/config.toml").write_text(CONFIG)
    root.path("/etc/bootagent/conf.d/more.toml").write_text("[tags]\nwithin = '1m'\n")
    for name in ("/var/lib/bootagent/state.json", "/etc/sv/web.server/bootagent.json"):
        root.path(name).parent.mkdir(parents=True)
        root.path(name).write_text("{}")
    for name in ("agent", "web.server", "gone.server"):
        root.path(f"/var/log/bootagent/{name}").mkdir(parents=True)
    root.path("/srv/web/releases/20261120120000").mkdir(parents=True)
    disabled = root.path(UNIT)
    succeeded(root.run("systemctl", "disable", "bootagent.service"))

    put_newer(built, root, tmp_path)
    succeeded(root.run("dpkg", "--install", "/tmp/newer.deb"))
    assert "bootagent 9." in succeeded(root.run("bootagent", "--version")).stdout
    assert root.path("/etc/bootagent/config.toml").read_text() == CONFIG
    assert not list(root.path("/opt/bootagent/lib/bootagent").rglob("health*.py*"))
    assert not disabled.is_symlink()  # what the administrator chose stays so

    succeeded(root.run("dpkg", "--remove", "bootagent"))
    assert not root.is_there("/opt/bootagent")
    assert not root.is_there("/usr/bin/bootagent")
    assert root.path("/var/lib/bootagent/state.json").exists()
    assert root.path("/etc/bootagent/config.toml").read_text() == CONFIG

    root.path("/etc/bootagent/release.pub").write_text("somebody's own\n")
    said = succeeded(root.run("dpkg", "--purge", "bootagent")).stderr
    assert "/etc/sv/web.server is left" in said
    assert "/etc/bootagent is left" in said
    left = ["/etc/sv/web.server", "/srv/web/releases/20261120120000", "/etc/bootagent/release.pub"]
    assert [name for name in left if not root.is_there(name)] == []
    gone = ["/var/lib/bootagent", "/etc/bootagent/config.toml", "/etc/bootagent/conf.d", "/etc/sv/bootagent"]
    assert [name for name in gone if root.is_there(name)] == []
    # A service that runs on must be able to write its log.
    assert [path.name for path in root.path("/var/log/bootagent").iterdir()] == ["web.server"]
    everything = {str(path.relative_to(root.place)) for path in root.place.rglob("*bootagent*")}
    assert everything == {"etc/bootagent", "etc/sv/web.server/bootagent.json", "var/log/bootagent"}


def put_newer(built: Built, root: Root, tmp_path: Path) -> None:
    """Put a newer version of the package into the root, as /tmp/newer.deb."""
    git(tmp_path, "clone", "--quiet", str(built.checkout), "newer")
    checkout = tmp_path / "newer"
    with_wheels(checkout)
    version = checkout / "bootagent/__init__.py"
    version.write_text(version.read_text().replace('__version__ = "', '__version__ = "9.'))
    git(checkout, "rm", "--quiet", "bootagent/services/health.py")
    git(checkout, "commit", "--quiet", "--all", "--message=newer")
    made = Path(build(checkout, tmp_path / "out", "deb").strip())
    shutil.copy(made, root.path("/tmp/newer.deb"))


def test_runit_as_init_while_it_runs(built: Built, root: Root, tmp_path: Path) -> None:
    """Enabled and not started, then restarted by an upgrade; and when it goes, so does its service."""
    root.path("/sbin/init").unlink()
    root.path("/sbin/init").symlink_to("/lib/runit/runit-init")
    shutil.copy(built.deb, root.path("/tmp/old.deb"))
    put_newer(built, root, tmp_path)
    root.path("/etc/bootagent").mkdir()
    script = """\
set -e
touch /run/runit.stopit
mkdir -p /run/runit/supervise
runsvdir -P /etc/service >/dev/null 2>&1 &
dpkg --install /tmp/old.deb >/dev/null
sv status /etc/sv/bootagent
sv up /etc/sv/bootagent
until grep . /etc/sv/bootagent/supervise/pid >/tmp/first; do sleep 0.1; done
dpkg --install /tmp/newer.deb >/dev/null
until grep . /etc/sv/bootagent/supervise/pid >/tmp/second && ! cmp -s /tmp/first /tmp/second; do sleep 0.1; done
sv status /etc/sv/bootagent
dpkg --remove bootagent >/dev/null
! sv status /etc/sv/bootagent
ls -A /etc/service
dpkg --purge bootagent >/dev/null
[ ! -e /etc/sv/bootagent ] && echo gone
"""
    ran = root.run("sh", "-c", script)
    assert ran.code == 0, ran.stdout + ran.stderr
    fresh, upgraded, *left, gone = ran.stdout.splitlines()
    assert fresh.startswith("down: /etc/sv/bootagent: ")
    assert "want up" not in fresh
    assert upgraded.startswith("run: /etc/sv/bootagent: ")
    assert gone == "gone"
    assert "bootagent" not in left


# --- running -----------------------------------------------------------------------------------------------------


def serving(cloud: Cloud, tmp_path: Path) -> App:
    """An app published to a bucket of its own."""
    cloud.create_bucket(BUCKET)
    app = App(cloud, tmp_path, "web")
    app.publish("one")
    return app


def configuration(app: App) -> str:
    return f"{app.config()}\n[roles.web]\napps = ['web']\n"


def booted(root: Root, cloud: Cloud, *commands: str) -> Ran:
    """Run shell commands in a root whose runsvdir runs; the services' answer comes last."""
    script = "\n".join(["set -e", "runsvdir -P /etc/service &", *commands, 'python3 -c "$FETCH"'])
    return root.run("sh", "-c", script, env={**cloud.environment(), "FETCH": FETCH})


FETCH = """\
import json, urllib.request
port = json.load(open("/tmp/port"))
print("it says", urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read().decode())
"""


def test_a_whole_run_of_the_package(built: Built, root: Root, cloud: Cloud, tmp_path: Path) -> None:
    app = serving(cloud, tmp_path)
    config = tmp_path / "config.toml"
    config.write_text(configuration(app))
    root.path("/tmp/port").write_text(str(app.port))
    succeeded(bake(root, "--deb", built.deb, "--config", config))
    ran = succeeded(booted(root, cloud, "bootagent run --once", "bootagent status"))
    assert "it says one" in ran.stdout


def test_a_whole_run_of_the_single_file(built: Built, root: Root, cloud: Cloud, tmp_path: Path) -> None:
    app = serving(cloud, tmp_path)
    root.path("/tmp/port").write_text(str(app.port))
    shutil.copy(built.pyz, root.path("/tmp/bootagent.pyz"))
    succeeded(root.run("/tmp/bootagent.pyz", "install"))
    assert root.path(UNIT).is_symlink()
    assert root.path("/etc/systemd/system/bootagent.service").is_file()
    root.path("/etc/bootagent/conf.d/web.toml").write_text(configuration(app))
    succeeded(root.run("/tmp/bootagent.pyz", "install"))  # again
    ran = succeeded(booted(root, cloud, "bootagent run --once", "bootagent status"))
    assert "it says one" in ran.stdout
    (tree,) = root.path("/var/cache/bootagent").iterdir()
    assert (tree / "lib/bootagent/cli/__init__.py").is_file()


@pytest.mark.parametrize("kind", ["deb", "pyz"])
def test_user_data_that_installs_it(kind: str, built: Built, root: Root, cloud: Cloud, tmp_path: Path) -> None:
    app = serving(cloud, tmp_path)
    root.path("/tmp/port").write_text(str(app.port))
    package = built.deb if kind == "deb" else built.pyz
    cloud.put(BUCKET, f"tools/bootagent.{kind}", package.read_bytes())
    digest = subprocess.run(["sha256sum", str(package)], check=True, capture_output=True, text=True).stdout[:64]
    cloud.remove_tag("Role")
    script = install_script(
        {"Role": "web"}, f"s3://{BUCKET}/tools/bootagent.{kind}", sha256=digest, configuration=configuration(app)
    )
    root.path("/tmp/user-data").write_text(script)
    # The lists are fresh enough here; a test is not to depend on the archive.
    root.path("/etc/apt/sources.list").write_text("")
    ran = succeeded(booted(root, cloud, "sh /tmp/user-data"))
    assert "it says one" in ran.stdout
    assert root.is_there("/opt/bootagent") == (kind == "deb")


def test_user_data_refuses_another_package(built: Built, root: Root, cloud: Cloud) -> None:
    cloud.create_bucket(BUCKET)
    cloud.put(BUCKET, "bootagent.deb", b"somebody else's")
    script = install_script({"Role": "web"}, f"s3://{BUCKET}/bootagent.deb", sha256="0" * 64)
    ran = root.run("sh", "-c", script, env=cloud.environment())
    assert ran.code == 1
    assert "is not what was asked for" in ran.stderr
    assert not root.is_there("/usr/bin/bootagent")
