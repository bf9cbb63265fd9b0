"""What the processes of services really have: limits, umask, groups, environment, secrets, control groups."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bootagent import processes
from bootagent.errors import MachineError
from bootagent.machine import Identity, Machine
from bootagent.sandbox.supervisor import Supervisor
from bootagent.services import runit
from bootagent.services.cgroups import Limits
from bootagent.services.servicedir import ServiceDirectory, remove
from bootagent.services.servicefiles import OWN_RUN, Files, from_command
from tests.conftest import Agent
from tests.host.stage import App, Stage
from tests.waiting import until

QUICK = 'stable_for = "300ms"\ncheck = { within = "20s" }\n'
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")


def test_a_service_is_held_to_what_the_configuration_says(stage: Stage, web: App, agent: Agent) -> None:
    """Of a release's own service and of a command; neither runsv nor svlogd are."""
    held = 'limits = { memory = "1GiB", open_files = 60, core = 0, file_size = 8192 }\n'
    talk = 'umask; pwd; echo \\"$WRAPPED\\"; head -c 100000 /dev/zero | tr \\"\\\\0\\" x; echo; exec sleep 1000'

    def configure(umask: str) -> None:
        job = f'command = ["sh", "-c", "{talk}"]\nwrapper = ["env", "WRAPPED=yes"]\ndirectory = "api"\n'
        stage.configure(
            web.config(
                service=f'[apps.web.services.job]\n{QUICK}{held}{job}umask = "{umask}"\n'
                f'[apps.web.services.own]\n{QUICK}{held}umask = "0077"\n'
            )
        )

    run = "#!/bin/sh\nexec 2>&1\numask\nexec sleep 1000\n"
    web.publish("one", {**web.tree("one"), "api/x": "", "config/service/own/run": run})
    configure("027")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert (web.service("own") / OWN_RUN).read_text() == run
    assert os.access(web.service("own") / OWN_RUN, os.X_OK)
    for name in ("job", "own"):
        limits = limits_of(web.pid(name))
        assert limits["Max address space"] == [str(2**30)] * 2
        assert limits["Max open files"] == ["60", "60"]
        assert limits["Max core file size"] == ["0", "0"]
        assert limits["Max file size"] == ["8192", "8192"]
        assert umask_of(web.pid(name)) == {"job": "0027", "own": "0077"}[name]
    log = read_log(stage, "job", until=b"x" * 100)
    assert log.count(b"x") >= 100_000, "svlogd has no limit of file sizes"
    lines = [line.split(b" ", 1)[1] for line in log.splitlines()[:3]]
    assert lines == [b"0027", bytes(web.deploy_to / "current/api"), b"yes"]
    runsv = parent_of(web.pid("job"))
    assert limits_of(runsv)["Max file size"][0] == "unlimited"
    assert umask_of(runsv) != "0027"

    pids = web.pid("job"), web.pid("own")
    assert agent("reconfigure").code == 0
    assert (web.pid("job"), web.pid("own")) == pids
    configure("007")
    assert agent("reconfigure").code == 0
    assert web.pid("own") == pids[1] and web.pid("job") != pids[0]
    assert umask_of(web.pid("job")) == "0007"


