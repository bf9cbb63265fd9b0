"""Elastic IPs against the simulated cloud: who gets one, who waits, and what is given back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootagent.errors import AwsError, BootagentError, MachineError
from bootagent.sandbox.addresses import Addresses
from bootagent.sandbox.cloud import Cloud
from bootagent.steps.elastic_ip import ElasticIpGivenBack, ElasticIpHeld
from bootagent.traffic import elastic_ip, held_address
from bootagent.traffic.elastic_ip import Claim
from tests.host.ebs_world import HearingMachine
from tests.waiting import until

pytest_plugins = ("tests.host.ebs_bench",)

POOL = {"Pool": "web"}
WITHIN = 20.0


@pytest.fixture
def addresses(cloud: Cloud, inside: None) -> Iterator[Addresses]:
    with Addresses(cloud) as running:
        yield running


@pytest.fixture
def other(cloud: Cloud) -> Iterator[Cloud]:
    """Another instance of the same cloud."""
    with Cloud(beside=cloud) as running:
        yield running


def claim(cloud: Cloud, allocation: str | None = None, **tags: str) -> Claim:
    return Claim(allocation, tuple((tags or POOL).items()), cloud.instance.instance_id, cloud.region)


def held(cloud: Cloud, allocation: str | None = None, within: float = WITHIN) -> ElasticIpHeld:
    return ElasticIpHeld(claim(cloud, allocation), within)


def given_back(cloud: Cloud) -> ElasticIpGivenBack:
    return ElasticIpGivenBack(cloud.instance.instance_id, WITHIN)


def actions(cloud: Cloud) -> list[str]:
    return [call.action for call in cloud.calls]


# --- by its allocation id ----------------------------------------------------------------------------------------


def test_an_address_is_taken_once_and_given_back(cloud: Cloud, addresses: Addresses, machine: HearingMachine) -> None:
    wanted, me = addresses.allocate(), cloud.instance.instance_id
    addresses.allocate()
    step = held(cloud, wanted)
    assert not step.is_satisfied(machine)
    assert cloud.calls == [], "what this instance does not remember EC2 is not asked for"
    step.apply(machine)
    assert addresses.holders[wanted] == me
    cloud.api.forget_calls()
    assert step.is_satisfied(machine)
    assert actions(cloud) == ["DescribeAddresses"]
    step.apply(machine)
    assert addresses.history(wanted) == [me], "again is no second association"

    back = given_back(cloud)
    assert not back.is_satisfied(machine)
    back.apply(machine)
    assert set(addresses.holders.values()) == {None}
    assert back.is_satisfied(machine) and not step.is_satisfied(machine)
    cloud.api.forget_calls()
    back.apply(machine)
    assert cloud.calls == []


def test_what_is_shown_late_is_waited_for(cloud: Cloud, addresses: Addresses, machine: HearingMachine) -> None:
    wanted = addresses.allocate()
    addresses.lag = 1.0
    step = held(cloud, wanted)
    step.apply(machine)
    assert step.is_satisfied(machine)
    given_back(cloud).apply(machine)
    cloud.api.forget_calls()
    assert elastic_ip.hold(machine, claim(cloud, wanted), WITHIN) == "203.0.113.1"
    assert machine.notes.count("waiting for EC2 to show who has 203.0.113.1") == 2


def test_the_new_node_waits_for_the_old_one_to_give_it_back(
    cloud: Cloud, other: Cloud, addresses: Addresses, machine: HearingMachine
) -> None:
    wanted = addresses.allocate()
    addresses.give(wanted, other.instance.instance_id)
    worker = threading.Thread(target=held(cloud, wanted).apply, args=(machine,))
    worker.start()
    until(lambda: machine.notes)
    assert addresses.holders[wanted] == other.instance.instance_id
    addresses.take(wanted)
    worker.join(WITHIN)
    assert addresses.holders[wanted] == cloud.instance.instance_id


def test_it_is_never_taken_from_another_who_is_named(
    cloud: Cloud, other: Cloud, addresses: Addresses, machine: HearingMachine
) -> None:
    wanted, holder = addresses.allocate(), other.instance.instance_id
    addresses.give(wanted, holder)
    with pytest.raises(MachineError, match=rf"gave up waiting for the elastic IP .*{wanted}.*holder {holder}"):
        held(cloud, wanted, within=0.3).apply(machine)
    assert addresses.history(wanted) == [holder]
    given_back(cloud).apply(machine)
    assert addresses.history(wanted) == [holder] and addresses.holders[wanted] == holder, "nor given back for it"


def test_what_somebody_has_taken_since_is_left_to_him(
    cloud: Cloud, other: Cloud, addresses: Addresses, machine: HearingMachine
) -> None:
    wanted = addresses.allocate()
    held(cloud, wanted).apply(machine)
    addresses.give(wanted, other.instance.instance_id)
    assert not held(cloud, wanted).is_satisfied(machine)
    given_back(cloud).apply(machine)
    assert addresses.holders[wanted] == other.instance.instance_id
    assert given_back(cloud).is_satisfied(machine)


def test_an_association_made_after_the_look_is_not_ended(
    cloud: Cloud, other: Cloud, addresses: Addresses, machine: HearingMachine
) -> None:
    wanted = addresses.allocate()
    held(cloud, wanted).apply(machine)

    def meanwhile(call: object, done: bool) -> None:
        if getattr(call, "action", "") == "DisassociateAddress" and not done:
            addresses.give(wanted, other.instance.instance_id)

    cloud.api.listen(meanwhile)
    given_back(cloud).apply(machine)
    assert addresses.holders[wanted] == other.instance.instance_id


def test_an_instance_that_is_not_running_yet_is_waited_for(
    cloud: Cloud, addresses: Addresses, machine: HearingMachine
) -> None:
    wanted = addresses.allocate()
    cloud.api.fail("ec2", "AssociateAddress", code="InvalidInstanceID", status=400, times=2)
    held(cloud, wanted).apply(machine)
    assert addresses.holders[wanted] == cloud.instance.instance_id
    assert actions(cloud).count("AssociateAddress") == 3


def test_throttling_is_waited_out_and_a_denial_is_not(
    cloud: Cloud, addresses: Addresses, machine: HearingMachine
) -> None:
    wanted = addresses.allocate()
    cloud.api.fail("ec2", "AssociateAddress", code="RequestLimitExceeded", times=6)
    held(cloud, wanted).apply(machine)
    cloud.api.fail("ec2", "DisassociateAddress", code="UnauthorizedOperation", status=403)
    with pytest.raises(AwsError, match="allow ec2:DisassociateAddress to the instance's role"):
        given_back(cloud).apply(machine)
    assert not given_back(cloud).is_satisfied(machine), "it is still remembered"


def test_an_address_that_is_none(cloud: Cloud, addresses: Addresses, machine: HearingMachine) -> None:
    with pytest.raises(AwsError, match="correct the allocation id") as caught:
        held(cloud, "eipalloc-0123456789abcdef0").apply(machine)
    assert caught.value.code == "InvalidAllocationID.NotFound"


def test_another_address_of_this_instance_is_not_taken_from_it(
    cloud: Cloud, addresses: Addresses, machine: HearingMachine
) -> None:
    wanted, theirs = addresses.allocate(), addresses.allocate()
    addresses.give(theirs, cloud.instance.instance_id)
    with pytest.raises(BootagentError, match=rf"has the elastic IP 203.0.113.2 \({theirs}\) already"):
        held(cloud, wanted).apply(machine)
    assert addresses.holders == {wanted: None, theirs: cloud.instance.instance_id}


def test_another_configuration_gives_back_what_the_last_one_took(
    cloud: Cloud, addresses: Addresses, machine: HearingMachine
) -> None:
    first, second = addresses.allocate(), addresses.allocate()
    held(cloud, first).apply(machine)
    step = held(cloud, second)
    assert not step.is_satisfied(machine)
    step.apply(machine)
    assert addresses.holders == {first: None, second: cloud.instance.instance_id}
    assert step.is_satisfied(machine) and not held(cloud, first).is_satisfied(machine)


# --- of a pool ---------------------------------------------------------------------------------------------------


def test_one_of_a_pool_is_kept(cloud: Cloud, addresses: Addresses, machine: HearingMachine) -> None:
    pool = [addresses.allocate(POOL) for _ in range(5)]
    addresses.allocate({"Pool": "other"})
    step = held(cloud)
    step.apply(machine)
    (mine,) = [one for one, holder in addresses.holders.items() if holder]
    assert mine in pool
    assert step.is_satisfied(machine)
    addresses.allocate(POOL)
    step.apply(machine)
    assert addresses.holders[mine] == cloud.instance.instance_id
    assert sum(holder is not None for holder in addresses.holders.values()) == 1


def test_what_something_else_than_an_instance_has_is_not_free(
    cloud: Cloud, addresses: Addresses, machine: HearingMachine
) -> None:
    gateway, free = addresses.allocate(POOL), addresses.allocate(POOL)
    addresses.give(gateway, "eni-0a0a0a0a0a0a0a0a0")
    held(cloud).apply(machine)
    assert addresses.holders == {gateway: "eni-0a0a0a0a0a0a0a0a0", free: cloud.instance.instance_id}


def test_a_pool_without_a_free_one_says_how_many_there_are(
    cloud: Cloud, other: Cloud, addresses: Addresses, machine: HearingMachine
) -> None:
    addresses.give(addresses.allocate(POOL), other.instance.instance_id)
    addresses.give(addresses.allocate(POOL), "eni-0a0a0a0a0a0a0a0a0")
    with pytest.raises(MachineError, match=r"elastic IP with Pool=web to be free .*taken all 2.*more"):
        held(cloud, within=2.0).apply(machine)
    assert machine.notes == ["waiting for an elastic IP with Pool=web to be free"]


def test_a_pool_that_is_none(cloud: Cloud, addresses: Addresses, machine: HearingMachine) -> None:
    addresses.allocate({"Pool": "w*b"})
    with pytest.raises(BootagentError, match="there is no elastic IP with the tags Pool=web in eu-west-1"):
        held(cloud).apply(machine)


def test_nodes_do_not_all_begin_with_the_same(cloud: Cloud, addresses: Addresses, tmp_path: Path) -> None:
    for _ in range(8):
        addresses.allocate(POOL)
    firsts = set()
    with Cloud(beside=cloud) as second, Cloud(beside=cloud) as third, Cloud(beside=cloud) as fourth:
        for node in (cloud, second, third, fourth):
            held(node).apply(HearingMachine(tmp_path / node.instance.instance_id))
            firsts |= {key for key, holder in addresses.holders.items() if holder == node.instance.instance_id}
            ElasticIpGivenBack(node.instance.instance_id, WITHIN).apply(
                HearingMachine(tmp_path / node.instance.instance_id)
            )
    assert len(firsts) > 1


@pytest.mark.parametrize("size", [1, 2])
def test_nodes_that_race_never_take_an_address_from_each_other(
    cloud: Cloud, other: Cloud, addresses: Addresses, tmp_path: Path, size: int
) -> None:
    """All see the same addresses free before any of them asks; with too few of them, one goes without."""
    for _ in range(size):
        addresses.allocate(POOL)
    nodes = [cloud, other]
    asking = threading.Barrier(len(nodes))
    first = iter(nodes)  # each node's first call waits for the other's

    def together(call: object, done: bool) -> None:
        if getattr(call, "action", "") == "AssociateAddress" and not done and next(first, None):
            asking.wait(WITHIN)

    cloud.api.listen(together)
    failures: list[BaseException] = []

    def take(node: Cloud) -> None:
        try:
            held(node, within=5.0).apply(HearingMachine(tmp_path / node.instance.instance_id))
        except MachineError as error:
            failures.append(error)

    threads = [threading.Thread(target=take, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(failures) == len(nodes) - size
    assert all(len(addresses.history(one)) == 1 for one in addresses.holders), "nobody lost what he had"
    assert len(set(addresses.holders.values())) == size
    refused = len([one for one in cloud.calls if one.action == "AssociateAddress"]) - size
    assert refused >= (1 if size == 1 else 0)


# --- whose it is -------------------------------------------------------------------------------------------------


def test_an_image_of_the_instance_gives_back_nothing_of_it(
    cloud: Cloud, other: Cloud, addresses: Addresses, machine: HearingMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = addresses.allocate(POOL)
    held(cloud).apply(machine)
    assert not ElasticIpGivenBack(None, WITHIN).is_satisfied(machine), "without metadata, in the same boot"
    monkeypatch.setattr(held_address, "boot_id", lambda: "another boot")
    for step in (ElasticIpGivenBack(None, WITHIN), given_back(other)):
        assert step.is_satisfied(machine)
        step.apply(machine)
    assert addresses.holders[wanted] == cloud.instance.instance_id
    tag = machine.real("/sys/class/dmi/id/board_asset_tag")
    tag.parent.mkdir(parents=True)
    tag.write_text(f"{cloud.instance.instance_id}\n")
    ElasticIpGivenBack(None, WITHIN, hurried=True).apply(machine)
    assert addresses.holders[wanted] is None


def test_a_killed_run_leaves_an_address_that_can_be_given_back(
    cloud: Cloud, addresses: Addresses, machine: HearingMachine
) -> None:
    wanted = addresses.allocate(POOL)

    class Killed(Exception):
        pass

    def killed(*words: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elastic_ip._Calls, "wait_to_see", killed)
        with pytest.raises(Killed):
            held(cloud).apply(machine)
    assert addresses.holders[wanted] == cloud.instance.instance_id
    given_back(cloud).apply(machine)
    assert addresses.holders[wanted] is None


def test_a_damaged_record_is_set_aside_and_the_address_found_again(
    cloud: Cloud, addresses: Addresses, machine: HearingMachine
) -> None:
    wanted, start = addresses.allocate(POOL), time.monotonic()
    step = held(cloud)
    step.apply(machine)
    machine.real(held_address.PATH).write_text("{")
    assert not step.is_satisfied(machine)
    step.apply(machine)
    assert step.is_satisfied(machine) and addresses.history(wanted) == [cloud.instance.instance_id]
    assert time.monotonic() - start < WITHIN
