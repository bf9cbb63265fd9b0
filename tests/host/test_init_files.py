"""The units of systemd/ under the real systemd-analyze, and the service directory of runit/ under a real runsvdir."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bootagent.sandbox.cloud import Cloud
from bootagent.services import runit
from tests.host.stage import App, Stage
from tests.waiting import until

CHECKOUT = Path(__file__).parents[2]
UNITS = sorted(path.name for path in (CHECKOUT / "systemd").glob("*.service"))

#: What gives a unit a mount namespace of its own: systemd.exec(5), and exec_needs_mount_namespace() of systemd 257.
#: Mounts made in one are nobody else's.
NAMESPACING = set(
    re.findall(
        r"\w+",
        """
        BindLogSockets BindPaths BindReadOnlyPaths DynamicUser ExecPaths ExtensionDirectories ExtensionImages
        InaccessiblePaths IPCNamespacePath JoinsNamespaceOf LogNamespace MountAPIVFS MountFlags MountImages
        NetworkNamespacePath NoExecPaths PrivateBPF PrivateDevices PrivateIPC PrivateMounts PrivateNetwork PrivatePIDs
        PrivateTmp ProcSubset ProtectControlGroups ProtectHome ProtectKernelLogs ProtectKernelModules
        ProtectKernelTunables ProtectProc ProtectSystem ReadOnlyPaths ReadWritePaths RootDirectory RootImage
        TemporaryFileSystem
        """,
    )
)


def settings(unit: str) -> list[tuple[str, str]]:
    """The settings of a unit, in order."""
    lines = (CHECKOUT / "systemd" / unit).read_text().splitlines()
    return [(key, value) for key, equals, value in (line.partition("=") for line in lines) if equals and key[:1] != "#"]


# --- systemd -----------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The root of an image with this machine's units and ours, and what ours start."""
    system = tmp_path / "usr/lib/systemd/system"
    shutil.copytree("/usr/lib/systemd/system", system, symlinks=True)
    for unit in UNITS:
        shutil.copy(CHECKOUT / "systemd" / unit, system)
    for name in ("bin", "lib", "sbin"):
        (tmp_path / name).symlink_to(f"usr/{name}")
    runsvdir = "[Service]\nExecStart=/bin/sh\n"  # where runit-run is not installed
    (system / "runit.service").write_text(runsvdir)
    for program in ("usr/bin/bootagent", "usr/bin/sh"):
        (tmp_path / program).parent.mkdir(exist_ok=True)
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    return tmp_path