@needs_root
def test_limits_above_what_the_machine_starts_with(stage: Stage, web: App, agent: Agent, runsvdir: Supervisor) -> None:
    """Root raises them; nobody can raise those above the kernel's own."""
    below = ("runsvdir", runsvdir.pid)
    deadline = time.monotonic() + 60
    while not (found := [one.pid for one in processes.all().values() if (one.name, one.parent) == below]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for limit, most in ((resource.RLIMIT_NOFILE, 500), (resource.RLIMIT_NPROC, 5000), (resource.RLIMIT_CORE, 0)):
        resource.prlimit(found[0], limit, (most, most))

    def configure(limits: str) -> None:
        quick = 'stable_for = "3s"\ncheck = { within = "12s" }\n'  # a busy machine takes its time to refuse
        job = f'[apps.web.services.job]\ncommand = ["sleep", "1000"]\n{quick}limits = {{ {limits} }}\n'
        stage.configure(web.config(service=job))

    web.publish("one")
    configure("open_files = 500, processes = 5000, core = 0")
    assert agent("reconfigure").code == 0
    configure("open_files = 700, processes = 7000, core = 4096")
    ran = agent("reconfigure")
    if may_raise_limits():
        assert ran.code == 0, ran.stderr
        limits = limits_of(web.pid("job"))
        assert limits["Max open files"] == ["700", "700"]
        assert limits["Max processes"] == ["7000", "7000"]
        assert limits["Max core file size"] == ["4096", "4096"]
    else:  # as in a container
        assert ran.code != 0
        assert "resource limit: Operation not permitted" in ran.stderr
        configure("open_files = 300")
        assert agent("reconfigure").code == 0
    pid = web.pid("job")

    configure("open_files = 2000000000")
    ran = agent("reconfigure")
    assert ran.code != 0
    assert "web.job wants limits.open_files = 2000000000, and this machine allows" in ran.stderr
    assert web.pid("job") == pid, "refused before anything is stopped"
    assert stage.release_state("web", web.current) != "bad"


# --- users and secrets ---------------------------------------------------------------------------------------------


@needs_root
def test_services_cannot_read_each_other_s_secrets(machine_root: Path, runsvdir: Supervisor) -> None:
    """The environment waits for the secrets, which give way to what is said in so many words, and to nothing else."""
    machine = Machine(machine_root)
    users = {"web.one": identity(machine, "nobody"), "web.two": identity(machine, "daemon")}
    services = {
        name: replace(
            service(name, sleeping(), who),
            env=(("SAID", "in the configuration"), ("PLAIN", name)),
            secrets=f"/run/bootagent/secrets/{name}",
            without=("LANG", "SAID", "TOKEN"),
        )
        for name, who in users.items()
    }
    for one in services.values():
        one.install(machine, stop_within=3)
    time.sleep(1)
    assert not any(runit.is_supervised(one.inner(machine)) for one in services.values())
    for name in services:
        provide(machine, name, {"TOKEN": f"of {name}", "SAID": "secretly", "LANG": "C"})
    pids = {name: running(machine, one) for name, one in services.items()}
    for name, pid in pids.items():
        found = environment_of(pid)
        assert (found["TOKEN"], found["SAID"], found["PLAIN"]) == (f"of {name}", "in the configuration", name)
        assert found["LANG"] == "C" and found["USER"] == users[name].user
    for name, other in (("web.one", "web.two"), ("web.two", "web.one")):
        outer = services[other].outer(machine)
        places = [
            f"/proc/{pids[other]}/environ",
            *(str(outer / "env" / variable) for variable in ("PLAIN", "SAID")),
            str(machine.real(f"/run/bootagent/secrets/{other}/TOKEN")),
            str(machine.real(f"/run/bootagent/env/{other}/TOKEN")),
        ]
        for place in places:
            assert Path(place).read_bytes(), "it is there, for root"
            denied = machine.run(["cat", place], timeout=20, identity=users[name], check=False)
            assert denied.returncode != 0 and "denied" in denied.stdout, place

    # Fetched anew, they reach the service when it is installed anew; dropped, they leave nothing.
    provide(machine, "web.one", {"TOKEN": "rotated"})
    services["web.one"].install(machine, stop_within=3)
    assert environment_of(running(machine, services["web.one"], but=pids["web.one"]))["TOKEN"] == "rotated"
    remove(machine, "/etc/sv", "/etc/service", "web.two")
    assert not machine.real("/run/bootagent/env/web.two").exists()


@needs_root
def test_the_service_s_environment_is_never_root_s(machine_root: Path, runsvdir: Supervisor) -> None:
    """Whoever has a say in a variable could have root run what he likes: PATH and the loader's variables."""
    machine = Machine(machine_root)
    trap, seen = machine.root / "trap", machine.root / "seen"
    for directory in (trap, seen):
        directory.mkdir()
    seen.chmod(0o777)
    for name in ("chpst", "runsv", "env", "cp", "sh"):
        (trap / name).write_text(f'#!/bin/sh\nid -u >>{seen}/{name}\nexec /usr/bin/{name} "$@"\n')
        (trap / name).chmod(0o755)
    one = replace(
        service("web.one", (("run", b"#!/bin/sh\nenv true\nexec sleep 1000\n", 0o755),), identity(machine, "nobody")),
        env=(("PATH", f"{trap}:/usr/bin:/bin"),),
        secrets="/run/bootagent/secrets/web.one",
    )
    provide(machine, "web.one", {"TOKEN": "x"})
    one.install(machine, stop_within=3)
    running(machine, one)
    until(lambda: seen / "env").exists()
    assert [path.name for path in seen.iterdir()] == ["env"], "the service finds its own, and nobody else looks there"
    assert "0" not in (seen / "env").read_text().split()


@needs_root
def test_a_service_has_its_user_group_and_supplementary_groups(machine_root: Path, runsvdir: Supervisor) -> None:
    machine = Machine(machine_root)
    who = replace(identity(machine, "nobody"), group="games", gid=60, groups=(1, 12))
    one = service("web.one", sleeping(), who)
    one.install(machine, stop_within=3)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{running(machine, one)}/status").read_text().splitlines())
    assert status["Uid"].split() == [str(who.uid)] * 4
    assert status["Gid"].split() == ["60"] * 4
    assert {int(group) for group in status["Groups"].split()} - {60} == {1, 12}
    assert replace(one, identity=replace(who, groups=(1,))).fingerprint() != one.fingerprint()


# --- control groups ------------------------------------------------------------------------------------------------


@pytest.fixture
def cgroup(machine_root: Path) -> Iterator[Path]:
    """The kernel's own groups, version 2, as the machine's; where they may be mounted."""
    place = machine_root / "sys/fs/cgroup"
    place.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "cgroup2", "none", place], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no cgroup version 2 to mount: {done.stderr.strip()}")
    yield place
    with contextlib.suppress(OSError):
        (place / "bootagent").rmdir()
    subprocess.run(["umount", place], check=True)


