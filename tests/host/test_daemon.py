"""The resident agent: what it runs, what it heeds, what it tells the service manager, and how small it stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bootagent.daemon import notices
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.supervisor import Supervisor
from bootagent.services import runit
from tests.conftest import Agent, agent_argv, processes_of
from tests.host.stage import SERVER, App, Stage
from tests.waiting import until

Waited = Callable[[], Any]


class Manager:
    """A service manager's end of sd_notify(3), as systemd has it."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._heard: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while text := self._socket.recv(4096).decode():
                self._heard.append(text)

    def heard(self, prefix: str) -> list[str]:
        return [text.removeprefix(prefix) for text in list(self._heard) if text.startswith(prefix)]

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Daemon:
    """``bootagent run`` on a machine, and what it logs."""

    def __init__(self, stage: Stage, cloud: Cloud, *words: str, env: Mapping[str, str] | None = None) -> None:
        self.notify = stage.root / "notify"
        self.manager = Manager(self.notify)
        self.log_path = stage.root / "daemon.log"
        environment = {
            **cloud.process_environment(),
            "NOTIFY_SOCKET": str(self.notify),
            "WATCHDOG_USEC": "1000000",
            **(env or {}),
        }
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                agent_argv(stage.root, "run", *words), env=environment, stderr=log, stdout=log
            )

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log_path.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def ended(self, why: str, times: int = 1) -> dict[str, Any]:
        """The log line of the end of a child that was started for ``why``."""
        found = until(lambda: [one for one in self.logged("ended") if one["why"] == why][times - 1 :])
        assert isinstance(found, list)
        return dict(found[0])

    def status(self) -> str:
        return (self.manager.heard("STATUS=") or [""])[-1]

    def leave(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(30)


Start = Callable[..., Daemon]


@pytest.fixture
def start(stage: Stage, cloud: Cloud) -> Iterator[Start]:
    """Start the daemon: ``start(*words, env={…})``."""
    started: list[Daemon] = []

    def begin(*words: str, env: Mapping[str, str] | None = None) -> Daemon:
        for old in started:
            old.notify.unlink(missing_ok=True)
        started.append(Daemon(stage, cloud, *words, env=env))
        return started[-1]

    yield begin
    for daemon in started:
        daemon.leave()
        daemon.manager.close()


def test_it_boots_stays_small_and_says_so(stage: Stage, web: App, start: Start, agent: Agent) -> None:
    stage.configure(web.config())
    revision = web.publish("one")
    daemon = start()
    until(lambda: daemon.manager.heard("READY=1"))
    assert agent("status", "--wait", "60").code == 0
    assert daemon.ended("run")["exit_code"] == 0
    assert web.answer() == "one"
    assert json.loads(agent("history", "--json").stdout)[-1]["command"] == "run"

    told = daemon.manager.heard("STATUS=")
    assert any(line.startswith("boot: web: ") for line in told), told
    until(
        lambda: (
            daemon.status() == f"done: web: now runs release {web.current} ({revision[:12]}); {revision[:12]} is new"
        )
    )
    assert all(len(line) < 500 and "\n" not in line for line in told)
    assert len(until(lambda: daemon.manager.heard("WATCHDOG=1")[2:])) > 0

    fields = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
        if ":" in line
    )
    # What is measured is in the benchmarks; this is a bound that a library's import would break.
    assert int(fields["VmRSS"].split()[0]) < 14 * 1024
    words = Path(f"/proc/{daemon.process.pid}/cmdline").read_bytes().split(b"\0")
    assert any(word.endswith(b"bootagent/daemon/__main__.py") for word in words)

    pid = web.pid()
    assert daemon.leave() == 0
    until(lambda: daemon.manager.heard("STOPPING=1"))
    assert web.pid() == pid, "to leave is not to stop"


