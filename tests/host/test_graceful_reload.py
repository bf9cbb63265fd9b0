"""A new release taken up by a signal: nobody who asks meanwhile is turned away."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.conftest import Agent
from tests.host.stage import App, Stage

#: One process. On HUP it begins anew as the program that current has now, with the socket it has. What comes meanwhile
#: waits in the socket's queue.
REPLACES_ITSELF = """\
import http.server, os, signal, socket, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
given = os.environ.get("LISTENER")
listener = socket.socket(fileno=int(given)) if given else socket.create_server(
    ("127.0.0.1", int(os.environ["PORT"])), backlog=128)
version = open("VERSION", "rb").read()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(version)
    def log_message(self, *words):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket, server.timeout = listener, 0.05
told = []
signal.signal(signal.SIGHUP, lambda *_: told.append(1))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
while not told:
    server.handle_request()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
os.set_inheritable(listener.fileno(), True)
os.environ["LISTENER"] = str(listener.fileno())
os.chdir(os.environ["CURRENT"])
os.execv(sys.executable, [sys.executable, "server.py"])
"""
#: A master that keeps the socket, and a worker that answers. On USR2 it starts a worker of what current has now, and
#: ends the old one once that is at work; one that dies before is not missed.
MASTER = """\
import os, signal, socket, subprocess, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM, signal.SIGCHLD})
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=128)
def start():
    reading, writing = os.pipe()
    worker = subprocess.Popen([sys.executable, "worker.py", str(listener.fileno()), str(writing)],
        cwd=os.environ["CURRENT"], pass_fds=[listener.fileno(), writing])
    os.close(writing)
    at_work = os.read(reading, 1) == b"x"
    os.close(reading)
    if not at_work:
        time.sleep(0.3)
        worker.kill()
        worker.wait()
    return worker if at_work else None
worker = start()
if worker is None:
    sys.exit("the worker has died")
while True:
    got = signal.sigwait({signal.SIGUSR2, signal.SIGTERM})
    fresh = start() if got == signal.SIGUSR2 else None
    if fresh or got == signal.SIGTERM:
        worker.terminate()
        worker.wait()
    if got == signal.SIGTERM:
        sys.exit(0)
    worker = fresh or worker
"""
WORKER = """\
import http.server, os, signal, socket, sys
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2, signal.SIGTERM, signal.SIGCHLD})
version = open("VERSION", "rb").read()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(version)
    def log_message(self, *words):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket, server.timeout = socket.socket(fileno=int(sys.argv[1])), 0.05
server.socket.setblocking(False)
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
os.write(int(sys.argv[2]), b"x")
while not told:
    server.handle_request()
"""


def _config(web: App, reload: str, *, own: str = "", stable_for: str = "600ms", within: str = "8s") -> str:
    return web.config(
        service=f"""
