"""Services: from the release or the configuration, verified, and left alone when nothing changed."""

from __future__ import annotations

import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from bootagent import processes
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.supervisor import Supervisor
from bootagent.services import runit
from tests.conftest import Agent
from tests.host.stage import App, Stage

RUN = "#!/bin/sh\nexec 2>&1\necho started\nexec sleep 1000\n"
QUICK = 'check = { within = "3s" }\nstable_for = "300ms"\n'


def own(name: str, more: str = QUICK) -> str:
    return f"[apps.web.services.{name}]\n{more}"


def test_a_release_brings_its_own_services(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(service=own("one") + own("two")))
    scripts = {
        "config/service/one/run": RUN,
        "config/service/one/finish": "#!/bin/sh\necho finished\n",
        "config/service/one/log/run": "#!/bin/sh\nexec svlogd -tt ./main\n",
        "config/service/two/run": RUN,
    }
    web.publish("one", {**web.tree("one"), **scripts})
    ran = agent("reconfigure")
    # one logs into its own directory, which is root's: svlogd cannot, and that is the script's affair.
    assert ran.code == 0, ran.stderr
    for path, content in scripts.items():
        installed = stage.root / "etc/sv" / path.replace("config/service/", "web.").replace("/", "/service/", 1)
        assert installed.read_text() == content
        assert os.access(installed, os.X_OK)
    pids = web.pid("one"), web.pid("two")
    assert agent("reconfigure").code == 0
    assert (web.pid("one"), web.pid("two")) == pids

    # The next release changes one script and drops the other service.
    changed = RUN.replace("1000", "2000")
    web.publish("two", {**web.tree("two"), "config/service/one/run": changed})
    stage.configure(web.config(service=own("one")))
    assert agent("reconfigure").code == 0
    assert (web.service("one") / "run").read_text() == changed
    assert not (web.service("one") / "finish").exists()
    assert not web.service("two").exists()
    assert not (stage.root / "etc/service/web.two").is_symlink()
    time.sleep(0.2)
    for pid in pids:
        assert not _alive(pid)