def test_it_imports_nothing_that_is_not_small() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n"
        "import bootagent.daemon.resident\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-c", program, str(root)], capture_output=True, text=True, check=True
    )
    imported = {name.partition(".")[0] for name in ran.stdout.split()}
    heavy = {"json", "re", "dataclasses", "subprocess", "logging", "urllib", "http", "random", "pathlib", "tempfile"}
    assert "bootagent" in imported
    assert imported & heavy == set()


def test_a_hangup_reconfigures(stage: Stage, web: App, start: Start) -> None:
    stage.configure(web.config())
    web.publish("one")
    daemon = start()
    daemon.ended("run")
    web.publish("two")
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.ended("reconfigure")["exit_code"] == 0
    assert web.answer() == "two"


def test_it_looks_for_a_new_release_when_told_to(stage: Stage, web: App, start: Start) -> None:
    stage.configure(web.config() + '\n[watch]\ninterval = "10s"\n')
    web.publish("one")
    daemon = start()
    daemon.ended("run")
    web.publish("two")
    assert "looking for a new release at " in until(
        lambda: daemon.status() if "new release at" in daemon.status() else ""
    )
    assert daemon.ended("watch")["exit_code"] == 0
    assert web.answer() == "two"


def test_it_keeps_trying_while_the_source_is_away(
    stage: Stage, web: App, start: Start, cloud: Cloud, agent: Agent
) -> None:
    stage.configure(web.config())
    web.publish("one")
    # Enough for the first run and what boto3 tries again by itself.
    cloud.api.fail("s3", "GetObject", code="ServiceUnavailable", times=8)
    daemon = start()
    assert daemon.ended("run")["exit_code"] == 1
    assert "another try at " in until(lambda: daemon.status() if "try at" in daemon.status() else "")
    until(lambda: any(one["exit_code"] == 0 for one in daemon.logged("ended")), within=90)
    assert web.answer() == "one"


#: A service that needs something besides its release, such as a database.
NEEDY = "import os, sys\nif not os.path.exists({database!r}): sys.exit('no database')\n" + SERVER


def test_a_release_that_has_served_is_tried_again_until_what_it_needs_is_back(
    stage: Stage, web: App, start: Start, agent: Agent
) -> None:
    stage.configure(web.config())
    database = stage.root / "database"
    database.touch()
    web.publish("one", web.tree("one") | {"server.py": NEEDY.format(database=str(database))})
    assert agent("reconfigure").code == 0
    assert agent("stop").code == 0
    path = stage.root / "var/lib/bootagent/state.json"  # the boot after
    path.write_text(json.dumps({**json.loads(path.read_text()), "stopped": None}))
    database.unlink()
    daemon = start()
    assert daemon.ended("run")["exit_code"] == 1
    until(lambda: "another try at" in daemon.status())
    assert stage.release_state("web", web.current) == "good"
    database.touch()
    until(lambda: daemon.logged("ended")[-1]["exit_code"] == 0)
    assert daemon.logged("ended")[-1]["why"] == "retry"
    assert web.answer() == "one"


def test_what_was_asked_for_after_a_stop_is_tried_until_it_is_done(
    stage: Stage, web: App, start: Start, agent: Agent, cloud: Cloud
) -> None:
    stage.configure(web.config())
    web.publish("one")
    daemon = start()
    assert daemon.ended("run")["exit_code"] == 0
    assert agent("stop").code == 0
    cloud.metadata.faults.disabled = True
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.ended("reconfigure")["exit_code"] == 1
    cloud.metadata.faults.disabled = False
    assert daemon.ended("retry")["exit_code"] == 0
    assert web.answer() == "one"
    # But who stops it after that has the last word.
    assert agent("stop").code == 0
    cloud.metadata.faults.disabled = True
    assert agent("reconfigure").code == 1
    cloud.metadata.faults.disabled = False
    assert agent("stop").code == 0
    ran = agent("run", "--once", "--because", "retry")
    assert ran.code == 0 and "the services were stopped, and stay so" in ran.stderr
    with pytest.raises(OSError):
        web.answer(within=0)