[apps.web.services.server]
{own or 'command = ["python3", "server.py"]'}
env = {{ PORT = "{web.port}", CURRENT = "{web.deploy_to}/current" }}
reload = "{reload}"
stable_for = "{stable_for}"
stop_within = "3s"
check = {{ http = "http://127.0.0.1:{web.port}/", within = "{within}" }}
"""
    )


def refused(stage: Stage, web: App, agent: Agent, *, because: str, serves: str) -> None:
    """The newest release is found bad, and the one before it serves."""
    ran = agent("reconfigure")
    assert ran.code == 3, ran.stderr
    assert because in ran.stderr
    assert web.answer() == serves
    assert stage.release_state("web", max(web.releases)) == "bad"


@contextmanager
def hammered(web: App) -> Iterator[Counter[str]]:
    """Ask all the time, two at once; what was answered, how often. What failed is among it as an error."""
    seen: Counter[str] = Counter()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{web.port}/", timeout=20) as response:
                    seen[response.read().decode()] += 1
                time.sleep(0.005)  # the machine has other work, too
            except OSError as error:
                seen[f"error: {error}"] += 1
                time.sleep(0.05)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_process_that_replaces_itself_is_never_away(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(_config(web, "HUP"))

    def publish(version: str, server: str = REPLACES_ITSELF) -> None:
        web.publish(version, {"VERSION": version, "server.py": server})

    publish("one")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    first, pid = web.current, web.pid()

    publish("two")
    with hammered(web) as seen:
        ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert set(seen) == {"one", "two"}, seen
    assert (web.answer(), web.pid()) == ("two", pid)
    assert "HUP to web.server" in ran.stderr
    assert agent("reconfigure").code == 0
    assert web.pid() == pid

    with hammered(web) as seen:
        ran = agent("rollback")
    assert ran.code == 0, ran.stderr
    assert set(seen) == {"one", "two"}, seen
    assert (web.answer(), web.pid(), web.current) == ("one", pid, first)

    # One that does not start is no better for being told by a signal.
    publish("three", "raise SystemExit('three is broken')\n")
    ran = agent("reconfigure")
    assert ran.code == 3, ran.stderr
    assert "three is broken" in ran.stderr and "crashed" in ran.stderr
    assert web.answer() == "one"
    assert stage.release_state("web", max(web.releases)) == "bad"

    # Another definition is not to be had by a signal.
    pid = web.pid()
    stage.configure(_config(web, "HUP").replace("env = {", 'env = { MORE = "1",'))
    assert agent("reconfigure").code == 3
    assert web.pid() != pid


def test_a_control_script_changes_the_workers(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(_config(web, "HUP", own="# its own", stable_for="2s"))
    scripts = {
        "config/service/server/run": '#!/bin/sh\nexec 2>&1\ncd "$CURRENT" && exec python3 master.py\n',
        "config/service/server/control/h": '#!/bin/sh\necho "HUP by uid $(id -u)"\nkill -USR2 "$(cat supervise/pid)"\n',
        "master.py": MASTER,
    }

    def publish(version: str, worker: str = WORKER) -> None:
        web.publish(version, {**scripts, "VERSION": version, "worker.py": worker})

    publish("one")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    pid = web.pid()
    publish("two")
    with hammered(web) as seen:
        ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert set(seen) == {"one", "two"}, seen
    assert (web.answer(), web.pid()) == ("two", pid)
    log = (stage.root / "var/log/bootagent/web.server/current").read_text()
    uid = web.service().joinpath("run").stat().st_uid
    assert f"HUP by uid {uid}" in log

    # The old worker goes on answering while the new one dies: that is no release that works.
    publish("three", "raise SystemExit('three is broken')\n")
    refused(stage, web, agent, because="three is broken", serves="two")


def test_a_worker_that_takes_long_to_load_and_then_dies_is_not_taken_for_good(
    stage: Stage, web: App, agent: Agent
) -> None:
    """It is up for longer than the service must be, while the old one answers."""
    stage.configure(_config(web, "USR2", own="# its own", stable_for="400ms", within="12s"))
    scripts = {"config/service/server/run": '#!/bin/sh\nexec 2>&1\ncd "$CURRENT" && exec python3 master.py\n'}

    def publish(version: str, worker: str) -> None:
        web.publish(version, {**scripts, "master.py": MASTER, "VERSION": version, "worker.py": worker})

    publish("one", WORKER)
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    publish("two", "import time\ntime.sleep(3)\nraise SystemExit('two is broken')\n")
    refused(stage, web, agent, because="two is broken", serves="one")

    # One that takes as long and then works is waited for.
    pid = web.pid()
    publish("three", f"import time\ntime.sleep(3)\n{WORKER}")
    with hammered(web) as seen:
        ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert set(seen) == {"one", "three"}, seen
    assert (web.answer(), web.pid()) == ("three", pid)


#: Takes a HUP for nothing.
HEEDS_NOTHING = """\
import signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
"""


def test_a_process_that_does_nothing_about_the_signal_is_restarted(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(_config(web, "HUP"))
    server = str(web.tree("")["server.py"])

    def publish(version: str, server: str) -> None:
        web.publish(version, {"VERSION": version, "server.py": server})

    publish("one", HEEDS_NOTHING + server)
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    publish("two", HEEDS_NOTHING + server)
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "two"
    assert "web.server is restarted, as its reload came to nothing" in ran.stderr

    # And so a release that cannot even start is not taken for good because the one before it goes on.
    publish("three", "raise SystemExit('three is broken')\n")
    refused(stage, web, agent, because="three is broken", serves="two")


def test_a_watched_file_that_has_changed_is_reloaded(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(
        _config(web, "HUP").replace(
            'user = "nobody"', 'user = "nobody"\nlinked_files = [{ path = "VERSION", from = "s3://deploys/version" }]'
        )
    )
    stage.cloud.put("deploys", "version", b"first")
    web.publish("one", {"server.py": REPLACES_ITSELF})
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    pid = web.pid()
    stage.cloud.put("deploys", "version", b"second")
    with hammered(web) as seen:
        assert agent("reconfigure").code == 0
    assert set(seen) == {"first", "second"}, seen
    assert web.pid() == pid
