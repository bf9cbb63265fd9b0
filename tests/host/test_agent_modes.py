"""One image, any role: real databases in it, and a server that needs them, chosen and ordered by tags alone."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
from pathlib import Path

import pytest

from bootagent.sandbox.cloud import Cloud
from tests.conftest import Agent
from tests.host.stage import USER, App, Stage, free_port

DATABASES = "/opt/databases"
#: In review it gives up at once when a database is not there; elsewhere they are somebody else's.
SERVER = """\
import http.server, os, subprocess, sys
def need(*words):
    if subprocess.run(words, stdout=subprocess.DEVNULL).returncode:
        sys.exit("cannot do without " + words[0])
if os.environ["WHERE"] == "review":
    need("psql", "-h127.0.0.1", "-p" + os.environ["POSTGRES"], "-Upostgres", "-wc", "select 1", "postgres")
    need("redis-cli", "-p", os.environ["REDIS"], "set", "seen", "1")
print("serving in", os.environ["WHERE"], flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["WHERE"].encode())
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
#: Slower to be ready than the server is to give up.
DELAY = "sleep 2; "


class Image:
    """A machine's disk with both databases on it, and what its configuration says."""

    def __init__(self, stage: Stage, web: App) -> None:
        self.stage, self.web = stage, web
        self.postgres, self.redis = free_port(), free_port()
        self.programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
        self.place = stage.root / DATABASES.lstrip("/")
        self.place.mkdir(parents=True)

    def make_databases(self) -> None:
        """What whoever makes the image does once."""
        self._own("redis", "redis")
        self._own("postgres", "postgres")
        user = "postgres" if os.geteuid() == 0 else None
        initdb = [
            str(self.programs / "initdb"),
            "--no-sync",
            "--auth=trust",
            "--username=postgres",
            "--pgdata=postgres",
        ]
        subprocess.run(initdb, cwd=self.place, user=user, group=user, check=True, stdout=subprocess.DEVNULL)

    def _own(self, name: str, user: str) -> None:
        (self.place / name).mkdir(mode=0o700)
        if os.geteuid() == 0:
            entry = pwd.getpwnam(user)
            os.chown(self.place / name, entry.pw_uid, entry.pw_gid)

    def configure(self) -> None:
        postgres = f"exec {self.programs}/postgres -D postgres -p {self.postgres} -h 127.0.0.1 -k ''"
        redis = f"exec redis-server --port {self.redis} --bind 127.0.0.1 --dir redis --save ''"
        env = (
            f'PORT = "{self.web.port}", POSTGRES = "{self.postgres}", REDIS = "{self.redis}", WHERE = "{{environment}}"'
        )
        self.stage.configure(
            f"""
[apps.db]
deploy_to = "{DATABASES}"
source = {{ type = "image", copy = false }}
[apps.db.services.postgres]
user = "postgres"
command = ["sh", "-c", {json.dumps(DELAY + postgres)}]
check = {{ command = ["pg_isready", "-q", "-h127.0.0.1", "-p{self.postgres}"], within = "60s" }}
stable_for = "300ms"
[apps.db.services.redis]
user = "redis"
command = ["sh", "-c", {json.dumps(redis)}]
check = {{ tcp = "127.0.0.1:{self.redis}", within = "60s" }}
stable_for = "300ms"

[apps.web]
deploy_to = "/srv/web"
user = "{USER}"
source = {{ type = "s3", url = "s3://deploys/web/staging.json" }}
[apps.web.services.server]
command = ["python3", "server.py"]
env = {{ {env} }}
after = ["db.postgres", "db.redis"]
check = {{ http = "http://127.0.0.1:{self.web.port}/", within = "60s" }}
stable_for = "300ms"
[apps.web.services.worker]
command = ["sleep", "1000"]
env = {{ QUEUE = "{{tag:Queue}}" }}
after = ["server"]
check = {{ within = "60s" }}
stable_for = "300ms"

[modes.review]
apps = "*"
[modes.production]
apps = ["web"]
narrowed_by = "Service"
""",
            roles="[roles]\n",
        )

    def services(self) -> list[str]:
        """Those that are handed to runsvdir."""
        return sorted(path.name for path in (self.stage.root / "etc/service").iterdir())

    def said(self, service: str) -> list[str]:
        """The lines of a service's log, without their times."""
        lines = (self.stage.root / f"var/log/bootagent/{service}/current").read_text().splitlines()
        return [line.partition(" ")[2] for line in lines]

    def answers(self, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def image(stage: Stage, web: App) -> Image:
    stage.cloud.remove_tag("Role")
    made = Image(stage, web)
    made.configure()
    web.publish("one", {"VERSION": "one", "server.py": SERVER})
    return made


def moved(stage: Stage) -> None:
    """The disk as a new instance has it: its state was learned on another one."""
    path = stage.root / "var/lib/bootagent/state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "instance_id": "i-0fffffffffffffff0"}))


def test_everything_in_review_in_order_and_of_the_same_disk_one_service_in_production(
    image: Image, stage: Stage, web: App, agent: Agent, cloud: Cloud
) -> None:
    image.make_databases()
    cloud.set_tag("Environment", "review")
    cloud.set_tag("Queue", "mail")
    ran = agent("reconfigure", timeout=150)
    assert ran.code == 0, ran.stderr
    assert image.services() == ["db.postgres", "db.redis", "web.server", "web.worker"]
    assert web.answer() == "review"
    assert image.said("web.server") == ["serving in review"], "it was started once, when both were ready"
    pids = web.pid("server"), web.pid("worker")
    assert not (image.place / "current").exists() and not (image.place / "releases").exists()

    ran = agent("reconfigure", timeout=150)
    assert ran.code == 0, ran.stderr
    assert (web.pid("server"), web.pid("worker")) == pids, "nothing is new"
    found = json.loads(agent("status", "--json").stdout)
    assert (found["last_run"]["mode"], found["apps"]["db"]["current"]) == ("review", "image")
    assert "mode review" in agent("status").stdout

    # A mode that is not there changes nothing of what runs.
    cloud.set_tag("Environment", "produktion")
    ran = agent("reconfigure")
    assert ran.code == 2
    assert "no mode 'produktion' (tag Environment); did you mean 'production'?" in ran.stderr
    assert (web.pid("server"), web.pid("worker")) == pids

    # Imaged, and launched with other tags: the worker's tag is not there, and nobody waits for it.
    moved(stage)
    cloud.remove_tag("Queue")
    cloud.set_tag("Environment", "production")
    cloud.set_tag("Service", "web.server")
    ran = agent("reconfigure", timeout=150)
    assert ran.code == 0, ran.stderr
    assert image.services() == ["web.server"]
    assert web.answer() == "production"
    assert not image.answers(image.postgres) and not image.answers(image.redis)
    assert sorted(path.name for path in (stage.root / "etc/sv").iterdir()) == ["web.server"]
    assert (image.place / "postgres/PG_VERSION").exists(), "what the image holds is not ours to remove"


@pytest.mark.parametrize(
    ("environment", "service", "said"),
    [
        ("canary", "web", "no mode 'canary' (tag Environment); known: production, review"),
        (
            "production",
            "sever",
            "names 'sever', which is no service or app of this mode; did you mean 'web.server'? known: ",
        ),
        ("production", "db", "names 'db', which is no service or app of this mode"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_touched(
    image: Image, stage: Stage, agent: Agent, cloud: Cloud, environment: str, service: str, said: str
) -> None:
    cloud.set_tag("Environment", environment)
    cloud.set_tag("Service", service)
    cloud.api.forget_calls()
    ran = agent("run", "--once")
    assert ran.code == 2
    assert said in ran.stderr and "Traceback" not in ran.stderr
    assert image.services() == []
    assert not (stage.root / "etc/sv").exists() and not (stage.root / "srv").exists()
    assert cloud.calls == []
    assert agent("status").code == 2


def test_an_image_without_its_databases_says_so(image: Image, stage: Stage, agent: Agent, cloud: Cloud) -> None:
    image.place.rename(stage.root / "elsewhere")
    cloud.set_tag("Environment", "review")
    cloud.set_tag("Queue", "mail")
    ran = agent("plan")
    assert f"db: nothing (the image has no directory {DATABASES} (make it in the image, or correct" in ran.stdout