def test_what_no_other_try_can_better_is_not_tried_again(stage: Stage, web: App, start: Start) -> None:
    stage.configure(web.config())
    (stage.root / "etc/bootagent/config.toml").write_text("[apps.web]\n")
    daemon = start()
    assert daemon.ended("run")["exit_code"] == 2
    until(lambda: "refused: " in daemon.status())
    assert "another try" not in daemon.status()
    # Once it is mended, a hangup is enough.
    stage.configure(web.config())
    web.publish("one")
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.ended("reconfigure")["exit_code"] == 0


@pytest.mark.parametrize(
    ("notice", "says"),
    [
        ("lifecycle", "Terminated"),
        ("spot", '{"action": "terminate", "time": "2026-11-20T17:02:07Z"}'),
    ],
)
def test_told_to_die_it_takes_the_services_down(
    notice: str, says: str, stage: Stage, web: App, start: Start, cloud: Cloud, agent: Agent
) -> None:
    stage.configure(web.config() + '\n[watch]\ninterval = "10s"\n')
    web.publish("one")
    daemon = start()
    daemon.ended("run")
    set_notice(cloud, notice, says)
    assert daemon.ended("stop")["exit_code"] == 0
    with pytest.raises(OSError):
        web.answer(within=0)
    assert daemon.logged("notice")[-1]["says"] == says
    until(lambda: daemon.status().startswith("stopped: web: its services are down"))
    assert f"{notice} notice: {says}" in daemon.status()
    # Nobody starts them again: not the watch, not a hangup.
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: daemon.logged("hangup ignored"))
    time.sleep(13)
    assert [one["why"] for one in daemon.logged("begun")] == ["run", "stop"]
    assert json.loads(agent("status", "--json").stdout)["apps"]["web"]["services"]["web.server"]["state"] == "down"
    # A scale-in that is called off brings them back.
    set_notice(cloud, notice, None)
    assert daemon.ended("reconfigure")["exit_code"] == 0
    assert web.answer() == "one"


def test_told_to_die_in_the_middle_of_a_run_it_ends_that_first(
    stage: Stage, web: App, start: Start, cloud: Cloud
) -> None:
    stage.configure(web.config())
    web.publish("one")
    daemon = start()
    daemon.ended("run")
    stage.configure(web.config(extra='hooks = { prepare = ["sleep", "600"] }'))
    web.publish("two")
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: "bin/setup" in daemon.status() or "sleep" in daemon.status())
    set_notice(cloud, "lifecycle", "Terminated")
    assert daemon.ended("stop")["exit_code"] == 0
    with pytest.raises(OSError):
        web.answer(within=0)


def test_notices_that_only_warn_are_logged_and_told(stage: Stage, web: App, start: Start, cloud: Cloud) -> None:
    stage.configure(web.config())
    web.publish("one")
    set_notice(cloud, "maintenance", "[]")
    daemon = start()
    daemon.ended("run")
    set_notice(cloud, "rebalance", '{"noticeTime": "2026-11-20T08:22:00Z"}')
    until(lambda: "rebalance notice: " in daemon.status())
    assert [one["kind"] for one in daemon.logged("notice")] == ["rebalance"]
    assert web.answer() == "one"


def test_it_bears_with_a_metadata_service_that_comes_and_goes(
    stage: Stage, web: App, start: Start, cloud: Cloud
) -> None:
    stage.configure(web.config())
    web.publish("one")
    daemon = start()
    daemon.ended("run")
    cloud.metadata.stop()
    until(lambda: daemon.logged("no metadata"))
    cloud.metadata.start()
    until(lambda: daemon.logged("metadata is back"))
    cloud.metadata.drop_tokens()
    set_notice(cloud, "rebalance", "{}")
    until(lambda: daemon.logged("notice"))
    assert len(daemon.logged("no metadata")) == 1