@needs_root
def test_a_service_lives_and_dies_in_its_control_group(machine_root: Path, cgroup: Path, runsvdir: Supervisor) -> None:
    machine = Machine(machine_root)
    name = f"{machine_root.name}.one"  # the kernel's groups are those of everybody
    script = b"#!/bin/sh\nsetsid sleep 1000 &\nexec sleep 1000\n"
    one = replace(service(name, (("run", script, 0o755),), identity(machine, "nobody")), cgroup=Limits())
    one.install(machine, stop_within=3)
    pid = running(machine, one)
    assert one.is_installed(machine)
    group = cgroup / "bootagent" / name
    members = (group / "cgroup.procs").read_text().split()
    assert str(pid) in members and str(parent_of(pid)) in members
    deadline = time.monotonic() + 60
    while len(members) < 4:  # runsv, svlogd, and two that sleep
        assert time.monotonic() < deadline
        members = (group / "cgroup.procs").read_text().split()
    remove(machine, "/etc/sv", "/etc/service", name)
    assert not group.exists()
    time.sleep(0.1)
    assert not [pid for pid in members if Path(f"/proc/{pid}/exe").exists()], "what it left behind is gone too"


@needs_root
def test_limits_of_a_control_group_are_the_kernel_s_or_an_error(
    machine_root: Path, cgroup: Path, runsvdir: Supervisor
) -> None:
    machine = Machine(machine_root)
    name = f"{machine_root.name}.two"
    limits = Limits(memory=512 * 2**20, cpus=0.5, processes=64)
    one = replace(service(name, sleeping(), identity(machine, "nobody")), cgroup=limits)
    offered = (cgroup / "cgroup.controllers").read_text().split()
    if not {"memory", "cpu", "pids"} <= set(offered):
        with pytest.raises(MachineError, match="the kernel offers no controller"):
            one.install(machine, stop_within=3)
        assert not one.outer(machine).exists(), "it has not been touched"
        return
    one.install(machine, stop_within=3)
    group = cgroup / "bootagent" / name
    assert str(running(machine, one)) in (group / "cgroup.procs").read_text().split()
    assert (group / "memory.max").read_text() == f"{512 * 2**20}\n"
    assert (group / "cpu.max").read_text() == "50000 100000\n"
    assert (group / "pids.max").read_text() == "64\n"
    assert one.is_installed(machine)
    remove(machine, "/etc/sv", "/etc/service", name)
    assert not group.exists()


# --- what the tests ask ----------------------------------------------------------------------------------------------


def sleeping() -> Files:
    return from_command(Path("/"), ("sleep", "1000"))


def service(name: str, files: Files, who: Identity | None) -> ServiceDirectory:
    return ServiceDirectory(name, files, (), f"/var/log/bootagent/{name}", who, "/etc/sv", "/etc/service")


def identity(machine: Machine, user: str) -> Identity:
    found = machine.identity(user)
    assert found is not None
    return found


def provide(machine: Machine, name: str, values: dict[str, str]) -> None:
    """The secrets of a service, as they are put there: whole, by a rename."""
    place = machine.real(f"/run/bootagent/secrets/{name}")
    fresh, old = place.with_name(f".{name}.new"), place.with_name(f".{name}.old")
    fresh.mkdir(parents=True, mode=0o700)
    for variable, content in runit.environment_directory(values).items():
        (fresh / variable).write_bytes(content)
        (fresh / variable).chmod(0o600)
    if place.exists():
        place.rename(old)
    fresh.rename(place)


def running(machine: Machine, one: ServiceDirectory, *, but: int = 0) -> int:
    """The pid of a service once it runs, and is what it is to be."""
    one.start(machine)
    deadline = time.monotonic() + 40
    while True:
        found = runit.status(one.inner(machine))
        if found and found.state == "run" and found.pid != but and b"sleep" in cmdline(found.pid):
            return found.pid
        assert time.monotonic() < deadline
        time.sleep(0.05)


def cmdline(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
    return b""


def environment_of(pid: int) -> dict[str, str]:
    pairs = (item.partition("=") for item in Path(f"/proc/{pid}/environ").read_text().split("\0") if item)
    return {name: value for name, _, value in pairs}


def limits_of(pid: int) -> dict[str, list[str]]:
    """Soft and hard limits by their names in proc(5)."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[:2] for line in lines}


def may_raise_limits() -> bool:
    """Whether root here has CAP_SYS_RESOURCE: capabilities(7)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return bool(int(next(line.split()[1] for line in lines if line.startswith("CapEff:")), 16) & 1 << 24)


def umask_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("Umask:"))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def read_log(stage: Stage, name: str, *, until: bytes) -> bytes:
    place = stage.root / "var/log/bootagent" / f"web.{name}"
    deadline = time.monotonic() + 60
    while True:
        found = b"".join(path.read_bytes() for path in [*sorted(place.glob("@*")), place / "current"])
        if until in found and found.count(b"x") >= 100_000:
            return found
        assert time.monotonic() < deadline, found[-300:]
        time.sleep(0.1)
