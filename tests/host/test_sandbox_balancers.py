"""The simulated load balancers keep the rules of the real ones, as botocore's clients see them."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bootagent import aws
from bootagent.ebs.patience import Patience
from bootagent.errors import AwsError
from bootagent.machine import Machine
from bootagent.sandbox.balancer_api import LoadBalancing
from bootagent.sandbox.balancer_model import HealthCheck
from bootagent.sandbox.balancers import Balancers
from bootagent.sandbox.cloud import Cloud
from bootagent.traffic.balancers import Calls, Verdict, calls
from bootagent.traffic.registrations import Balancer, Kind, Registration
from tests.host.stage import free_port
from tests.waiting import until

pytest_plugins = ("tests.host.ebs_bench",)


class Service:
    """A service on a port of this machine, whose answer can be changed."""

    def __init__(self) -> None:
        self.status = 200
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(service.status)
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service()
    yield running
    running.end()


@pytest.fixture
def balancers(cloud: Cloud, inside: None) -> Iterator[Balancers]:
    with LoadBalancing(cloud) as running:
        yield running


class Bench:
    """One kind of calls about one instance, by the agent's own client."""

    def __init__(self, cloud: Cloud, machine: Machine, kind: Kind, instance_id: str | None = None) -> None:
        self.instance_id = instance_id or cloud.instance.instance_id
        self.calls: Calls = calls(kind, Patience(machine, 5.0, "AWS"), self.instance_id, cloud.region)
        self.kind = kind

    def find(self, name: str, port: int | None = None) -> Registration:
        return self.calls.find(Balancer(self.kind, name, port), 60.0, "boot")

    def until(self, told: Registration, answer: str) -> Verdict:
        until(lambda: self.calls.verdict(told).answer == answer)
        return self.calls.verdict(told)


def refused(act: Callable[[], object]) -> AwsError:
    with pytest.raises(AwsError) as caught:
        act()
    return caught.value


def test_a_target_is_initial_then_healthy_then_draining_then_gone(
    cloud: Cloud, balancers: Balancers, service: Service, machine: Machine
) -> None:
    arn = balancers.add_group("front", service.port, delay=0.5)
    bench, here = Bench(cloud, machine, "target group"), cloud.instance.instance_id
    told = bench.find("front")
    assert told == bench.find(arn) and (told.id, told.port, told.own_port) == (arn, service.port, True)
    assert bench.calls.verdict(told).said.startswith("unused Target.NotRegistered")
    bench.calls.register(told)
    assert bench.calls.verdict(told).said == "initial Elb.RegistrationInProgress: Target registration is in progress"
    assert not balancers.route("front", here)
    bench.until(told, "healthy")
    assert balancers.route("front", here, service.port) and not balancers.route("front", here, 1)
    bench.calls.register(told)  # nothing new
    assert bench.calls.verdict(told).answer == "healthy"
    bench.calls.deregister(told)
    assert bench.calls.verdict(told).said.startswith("draining Target.DeregistrationInProgress")
    assert not balancers.route("front", here)
    bench.until(told, "absent")
    bench.calls.deregister(told)  # succeeds for what is not there
    assert [state for _, _, _, state in balancers.history] == ["initial", "healthy", "draining"]


def test_health_follows_the_service_by_thresholds(
    cloud: Cloud, balancers: Balancers, service: Service, machine: Machine
) -> None:
    balancers.add_group("front", service.port, check=HealthCheck(interval=0.1, unhealthy=3))
    bench = Bench(cloud, machine, "target group")
    told = bench.find("front")
    bench.calls.register(told)
    bench.until(told, "healthy")
    begun, service.status = time.monotonic(), 500
    verdict = bench.until(told, "not yet")
    assert time.monotonic() - begun > 0.2  # three probes
    assert verdict.said == "unhealthy Target.ResponseCodeMismatch: Health checks failed with these codes: [500]"
    assert verdict.remedy is not None
    # Where nobody is healthy, requests go to all the same.
    assert balancers.route("front", cloud.instance.instance_id)
    service.status = 200
    bench.until(told, "healthy")
    service.end()
    assert "Target.FailedHealthChecks" in bench.until(told, "not yet").said