def test_killed_in_the_middle_and_started_again_it_ends_in_the_right_state(
    stage: Stage, web: App, start: Start, agent: Agent
) -> None:
    stage.configure(web.config(extra='hooks = { prepare = ["sleep", "3"] }'))
    web.publish("one")
    first = start()
    until(lambda: "sleep" in first.status())
    first.process.kill()
    first.process.wait()
    second = start()
    assert second.ended("run")["exit_code"] == 0
    assert web.answer() == "one"
    assert len(web.releases) == 1


def test_told_to_leave_in_the_middle_of_a_run_it_leaves_and_the_run_ends(
    stage: Stage, web: App, start: Start, agent: Agent
) -> None:
    stage.configure(web.config(extra='hooks = { prepare = ["sleep", "600"] }'))
    web.publish("one")
    daemon = start()
    child = until(lambda: daemon.logged("begun"))[0]["child"]
    until(lambda: "sleep" in daemon.status())
    assert daemon.leave() == 0
    assert not Path(f"/proc/{child}").exists()


def test_the_boot_waits_for_tags_without_holding_up_who_brings_them(
    stage: Stage, web: App, start: Start, cloud: Cloud, agent: Agent
) -> None:
    """User-data under cloud-init: `exec bootagent reconfigure --tag Role=web` while the boot waits for a role."""
    stage.configure(web.config())
    web.publish("one")
    cloud.remove_tag("Role")
    daemon = start()
    until(lambda: "tags" in daemon.status())
    assert agent("status").code == 75
    assert agent("status").stdout.startswith("running: ")
    ran = agent("reconfigure", "--tag", "Role=web")
    assert ran.code == 0, ran.stderr
    assert daemon.ended("run")["exit_code"] == 0
    assert len(web.releases) == 1
    # A reboot does not run user-data again, and ends in the same role.
    daemon.leave()
    web.publish("two")
    assert start().ended("run")["exit_code"] == 0
    assert web.answer() == "two"
    shown = json.loads(agent("facts", "--json").stdout)
    assert (shown["tags"]["Role"], shown["tag_origin"]["Role"]) == ("web", "remembered")
    cloud.set_tag("Role", "web")
    assert agent("reconfigure", "--tag", "Role=").code == 0
    assert stage.state()["tags"] == {}


def test_remembered_tags_are_forgotten_on_another_instance(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    stage.configure(web.config(), roles='[roles.web]\napps = ["web"]\n[roles.idle]\napps = []\n')
    web.publish("one")
    assert agent("reconfigure", "--tag", "Role=idle").code == 0
    assert stage.state()["tags"] == {"Role": "idle"}
    assert agent("reconfigure").code == 0
    assert not web.deploy_to.exists(), "the tag of the command line is remembered"
    path = stage.root / "var/lib/bootagent/state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "instance_id": "i-0fedcba9876543210"}))
    assert agent("reconfigure").code == 0
    assert web.answer() == "one"
    assert stage.state()["tags"] == {}


def test_a_tag_that_leads_nowhere_is_not_remembered(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config())
    web.publish("one")
    assert agent("reconfigure", "--tag", "Role=wbe").code == 2
    assert agent("reconfigure").code == 0
    assert web.answer() == "one"


def test_stop_takes_everything_down_and_a_rerun_brings_it_up(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config())
    web.publish("one")
    assert agent("reconfigure").code == 0
    release = web.current
    ran = agent("stop")
    assert (ran.code, ran.stdout.splitlines()[0]) == (0, "web: its services are down; asked by bootagent stop")
    with pytest.raises(OSError):
        web.answer(within=0)
    assert agent("stop").code == 0, "again"
    shown = json.loads(agent("status", "--json").stdout)
    assert (shown["outcome"], shown["apps"]["web"]["services"]) == ("stopped", {})
    assert agent("reconfigure").code == 0
    assert web.answer() == "one"
    assert web.current == release


def test_stop_waits_for_work_in_flight_and_no_longer_than_it_may(stage: Stage, web: App, agent: Agent) -> None:
    finish = (
        "import os, signal, sys, time\n"
        "def end(*_):\n    time.sleep(1); open('finished', 'w').close(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "while True: time.sleep(0.1)\n"
    )
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)\n"
    services = "".join(
        f'[apps.web.services.{name}]\ncommand = ["python3", "{name}.py"]\nstable_for = "300ms"\nstop_within = "4s"\n'
        for name in ("finish", "deaf")
    )
    stage.configure(web.config(service=services))
    web.publish("one", {"finish.py": finish, "deaf.py": deaf})
    assert agent("reconfigure").code == 0
    pids = [web.pid(name) for name in ("finish", "deaf")]
    begun = time.monotonic()
    assert agent("stop").code == 0
    assert time.monotonic() - begun < 20
    assert (web.deploy_to / "current/finished").exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_stop_needs_neither_metadata_nor_a_good_configuration(
    stage: Stage, web: App, agent: Agent, cloud: Cloud
) -> None:
    stage.configure(web.config())
    web.publish("one")
    assert agent("reconfigure").code == 0
    cloud.metadata.stop()
    (stage.root / "etc/bootagent/config.toml").write_text("[apps.web]\n")
    assert agent("stop").code == 0
    with pytest.raises(OSError):
        web.answer(within=0)
    cloud.metadata.start()