def verify(image: Path) -> str:
    """What ``systemd-analyze verify`` has to say."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={image}", *UNITS],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = (done.stdout + done.stderr).splitlines()
    return "\n".join(line for line in complaints if "bootagent" in line) + ("" if done.returncode == 0 else "\nfailed")


def test_systemd_finds_nothing_to_complain_of(image: Path) -> None:
    assert verify(image) == ""


def test_systemd_would_complain(image: Path) -> None:
    unit = image / "usr/lib/systemd/system/bootagent.service"
    whole = unit.read_text()
    for wrong in (
        whole.replace("RestartSec", "RestartSecs"),
        whole.replace("After=network-online.target", "After=x.y"),
    ):
        unit.write_text(wrong)
        assert "bootagent.service" in verify(image)


@pytest.mark.parametrize("unit", ["bootagent.service", "bootagent-apps.service"])
def test_what_is_mounted_is_mounted_for_everybody(unit: str) -> None:
    assert not {key for key, _ in settings(unit)} & NAMESPACING


@pytest.mark.parametrize("unit", ["bootagent.service", "bootagent-apps.service"])
def test_what_runs_as_root_is_exposed_no_further_than_it_must_be(unit: str) -> None:
    done = subprocess.run(
        # In tenths. It was 74 with systemd 252; an unhardened service of root has 96.
        ["systemd-analyze", "security", "--offline=true", "--threshold=76", unit],
        cwd=CHECKOUT / "systemd",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


def test_one_thing_is_enabled_and_the_boot_waits_for_nothing_of_it() -> None:
    installed = [unit for unit in UNITS if "[Install]" in (CHECKOUT / "systemd" / unit).read_text()]
    assert installed == ["bootagent.service"]
    assert ("Type", "notify") in settings("bootagent.service")
    assert "Before" not in dict(settings("bootagent.service"))
    wanted = dict(settings("bootagent.service"))["Wants"].split()
    assert "bootagent-apps.service" in wanted and "bootagent-configured.service" not in wanted
    # Stopped by hand, it is there again at once: what is started later is stopped in order, too.
    assert dict(settings("bootagent.service"))["Upholds"] == "bootagent-apps.service"


def test_services_are_stopped_by_a_unit_of_their_own_before_runsvdir_and_after_the_daemon() -> None:
    shutdown = dict(settings("bootagent-apps.service"))
    assert "RefuseManualStop" not in shutdown, "systemctl stop bootagent-apps stops the apps"
    assert {"runit.service", "network.target", "remote-fs.target", "local-fs.target"} <= set(shutdown["After"].split())
    assert shutdown["Before"] == "bootagent.service"
    assert shutdown["ExecStop"].startswith("/usr/bin/bootagent stop")
    for key in ("PartOf", "BindsTo", "Requires", "StopPropagatedFrom"):  # else a daemon that ends would end them all
        assert key not in shutdown and key not in dict(settings("bootagent.service"))


# --- runit -------------------------------------------------------------------------------------------------------


@pytest.fixture
def service(stage: Stage, cloud: Cloud) -> Path:
    """bootagent's own service directory, for the test's machine, not yet given to runsvdir."""
    root = stage.root
    places = {
        "/usr/bin/bootagent": str(root / "bootagent"),
        "/etc/default/bootagent": str(root / "settings"),
        "/var/log/bootagent": str(root / "var/log/bootagent"),
    }
    made = root / "etc/sv/bootagent"
    shutil.copytree(CHECKOUT / "runit/bootagent", made)
    for script in (made / "run", made / "check", made / "log/run"):
        text = script.read_text()
        for place, instead in places.items():
            text = text.replace(place, instead)
        script.write_text(text)
    (root / "bootagent").write_text(
        "#!/bin/sh\n"
        f"env >{root}/environment.$1\n"
        f'command=$1; shift; exec {shlex.quote(sys.executable)} -m bootagent "$command" --root {root} "$@"\n'
    )
    (root / "bootagent").chmod(0o755)
    settings = {**cloud.process_environment(), "SOME": "two  words $(id) `id` \\n", "QUOTED": '"a b"', "EMPTY": ""}
    lines = ["# a comment", "", "; another", "not a setting", "9BAD=x", *(f"{k}={v}" for k, v in settings.items())]
    (root / "settings").write_text("\n".join(lines) + "\nLAST='no end of line'")
    return made


def give(service: Path) -> None:
    """Hand a service directory to runsvdir, and wait for its start: of what is down, sv check(8) thinks well."""
    (service.parents[1] / "service" / service.name).symlink_to(service)
    until(lambda: (found := runit.status(service)) and found.state != "down")


def checked(service: Path) -> int:
    return subprocess.run(["sv", "-w", "1", "check", service], capture_output=True, check=False).returncode


def environment(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)


def test_under_runit_a_machine_configures_itself_and_says_so(
    stage: Stage, web: App, service: Path, request: pytest.FixtureRequest
) -> None:
    revision = web.publish("one")
    assert revision
    give(service)
    until(lambda: checked(service) == 0)
    assert web.answer() == "one"
    found = runit.status(service)
    assert found is not None and found.state == "run"

    given = environment(stage.root / "environment.run")
    assert given["SOME"] == "two  words $(id) `id` \\n"
    assert (given["QUOTED"], given["EMPTY"], given["LAST"]) == ("a b", "", "no end of line")
    assert "9BAD" not in given

    log = stage.root / "var/log/bootagent/agent"
    until(lambda: "begun" in (log / "current").read_text())
    assert "not NAME=VALUE, ignored: not a setting" in (log / "current").read_text()
    assert (log / "config").read_text().split() == ["s1000000", "n10"]
    if any(entry.pw_name == "_runit-log" for entry in pwd.getpwall()) and os.geteuid() == 0:
        assert {path.owner() for path in (log, log / "current", log / "config")} == {"_runit-log"}

    # Its end is not the services' end, and it comes back.
    subprocess.run(["sv", "-w", "30", "restart", service], check=True, capture_output=True)
    assert web.answer() == "one"


def test_under_runit_an_instance_that_could_not_be_configured_is_told_from_a_good_one(
    stage: Stage, web: App, service: Path
) -> None:
    stage.configure(web.config())  # and nothing published
    give(service)
    status = stage.root / "var/lib/bootagent/state.json"
    until(lambda: status.exists() and json.loads(status.read_text()).get("last_run"))
    found = runit.status(service)
    assert found is not None and found.state == "run"
    assert checked(service) != 0


def test_a_daemon_that_fails_at_once_is_started_again_but_not_in_a_tight_loop(stage: Stage, service: Path) -> None:
    (stage.root / "bootagent").write_text(f"#!/bin/sh\necho x >>{stage.root}/starts\nexit 1\n")
    give(service)
    starts = stage.root / "starts"
    until(lambda: starts.exists() and len(starts.read_text().split()) > 1)
    time.sleep(2.5)  # runsv by itself would start it every second
    assert len(starts.read_text().split()) <= 3
    # And nobody who wants it down has to wait for that.
    subprocess.run(["sv", "-w", "4", "stop", service], check=True, capture_output=True)


def test_when_the_machine_goes_down_services_end_in_order(stage: Stage, service: Path, web: App) -> None:
    """As stage 3 of Debian's runit does it: the outer runsv's TERM reaches the service by the inner one's."""
    farewell = stage.root / "farewell"
    farewell.touch()
    farewell.chmod(0o666)
    script = f"#!/bin/sh\ntrap 'sleep 1; echo ended >>{farewell}; exit 0' TERM\nwhile :; do sleep 0.1; done\n"
    own = 'check = { within = "3s" }\nstable_for = "300ms"\n'
    stage.configure(web.config(service=f"[apps.web.services.slow]\n{own}"))
    web.publish("one", {**web.tree("one"), "config/service/slow/run": script})
    give(service)
    until(lambda: checked(service) == 0)
    all_of_them = sorted((stage.root / "etc/service").iterdir())
    assert [path.name for path in all_of_them] == ["bootagent", "web.slow"]
    done = subprocess.run(["sv", "-w", "20", "force-stop", *all_of_them], capture_output=True, text=True, check=False)
    assert farewell.read_text() == "ended\n", done.stdout
    assert done.stdout.count("ok: down:") == 2