#: Serves until it is asked for /wedge, and from then on nothing but errors.
WEDGES = """\
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    wedged = False
    def do_GET(self):
        Handler.wedged = Handler.wedged or self.path == "/wedge"
        self.send_response(500 if Handler.wedged else 200)
        self.end_headers()
        self.wfile.write(b"one")
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def test_what_runs_and_works_no_more_is_restarted_once(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config())
    web.publish("one", {**web.tree("one"), "server.py": WEDGES})
    assert agent("reconfigure").code == 0
    pid = web.pid()
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://127.0.0.1:{web.port}/wedge", timeout=10)
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert "web.server is restarted, as it does not work any more" in ran.stderr
    assert web.answer() == "one" and web.pid() != pid
    assert stage.release_state("web", web.current) == "good"


def test_neither_a_restart_nor_a_removal_leaves_a_process_behind(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(service=own("job", f'command = ["./job"]\nstop_within = "2s"\n{QUICK}')))
    # A child that has left its parent's session, and takes no TERM.
    job = "#!/bin/sh\nsetsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' &\nexec sleep 1000\n"
    web.publish("one", {**web.tree("one"), "job": job})
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    first, one = web.pid("job"), web.current
    web.publish("two", {**web.tree("two"), "job": job})
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert not _alive(first)
    assert "TERM to what web.job left behind" in ran.stderr and "KILL to what web.job left behind" in ran.stderr
    assert _working_in(one) == set()

    two = web.current
    stage.configure(web.config())
    # The service may have asked for the run itself, which is not to end for that.
    ran = agent("reconfigure", env={"BOOTAGENT_SERVICE": str(stage.root / "etc/sv/web.job")})
    assert ran.code == 0, ran.stderr
    assert "KILL to what web.job left behind" in ran.stderr
    assert _working_in(two) == {web.pid()}


def test_what_services_lack_is_found_before_the_switch(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config())
    web.publish("one", {**web.tree("one"), ".tool-versions": "python 3.99.0\n"})
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert "web.server gets the system's programs: there is no asdf and no mise" in ran.stderr
    link, one, pid = stage.root / "srv/web/current", web.current, web.pid()
    before = link.lstat()

    stage.configure(web.config(service=own("job", f'command = ["sleep", "1000"]\nafter = ["sevrer"]\n{QUICK}')))
    web.publish("two")
    ran = agent("reconfigure")
    assert ran.code == 3, ran.stderr
    assert "web.job comes after web.sevrer, and web has web.job (correct its after" in ran.stderr
    assert (web.current, web.pid(), link.lstat().st_ino) == (one, pid, before.st_ino)
    assert stage.release_state("web", max(web.releases)) != "bad"

    # What the release itself has wrong is held against it.
    stage.configure(web.config())
    web.publish("three", {**web.tree("three"), "config/service/no name/run": RUN})
    ran = agent("reconfigure")
    assert ran.code == 3 and "is no name for a service" in ran.stderr
    assert (web.current, web.pid(), link.lstat().st_ino) == (one, pid, before.st_ino)
    assert stage.release_state("web", max(web.releases)) == "bad"


def test_a_role_narrows_the_services(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(
        web.config(service=own("one") + own("two")), roles='[roles.web]\napps = ["web"]\nservices = ["two"]\n'
    )
    web.publish("one", {**web.tree("one"), "config/service/one/run": RUN, "config/service/two/run": RUN})
    assert agent("reconfigure").code == 0
    assert web.pid("two") and not web.service("one").exists()
    stage.configure(
        web.config(service=own("one") + own("two")), roles='[roles.web]\napps = ["web"]\nservices = ["tow"]\n'
    )
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "is to run tow, and web has one, two" in ran.stderr


def test_a_tag_may_name_a_service_that_only_the_release_brings(
    stage: Stage, web: App, agent: Agent, cloud: Cloud
) -> None:
    modes = '[modes.staging]\napps = ["web"]\nnarrowed_by = "Service"\n[roles]\n'
    stage.configure(web.config(service=own("one") + own("two")), roles=modes)
    scripts = {f"config/service/{name}/run": RUN for name in ("one", "two", "three")}
    web.publish("one", {**web.tree("one"), **scripts})
    cloud.remove_tag("Role")
    cloud.set_tag("Service", "web.tree")
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "is to run tree, and web has one, two, three" in ran.stderr
    assert "correct services = [...] of the role, or the tag" in ran.stderr
    assert not (stage.root / "etc/sv").exists()
    (release,) = web.releases
    assert stage.release_state("web", release) != "bad", "it is not to blame"
    assert not (web.deploy_to / "current").is_symlink()

    cloud.set_tag("Service", "web.three")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert sorted(path.name for path in (stage.root / "etc/sv").iterdir()) == ["web.three"]
    pid = web.pid("three")
    cloud.set_tag("Service", "web.four")
    assert agent("reconfigure").code == 1
    assert web.pid("three") == pid, "what runs stays"


def test_a_service_defined_in_the_configuration(stage: Stage, web: App, agent: Agent) -> None:
    service = own(
        "job",
        QUICK + 'command = ["sh", "-c", "echo \\"$GREETING\\"; id -un; pwd; exec sleep 1000"]\n'
        'env = { GREETING = "hello {environment}: $HOME `id` \\"quoted\\"\\nsecond line" }\nlog = "/var/log/job"\n',
    )
    stage.configure(web.config(service=service))
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    environment = Path(f"/proc/{web.pid('job')}/environ").read_bytes().split(b"\0")
    assert b'GREETING=hello staging: $HOME `id` "quoted"\nsecond line' in environment
    ours = [line for line in environment if line.startswith((b"AWS_", b"BOOTAGENT_"))]
    assert ours == [f"BOOTAGENT_SERVICE={stage.root}/etc/sv/web.job".encode()]
    assert (stage.root / "etc/sv/web.job/env/GREETING").stat().st_mode & 0o077 == 0
    log = (stage.root / "var/log/job/current").read_text()
    assert "hello staging" in log and str(web.deploy_to / "current") in log


def test_a_crash_looper_is_not_called_healthy(stage: Stage, web: App, agent: Agent) -> None:
    """It is up whenever one looks, and never for long."""
    stage.configure(
        web.config(
            service=own(
                "job",
                'command = ["sh", "-c", "sleep 0.5; echo out of luck"]\nstable_for = "1s"\ncheck = { within = "4s" }\n',
            )
        )
    )
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "service web.job is not healthy after 4 s: it crashed" in ran.stderr
    assert "out of luck" in ran.stderr


def test_a_service_that_is_up_but_does_not_answer_is_not_healthy(stage: Stage, web: App, agent: Agent) -> None:
    check = f'check = {{ tcp = "127.0.0.1:{web.port}", within = "2s" }}\n'
    service = own("job", 'command = ["sleep", "1000"]\nstable_for = "200ms"\n' + check)
    stage.configure(web.config(service=service))
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 1
    assert f"127.0.0.1:{web.port}" in ran.stderr and "refused" in ran.stderr


def test_the_release_s_own_check_script_counts(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(service=own("job")))
    tree = {"config/service/job/run": RUN, "config/service/job/check": "#!/bin/sh\necho not yet; exit 1\n"}
    web.publish("one", {**web.tree("one"), **tree})
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "not yet" in ran.stderr


def test_a_service_that_ignores_term_is_killed_in_time(stage: Stage, web: App, agent: Agent) -> None:
    script = "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.1; done\n"
    stage.configure(web.config(service=own("job", QUICK + 'stop_within = "1s"\n')))
    web.publish("one", {**web.tree("one"), "config/service/job/run": script})
    assert agent("reconfigure").code == 0
    stubborn = web.pid("job")
    web.publish("two", {**web.tree("two"), "config/service/job/run": RUN})
    assert agent("reconfigure").code == 0
    assert not _alive(stubborn)


def test_a_stopped_service_is_started_again_and_a_killed_one_comes_back(stage: Stage, web: App, agent: Agent) -> None:
    web.publish("one")
    assert agent("reconfigure").code == 0
    first = web.pid()
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while (found := runit.status(web.service())) is None or found.pid in (0, first):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (web.service() / "supervise/control").write_text("d")
    time.sleep(0.5)
    assert agent("reconfigure").code == 0
    assert web.answer() == "one"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _working_in(release: str) -> set[int]:
    return {process.pid for process in processes.all().values() if release in _cwd(process.pid)}


def _cwd(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return ""


def test_a_changed_environment_restarts_only_that_service(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    def configure(value: str) -> None:
        job = own("job", QUICK + f'command = ["sleep", "1000"]\nenv = {{ VALUE = "{value}" }}\n')
        other = own("other", QUICK + 'command = ["sleep", "1000"]\n')
        stage.configure(web.config(service=job + other))

    configure("first")
    web.publish("one")
    assert agent("reconfigure").code == 0
    job, other = web.pid("job"), web.pid("other")
    configure("second")
    assert agent("reconfigure").code == 0
    assert web.pid("other") == other and web.pid("job") != job
    assert b"VALUE=second" in Path(f"/proc/{web.pid('job')}/environ").read_bytes()


def test_an_image_of_a_running_instance_does_not_serve_as_that_instance(
    stage: Stage, web: App, agent: Agent, runsvdir: Supervisor
) -> None:
    """What the firmware calls the instance tells runit's services whether they are at home."""
    firmware = stage.root / "sys/class/dmi/id/board_asset_tag"
    firmware.parent.mkdir(parents=True)
    firmware.write_text("i-0123456789abcdef0\n")
    stage.configure(web.config())
    web.publish("one")
    assert agent("reconfigure").code == 0
    release, pid = web.current, web.pid()
    assert agent("reconfigure").code == 0
    assert web.pid() == pid, "at home, nothing is restarted"

    runsvdir.stop()
    firmware.write_text("i-0fedcba9876543210\n")
    runsvdir.start()
    outer = stage.root / "etc/sv/web.server"
    deadline = time.monotonic() + 60
    while not (found := runit.status(outer)) or found.state != "run":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    assert not runit.is_supervised(web.service())
    with pytest.raises(OSError):
        web.answer(within=0)

    assert agent("reconfigure").code == 0
    assert web.answer() == "one"
    assert web.current == release