@pytest.mark.parametrize("why", ["run", "watch", "retry"])
def test_what_somebody_stopped_only_somebody_starts(why: str, stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config())
    web.publish("one")
    assert agent("reconfigure").code == 0
    assert agent("stop").code == 0
    ran = agent("run", "--once", "--because", why)
    assert ran.code == 0
    assert "the services were stopped, and stay so" in ran.stderr
    # Whatever else ends meanwhile does not make it forgotten.
    assert agent("rollback", "20000101000000").code == 2
    assert agent("run", "--once", "--because", why).code == 0
    told = agent("status")
    assert (told.code, told.stdout.startswith("stopped")) == (75, True)
    with pytest.raises(OSError):
        web.answer(within=0)
    # Another boot knows nothing of it.
    path = stage.root / "var/lib/bootagent/state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "stopped": "another-boot"}))
    assert agent("run", "--once", "--because", why).code == 0
    assert web.answer() == "one"


def test_a_boot_that_waits_for_tags_finds_that_it_was_stopped_meanwhile(
    stage: Stage, web: App, start: Start, cloud: Cloud, agent: Agent
) -> None:
    stage.configure(web.config())
    web.publish("one")
    cloud.remove_tag("Role")
    daemon = start()
    until(lambda: "tags" in daemon.status())
    assert agent("stop").code == 0
    cloud.set_tag("Role", "web")
    assert daemon.ended("run")["exit_code"] == 0
    assert not web.deploy_to.exists()


def test_stop_finds_services_where_the_last_run_had_them(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config() + '\n[runit]\ndefinitions = "/opt/sv"\n')
    web.publish("one")
    assert agent("reconfigure").code == 0
    (stage.root / "etc/bootagent/config.toml").write_text("[apps.web]\n")
    assert agent("stop").code == 0
    with pytest.raises(OSError):
        web.answer(within=0)


def test_a_service_that_runit_has_not_found_yet_is_stopped_too(
    stage: Stage, web: App, agent: Agent, runsvdir: Supervisor
) -> None:
    stage.configure(web.config())
    web.publish("one")
    assert agent("reconfigure").code == 0
    runsvdir.stop()  # and so are its services
    until(lambda: not runit.is_supervised(web.service()))
    assert agent("stop", "--shutdown").code == 0
    runsvdir.start()
    until(lambda: runit.is_supervised(web.service()))
    time.sleep(1)
    with pytest.raises(OSError):
        web.answer(within=0)
    assert agent("reconfigure").code == 0
    assert web.answer() == "one"