def test_a_tcp_check_wants_no_answer(cloud: Cloud, balancers: Balancers, service: Service, machine: Machine) -> None:
    service.status = 500
    balancers.add_group("front", service.port, check=HealthCheck(path=None))
    bench = Bench(cloud, machine, "target group")
    told = bench.find("front")
    bench.calls.register(told)
    bench.until(told, "healthy")


def test_a_group_without_a_listener_gives_no_verdict(
    cloud: Cloud, balancers: Balancers, service: Service, machine: Machine
) -> None:
    balancers.add_group("front", service.port, listening=False)
    bench = Bench(cloud, machine, "target group")
    told = bench.find("front")
    bench.calls.register(told)
    time.sleep(0.5)
    verdict = bench.calls.verdict(told)
    assert verdict.answer == "unused" and "Target.NotInUse" in verdict.said and "listener" in str(verdict.remedy)
    assert not balancers.route("front", cloud.instance.instance_id)


def test_a_classic_balancer_is_in_service_until_it_has_drained(
    cloud: Cloud, balancers: Balancers, service: Service, machine: Machine
) -> None:
    balancers.add_load_balancer("old", service.port, delay=0.5)
    bench, here = Bench(cloud, machine, "load balancer"), cloud.instance.instance_id
    told = bench.find("old")
    # One that it has never had it does not know at all.
    asked = {"LoadBalancerName": "old", "Instances": [{"InstanceId": here}]}
    client: Any = aws.elb(cloud.region)
    for ask in (client.describe_instance_health, client.deregister_instances_from_load_balancer):
        with pytest.raises(Exception, match=r"\(InvalidInstance\).*Could not find EC2 instance"):
            ask(**asked)
    assert bench.calls.verdict(told) == Verdict("absent", "not registered")
    bench.calls.deregister(told)
    bench.calls.register(told)
    verdict = bench.calls.verdict(told)
    assert verdict == Verdict("not yet", "OutOfService ELB: Instance registration is still in progress.")
    bench.until(told, "healthy")
    assert balancers.route("old", here)
    service.status = 404
    verdict = bench.until(told, "not yet")
    assert verdict.said.startswith("OutOfService Instance: ") and "UnhealthyThreshold" in verdict.said
    assert "path the health check asks for" in str(verdict.remedy)
    assert not balancers.route("old", here)
    service.status = 200
    bench.until(told, "healthy")
    bench.calls.deregister(told)
    verdict = bench.calls.verdict(told)
    assert verdict == Verdict("draining", "InService: Instance deregistration currently in progress.")
    assert not balancers.route("old", here)
    # Then it does know it still.
    gone = "OutOfService Instance: Instance is not currently registered with the LoadBalancer."
    assert bench.until(told, "absent").said == gone
    bench.calls.deregister(told)


def test_what_is_not_there_is_refused(cloud: Cloud, balancers: Balancers, machine: Machine) -> None:
    balancers.add_group("front", 80)
    balancers.add_group("by-ip", 80, target_type="ip")
    balancers.add_load_balancer("old", 80)
    groups, classic = Bench(cloud, machine, "target group"), Bench(cloud, machine, "load balancer")
    missing = refused(lambda: groups.find("frond"))
    assert missing.code == "TargetGroupNotFound" and "make it, or name another" in str(missing)
    with pytest.raises(Exception, match="takes targets of type ip"):
        groups.find("by-ip")
    assert refused(lambda: classic.calls.register(classic.find("odl"))).code == "LoadBalancerNotFound"
    ghost = Bench(cloud, machine, "target group", "i-0123456789abcdef0")
    assert refused(lambda: ghost.calls.register(ghost.find("front"))).code == "InvalidTarget"
    ghost = Bench(cloud, machine, "load balancer", "i-0123456789abcdef0")
    assert refused(lambda: ghost.calls.register(ghost.find("old"))).code == "InvalidInstance"
    # A balancer that is deleted has let everybody go.
    told, also = groups.find("front"), classic.find("old")
    balancers.remove("front")
    balancers.remove("old")
    groups.calls.deregister(told)
    classic.calls.deregister(also)
    assert groups.calls.verdict(told).answer == classic.calls.verdict(also).answer == "absent"
