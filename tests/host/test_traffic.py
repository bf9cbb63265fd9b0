"""A node and its balancers: registered once it serves, deregistered before it stops, and never left wrong."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bootagent.sandbox.api import Call
from bootagent.sandbox.balancer_api import SERVICE, LoadBalancing
from bootagent.sandbox.balancers import Balancers
from bootagent.sandbox.cloud import Cloud
from tests.conftest import Agent, agent_argv
from tests.host.stage import App, Stage, free_port

#: Answers /slow after a while, and when it is told to end, ends at once and says when that was.
SLOW_SERVER = """\
import http.server, os, signal, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(2)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(open("VERSION", "rb").read())
    def log_message(self, *words):
        pass
def end(number, frame):
    print("told to end at", time.monotonic(), flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture
def balancers(cloud: Cloud) -> Iterator[Balancers]:
    with LoadBalancing(cloud) as running:
        yield running


def role(web: App, more: str = "", within: str = "90s", drain: str = "20s") -> str:
    """A role with the group ``front`` at the app's port and the classic balancer ``old``, and one with nothing."""
    return f"""
[roles.web]
apps = ["web"]
[roles.web.traffic]
target_groups = [{{ group = "front", port = {web.port} }}]
load_balancers = ["old"]
within = "{within}"
drain_within = "{drain}"
{more}
[roles.idle]
apps = []
"""


def patient(app: App) -> str:
    """The app's configuration for a busy host."""
    return app.config().replace('within = "4s"', 'within = "12s"')


@pytest.fixture
def fronted(stage: Stage, web: App, balancers: Balancers) -> App:
    """``web`` behind both kinds, with a release published."""
    balancers.add_group("front", 80)
    balancers.add_load_balancer("old", web.port)
    stage.configure(patient(web), roles=role(web))
    web.publish("one")
    return web


def told(stage: Stage) -> list[str]:
    """The balancers the node remembers."""
    path = stage.root / "var/lib/bootagent/traffic.json"
    return [one["id"] for one in json.loads(path.read_text())["all"]] if path.exists() else []


def actions(cloud: Cloud) -> list[str]:
    return [call.action for call in cloud.calls if call.service == SERVICE]


def at(cloud: Cloud, action: str, look: Callable[[], object], *, done: bool = False) -> list[object]:
    """What ``look`` returns whenever a call is made (or, with ``done``, carried out and not yet answered)."""
    seen: list[object] = []

    def hear(call: Call, is_done: bool) -> None:
        if (call.action, is_done) == (action, done):
            seen.append(look())

    cloud.api.listen(hear)
    return seen


def serves(app: App) -> bool:
    try:
        return bool(app.answer(within=0))
    except OSError:
        return False


def test_a_node_is_registered_once_it_serves_and_let_go_before_it_stops_serving(
    cloud: Cloud, stage: Stage, fronted: App, balancers: Balancers, agent: Agent
) -> None:
    here = cloud.instance.instance_id
    served = at(cloud, "RegisterTargets", lambda: serves(fronted))
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert served == [True]
    assert balancers.route("front", here, fronted.port) and balancers.route("old", here)
    assert "gets requests from target group front" in ran.stdout and "load balancer old" in ran.stdout

    # A rerun asks each balancer once, and changes nothing.
    cloud.api.forget_calls()
    pid, before = fronted.pid(), len(balancers.history)
    assert agent("reconfigure").code == 0
    assert actions(cloud) == ["DescribeTargetHealth", "DescribeInstanceHealth"]
    assert fronted.pid() == pid and len(balancers.history) == before
    shown = agent("plan")
    assert shown.code == 0 and "announce" in shown.stdout and "register with target group front" in shown.stdout
    assert "target group front" in agent("status").stdout

    # A release that does not work is taken back, and the node stays where it is.
    fronted.publish("two", {**fronted.tree("two"), "server.py": "raise SystemExit(1)"})
    assert agent("reconfigure").code == 3
    assert balancers.route("old", here)
    assert not [one for one in balancers.history[before:] if one[3] in ("draining", "initial")]

    # Another role: first the balancers, then the services.
    served = at(cloud, "DeregisterTargets", lambda: serves(fronted))
    cloud.set_tag("Role", "idle")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert served == [True] and not serves(fronted)
    assert balancers.state("front", here) == balancers.state("old", here) == "gone"
    assert told(stage) == []

    # And where no traffic is configured, nobody is asked.
    cloud.api.forget_calls()
    assert agent("reconfigure").code == 0
    assert actions(cloud) == []


def test_a_group_made_anew_and_what_others_have_registered(
    cloud: Cloud, stage: Stage, fronted: App, balancers: Balancers, agent: Agent
) -> None:
    # A second port of the instance is ours; a third, and another instance, are somebody else's.
    here, second, third = cloud.instance.instance_id, free_port(), free_port()
    more = f'{{ group = "front", port = {second} }}'
    ports = role(fronted).replace("target_groups = [", f"target_groups = [{more}, ")
    balancers.add_group("others", third)
    other = cloud.api.ec2(cloud.region).run_instances(ImageId="ami-12345678", MinCount=1, MaxCount=1)["Instances"][0]
    with balancers.lock:
        for one in balancers.balancers.values():
            balancers.register(one, other["InstanceId"], one.port)
            if not one.classic:
                balancers.register(one, here, third)
    stage.configure(patient(fronted), roles=ports)
    with http.server.ThreadingHTTPServer(("127.0.0.1", second), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        ran = agent("reconfigure")
        assert ran.code == 0, ran.stderr
        server.shutdown()
    assert len(told(stage)) == 3
    stage.configure(patient(fronted), roles=role(fronted))
    assert agent("reconfigure").code == 0
    assert balancers.route("front", here, fronted.port) and not balancers.route("front", here, second)

    balancers.remove("front")
    fresh = balancers.add_group("front", 80)
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert balancers.route("front", here, fronted.port) and sorted(told(stage)) == [fresh, "old"]

    assert agent("stop").code == 0
    assert told(stage) == [] and balancers.state("front", here) == "gone"
    found = {(one.name, who) for one in balancers.balancers.values() for who, _ in one.members}
    assert found == {("old", other["InstanceId"]), ("others", other["InstanceId"]), ("others", here)}


def test_a_balancer_that_never_finds_the_node_healthy_fails_the_run_and_not_the_release(
    cloud: Cloud, stage: Stage, fronted: App, balancers: Balancers, agent: Agent
) -> None:
    stage.configure(patient(fronted), roles=role(fronted, within="3s"))
    balancers.faults.never_healthy = True
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "gave up waiting for target group front" in ran.stderr and "Target.Timeout: Request timed out" in ran.stderr
    assert "load balancer old OutOfService" in ran.stderr and "security group" in ran.stderr
    assert serves(fronted) and stage.release_state("web", fronted.current) == "good"
    balancers.faults.never_healthy = False
    assert agent("reconfigure").code == 0
    assert balancers.route("front", cloud.instance.instance_id)


def test_what_aws_refuses_is_told_and_what_it_delays_is_waited_for(
    cloud: Cloud, stage: Stage, fronted: App, balancers: Balancers, agent: Agent
) -> None:
    cloud.api.fail(SERVICE, "RegisterTargets", code="AccessDenied", status=403)
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "allow elasticloadbalancing:RegisterTargets to the instance's role" in ran.stderr
    assert balancers.route("old", cloud.instance.instance_id)  # which was not kept from its turn

    cloud.api.fail(SERVICE, "RegisterTargets", code="Throttling", status=400, times=6)
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert "waiting for Elastic Load Balancing to answer" in ran.stderr
    assert balancers.route("front", cloud.instance.instance_id)

    # When several refuse, each is told, and what AWS said of the first is kept.
    stage.configure(patient(fronted), roles=role(fronted).replace('"front"', '"frond"').replace('"old"', '"odl"'))
    ran = agent("reconfigure")
    assert ran.code == 1 and "TargetGroupNotFound" in ran.stderr and "LoadBalancerNotFound" in ran.stderr
    (failure,) = stage.state()["last_run"]["failures"]
    assert (failure["code"], failure["iam_action"]) == (
        "TargetGroupNotFound",
        "elasticloadbalancing:DescribeTargetGroups",
    )

    stage.configure(patient(fronted), roles=role(fronted).replace('"front"', '"frond"'))
    ran = agent("reconfigure")
    assert ran.code == 1 and "target group frond" in ran.stderr and "make it, or name another" in ran.stderr
    assert balancers.state("front", cloud.instance.instance_id) == "gone"


def test_a_node_that_serves_nothing_gets_no_traffic(
    cloud: Cloud, stage: Stage, fronted: App, balancers: Balancers, agent: Agent
) -> None:
    here = cloud.instance.instance_id
    assert agent("reconfigure").code == 0
    broken = patient(fronted).replace(f"127.0.0.1:{fronted.port}/", "127.0.0.1:1/").replace('"12s"', '"1s"')
    stage.configure(broken, roles=role(fronted))
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "gets no more requests from target group front" in ran.stdout
    assert not balancers.route("front", here) and not balancers.route("old", here)
    stage.configure(patient(fronted), roles=role(fronted))
    assert agent("reconfigure").code == 0
    assert balancers.route("front", here) and balancers.route("old", here)


def test_a_run_that_ends_before_it_has_a_plan_leaves_traffic_where_something_serves(
    cloud: Cloud, stage: Stage, fronted: App, balancers: Balancers, agent: Agent
) -> None:
    here = cloud.instance.instance_id
    assert agent("reconfigure").code == 0
    volume = '[roles.web.volumes.data]\nmountpoint = "/data"\nsnapshot = { Name = "seed" }\n'
    stage.configure(patient(fronted), roles=role(fronted) + volume)
    assert agent("reconfigure").code == 3  # there is no such snapshot
    assert balancers.route("front", here) and balancers.route("old", here)

    subprocess.run(["sv", "down", fronted.service()], check=True)
    ran = agent("reconfigure")
    assert ran.code == 1 and "Name=seed" in ran.stderr
    assert not balancers.route("front", here) and not balancers.route("old", here)


def test_a_stop_lets_requests_under_way_end(
    cloud: Cloud, stage: Stage, fronted: App, balancers: Balancers, agent: Agent
) -> None:
    here = cloud.instance.instance_id
    for one in balancers.balancers.values():
        one.delay = 3.0
    fronted.publish("slow", {**fronted.tree("slow"), "server.py": SLOW_SERVER})
    assert agent("reconfigure").code == 0
    answers: list[str] = []

    def ask() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{fronted.port}/slow", timeout=20) as response:
            answers.append(response.read().decode())

    client = threading.Thread(target=ask)

    def begin() -> None:
        assert balancers.route("front", here)
        client.start()

    begun = at(cloud, "DeregisterTargets", begin)
    ran = agent("stop")
    client.join()
    assert ran.code == 0, ran.stderr
    assert len(begun) == 1 and answers == ["slow"]
    assert "gets no more requests from target group front" in ran.stdout
    ended = float((stage.root / "var/log/bootagent/web.server/current").read_text().rpartition("at ")[2])
    gone = max(time for time, _, _, state in balancers.history if state == "draining")
    assert gone + 2.9 < ended
    assert told(stage) == []
    # And all is well again when somebody wants it.
    assert agent("reconfigure").code == 0
    assert balancers.route("front", here) and balancers.route("old", here)


def test_a_stop_waits_no_longer_than_it_may(
    cloud: Cloud, stage: Stage, fronted: App, balancers: Balancers, agent: Agent
) -> None:
    stage.configure(patient(fronted), roles=role(fronted, drain="2s"))
    assert agent("reconfigure").code == 0
    balancers.faults.never_drained = True
    begun = time.monotonic()
    ran = agent("stop")
    assert ran.code == 0, ran.stderr
    assert "target group front" in ran.stderr and "still drains; going on" in ran.stderr
    assert not serves(fronted) and time.monotonic() - begun < 60


def test_a_stop_goes_on_without_aws(stage: Stage, fronted: App, balancers: Balancers, agent: Agent) -> None:
    assert agent("reconfigure").code == 0
    begun = time.monotonic()
    ran = agent("stop", env={"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    assert ran.code == 1
    assert "deregister from every balancer" in ran.stderr and "EndpointConnectionError" in ran.stderr
    assert not serves(fronted) and time.monotonic() - begun < 90
    # What could not be done is not forgotten.
    assert len(told(stage)) == 2
    assert agent("stop").code == 0
    assert told(stage) == []


@pytest.mark.parametrize(
    ("action", "done"), [("RegisterTargets", False), ("RegisterTargets", True), ("DeregisterTargets", True)]
)
def test_a_killed_run_leaves_nothing_that_the_next_does_not_put_right(
    cloud: Cloud, stage: Stage, fronted: App, balancers: Balancers, agent: Agent, action: str, done: bool
) -> None:
    here = cloud.instance.instance_id
    if action == "DeregisterTargets":
        assert agent("reconfigure").code == 0
        cloud.set_tag("Role", "idle")
    _killed_at(cloud, stage.root, action, done)
    # Whatever it had begun, the record tells of it.
    assert balancers.state("front", here) == "gone" or told(stage)
    if action == "DeregisterTargets":
        assert agent("reconfigure").code == 0
        assert not balancers.route("front", here) and not balancers.route("old", here)
        cloud.set_tag("Role", "web")
    assert agent("reconfigure").code == 0
    assert balancers.route("front", here) and balancers.route("old", here)
    assert len(told(stage)) == 2


def _killed_at(cloud: Cloud, root: Path, action: str, done: bool) -> None:
    """Run the agent, and kill it when it makes a call."""
    process = subprocess.Popen(
        agent_argv(root, "reconfigure"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=cloud.process_environment(),
    )

    def kill(call: Call, is_done: bool) -> None:
        if (call.action, is_done) == (action, done):
            os.kill(process.pid, signal.SIGKILL)

    cloud.api.listen(kill)
    said = process.communicate(timeout=120)[1].decode()
    assert process.returncode == -signal.SIGKILL, said
    cloud.api.listen(None)


def test_an_image_of_a_registered_node_claims_nothing_of_it(
    cloud: Cloud, stage: Stage, fronted: App, balancers: Balancers, agent: Agent
) -> None:
    assert agent("reconfigure").code == 0
    path = stage.root / "var/lib/bootagent/traffic.json"
    record = json.loads(path.read_text())
    other = cloud.api.ec2(cloud.region).run_instances(ImageId="ami-12345678", MinCount=1, MaxCount=1)["Instances"][0]
    record["instance_id"] = other["InstanceId"]
    for one in record["all"]:
        one["boot_id"] = "of another machine"
    path.write_text(json.dumps(record))
    with balancers.lock:
        for balancer in balancers.balancers.values():
            balancers.register(balancer, other["InstanceId"], fronted.port)
    cloud.api.forget_calls()
    assert agent("stop").code == 0
    assert actions(cloud) == []
    assert agent("reconfigure").code == 0
    assert "DeregisterTargets" not in actions(cloud)
    for name in ("front", "old"):
        assert balancers.route(name, other["InstanceId"]) and balancers.route(name, cloud.instance.instance_id)