def test_stop_ends_a_run_that_is_in_the_way(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    stage.configure(web.config())
    web.publish("one")
    assert agent("reconfigure").code == 0
    stage.configure(web.config(extra='hooks = { prepare = ["sh", "-c", "touch begun; sleep 600; true"] }'))
    web.publish("two")
    busy = subprocess.Popen(
        agent_argv(stage.root, "reconfigure"), env=cloud.process_environment(), stderr=subprocess.DEVNULL
    )
    until(lambda: list((web.deploy_to / "releases").glob("*/begun")))
    assert agent("stop", "--lock-wait", "0").code == 75
    assert agent("stop", "--lock-wait", "1", "--force").code == 0
    assert busy.wait(10) == 128 + signal.SIGTERM
    left = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_of(web.deploy_to)]
    assert not [words for words in left if b"sleep" in words], "what the hook started is gone, too"
    with pytest.raises(OSError):
        web.answer(within=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_stop_works_on_a_disk_that_has_gone_read_only(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config())
    web.publish("one")
    assert agent("reconfigure").code == 0
    state = stage.root / "var/lib/bootagent"
    subprocess.run(["mount", "--bind", "--read-only", state, state], check=True)
    try:
        assert agent("stop").code == 0
    finally:
        subprocess.run(["umount", state], check=True)
    with pytest.raises(OSError):
        web.answer(within=0)


def test_a_finish_script_that_hangs_is_ended(stage: Stage, web: App, agent: Agent) -> None:
    scripts = {
        "config/service/slow/run": "#!/bin/sh\nexec sleep 1000\n",
        "config/service/slow/finish": "#!/bin/sh\nexec sleep 2000\n",
    }
    own = '[apps.web.services.slow]\nstable_for = "300ms"\nstop_within = "1s"\n'
    stage.configure(web.config(service=own))
    web.publish("one", web.tree("one", **scripts))
    assert agent("reconfigure").code == 0
    ran = agent("stop", "--shutdown")
    assert ran.code == 0, ran.stderr
    found = runit.status(web.service("slow"))
    assert found is not None
    assert (found.state, found.pid) == ("down", 0)


def test_a_second_daemon_is_refused(stage: Stage, web: App, start: Start) -> None:
    stage.configure(web.config())
    web.publish("one")
    start().ended("run")
    second = start()
    assert second.process.wait(20) == 75
    assert second.logged("cannot start")[0]["error"] == "another daemon of bootagent runs already"


def test_looking_for_a_release_leaves_no_trace_until_there_is_one(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config())
    web.publish("one")
    assert agent("reconfigure").code == 0
    before = agent("history").stdout
    state, told = stage.state(), agent("status").stdout.splitlines()[:2]
    assert agent("run", "--once", "--because", "watch").code == 0
    assert agent("history").stdout == before
    assert (stage.state(), agent("status").stdout.splitlines()[:2]) == (state, told)
    web.publish("two")
    assert agent("run", "--once", "--because", "watch").code == 0
    assert web.answer() == "two"
    newest = json.loads(agent("history", "--json").stdout)[-1]
    assert (newest["command"], newest["outcome"]) == ("watch", "done")
    assert newest["apps"]["web"]["intent"] == "deploy"


def test_a_rollback_ends_the_tries_of_what_was_staged(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(extra='hooks = { prepare = ["test", "-e", "works"] }'))
    web.publish("one", web.tree("one", works="yes"))
    assert agent("reconfigure").code == 0
    web.publish("two", web.tree("two", works="yes"))
    assert agent("reconfigure").code == 0
    web.publish("three")
    assert agent("reconfigure").code == 3
    assert agent("rollback").code == 0
    assert web.answer() == "one"
    assert agent("run", "--once", "--because", "retry").code == 0
    assert web.answer() == "one"
    assert "three" not in agent("plan").stdout
    web.publish("four", web.tree("four", works="yes"))
    assert agent("reconfigure").code == 0
    assert web.answer() == "four"


def set_notice(cloud: Cloud, name: str, says: str | None) -> None:
    path = f"meta-data/{notices.PATHS[name]}"
    if says is None:
        cloud.metadata.remove(path)
    else:
        cloud.metadata.put(path, says)
