"""What is planned for the node as a whole, and what it remembers of its balancers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bootagent import plan
from bootagent.config.model import Config, ElasticIp, TargetGroup, Traffic
from bootagent.deadline import Deadline
from bootagent.journal import boot_id
from bootagent.machine import Machine
from bootagent.plan import Lane, Moment, Plan, Told
from bootagent.plan.traffic import UNMOUNT_SECONDS
from bootagent.services.runscript import HARDWARE_ID
from bootagent.steps.deregistered import Deregistered
from bootagent.steps.elastic_ip import ElasticIpGivenBack, ElasticIpHeld
from bootagent.steps.registered import Registered
from bootagent.traffic import registrations
from bootagent.traffic.elastic_ip import Claim
from bootagent.traffic.registrations import Balancer, Registration
from tests.unit.test_plan import BOOT, NOW, config

ARN = "arn:aws:elasticloadbalancing:eu-west-1:123456789012:targetgroup/front/0123456789abcdef"
TRAFFIC = Traffic(None, (TargetGroup("front", None), TargetGroup(ARN, 8080)), ("old",), 300.0, 60.0)
BALANCERS = (Balancer("target group", "front"), Balancer("target group", ARN, 8080), Balancer("load balancer", "old"))
CONFIG = config()
HERE = Moment(NOW, BOOT, "eu-west-1", instance_id="i-1")
BEHIND = replace(CONFIG, traffic=TRAFFIC)
REGISTERED = Registered(BALANCERS, "i-1", HERE.region, 300.0, 60.0)
TOLD = Told(("target group front", "load balancer old"))


def announced(role: Config = BEHIND, told: Told = TOLD, moment: Moment = HERE) -> Lane | None:
    return plan.with_traffic(Plan(()), role, told, moment).announce


def test_a_role_without_traffic_has_no_lane_for_it() -> None:
    made = plan.with_traffic(Plan(()), CONFIG, Told(), HERE)
    assert made == Plan(())


def test_balancers_are_told_when_all_serves() -> None:
    lane = announced(told=Told())
    assert lane is not None and (lane.app, lane.intent) == ("traffic", "announce")
    assert lane.steps == {"announce": (REGISTERED,)}
    assert "front, target group front (port 8080), load balancer old" in lane.reason


def test_what_is_no_longer_named_is_let_go_first() -> None:
    lane = announced()
    assert lane is not None and lane.steps["announce"] == (Deregistered(BALANCERS, "i-1"), REGISTERED)
    assert plan.former_traffic(BEHIND, HERE) == Deregistered(BALANCERS, "i-1")
    gone = announced(CONFIG)
    assert gone is not None and gone.intent == "withdraw"
    assert gone.steps == {"announce": (Deregistered((), "i-1"),)}


def test_a_node_that_is_only_prepared_gets_no_traffic() -> None:
    resting = replace(HERE, serving=False)
    assert announced(told=Told(), moment=resting) is None
    lane = announced(moment=resting)
    assert lane is not None and lane.steps == {"announce": (Deregistered((), "i-1"),)}
    assert plan.former_traffic(BEHIND, resting) == Deregistered((), "i-1")


def test_a_node_that_does_not_serve_leaves_without_waiting() -> None:
    made = plan.with_traffic(Plan(()), BEHIND, Told(TOLD.balancers, "eipalloc-1"), HERE)
    assert made.withdraw is not None
    assert made.withdraw.steps["announce"] == (
        Deregistered((), "i-1", drain_most=0.0),
        ElasticIpGivenBack("i-1", 30.0),
    )
    assert plan.with_traffic(Plan(()), BEHIND, Told(), HERE).withdraw is None


def test_an_elastic_ip_is_taken_before_balancers_are_told_and_given_back_last() -> None:
    ip = replace(BEHIND, traffic=replace(TRAFFIC, elastic_ip=ElasticIp("eipalloc-1", ())))
    lane = announced(ip, Told(address="eipalloc-1"))
    held = ElasticIpHeld(Claim("eipalloc-1", (), "i-1", HERE.region), 300.0)
    assert lane is not None and lane.steps["announce"] == (held, REGISTERED)
    former = announced(BEHIND, Told(address="eipalloc-1"))
    assert former is not None and former.steps["announce"] == (REGISTERED, ElasticIpGivenBack("i-1", 30.0))


def test_without_an_identity_nothing_can_be_registered() -> None:
    lane = announced(told=Told(), moment=replace(HERE, instance_id=None))
    assert lane is not None and lane.intent == "nothing" and "instance metadata" in lane.reason


def test_an_app_may_be_called_traffic() -> None:
    app = replace(CONFIG.apps[0], name="traffic")
    lane = announced(replace(BEHIND, apps=(app,)))
    assert lane is not None and lane.app == "traffic of the role"


def test_a_stop_takes_traffic_off_before_services() -> None:
    until = Deadline(at=100.0, later=30.0, reserve=20.0)
    lane = plan.off(Told(("target group front",), "eipalloc-1"), "somebody asked", until)
    assert lane.steps["drain"] == (Deregistered((), None, hurried=True, until=until),)
    last = Deadline(at=100.0, reserve=UNMOUNT_SECONDS)
    assert lane.steps["remove"] == (ElasticIpGivenBack(None, 30.0, hurried=True, until=last),)
    assert plan.STOPPING.index("drain") < plan.STOPPING.index("stop") < plan.STOPPING.index("remove")
    assert set(lane.steps) == {"drain", "remove"}
    assert "target group front, elastic IP eipalloc-1; somebody asked" in lane.reason


# --- what is remembered ------------------------------------------------------------------------------------------


def registration(port: int = 80, *, own: bool = True, boot: str | None = None) -> Registration:
    return Registration("target group", ARN, port, own, 60.0, boot or boot_id())


@pytest.mark.parametrize(
    ("balancer", "told", "same"),
    [
        (Balancer("target group", "front"), registration(), True),
        (Balancer("target group", ARN), registration(), True),
        (Balancer("target group", "front", 80), registration(), True),
        (Balancer("target group", "front", 8080), registration(8080, own=False), True),
        (Balancer("target group", "front"), registration(8080, own=False), False),
        (Balancer("target group", "front", 8080), registration(), False),
        (Balancer("target group", "fron"), registration(), False),
        (Balancer("target group", "ont"), registration(), False),
        (Balancer("load balancer", ARN), registration(), False),
        (Balancer("load balancer", "old"), Registration("load balancer", "old", None, True, 1.0, ""), True),
    ],
)
def test_a_registration_is_known_by_whatever_names_the_group(
    balancer: Balancer, told: Registration, same: bool
) -> None:
    assert told.is_of(balancer) is same


def test_a_registration_is_remembered_until_it_is_gone(tmp_path: Path) -> None:
    machine, one, two = Machine(tmp_path), registration(), registration(8080, own=False)
    assert registrations.load(machine, "i-1") is None
    registrations.add(machine, "i-1", "eu-west-1", one)
    registrations.add(machine, "i-1", "eu-west-1", two)
    registrations.add(machine, "i-1", "eu-west-1", replace(one, drain_within=5.0))
    known = registrations.load(machine, "i-1")
    assert known is not None and known.all == (two, replace(one, drain_within=5.0))
    registrations.remove(machine, "i-1", one)
    registrations.remove(machine, "i-1", two)
    assert registrations.load(machine, "i-1") is None
    assert not machine.real(registrations.PATH).exists()


def test_an_image_brings_nothing_along(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    registrations.add(machine, "i-1", "eu-west-1", registration(boot="another"))
    assert registrations.load(machine, "i-2") is None
    assert registrations.load(machine, None) is None
    assert registrations.load(machine, "i-1") is not None
    # The firmware of a Nitro instance tells that it is the one, without being asked over the network.
    hardware = machine.real(HARDWARE_ID)
    hardware.parent.mkdir(parents=True)
    hardware.write_text("i-1\n")
    assert registrations.load(machine, None) is not None
    # What a new instance registers takes the place of what it brought along.
    registrations.add(machine, "i-2", "eu-west-1", registration())
    known = registrations.load(machine, "i-2")
    assert known is not None and known.all == (registration(),)
    assert registrations.load(machine, "i-1") is None


def test_only_what_was_told_in_this_boot_counts_unasked(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    registrations.add(machine, "i-1", None, registration(boot="another"))
    registrations.add(machine, "i-1", None, registration(8080, own=False))
    known = registrations.load(machine, None)
    assert known is not None and [one.port for one in known.all] == [8080]


@pytest.mark.parametrize("content", ["", "[]", '{"version": 2}', json.dumps({"version": 1, "instance_id": 3})])
def test_a_damaged_file_is_set_aside(tmp_path: Path, content: str) -> None:
    machine = Machine(tmp_path)
    path = machine.real(registrations.PATH)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert registrations.load(machine, "i-1") is None
    assert path.with_name("traffic.json.damaged").exists()
