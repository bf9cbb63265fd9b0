"""An elastic IP for this instance: taken when it is free, never from another, and given back.

AssociateAddress takes an address from whoever has it unless AllowReassociation is false, so it always is; of two nodes
that want the same one EC2 lets one have it, and the other tries the next (Amazon EC2 API Reference; "Elastic IP
addresses", Amazon EC2 User Guide). While the address changes, answers on their way through the old one are lost; the
calls may be repeated, and are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bootagent import aws
from bootagent.ebs.owner import Tags, bears, shown
from bootagent.ebs.patience import Patience
from bootagent.errors import AwsError, BootagentError
from bootagent.journal import boot_id
from bootagent.machine import Machine
from bootagent.traffic import held_address
from bootagent.traffic.held_address import HeldAddress

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import AddressTypeDef, FilterTypeDef

#: Somebody else has the address, or this instance has another one.
TAKEN = "Resource.AlreadyAssociated"
GONE = "InvalidAssociationID.NotFound"
#: What EC2 says of an instance that is not running yet, and of one with several network interfaces.
_NOT_READY = frozenset({"InvalidInstanceID", "IncorrectInstanceState", "IncorrectState"})
_NOT_READY_REMEDY = "the instance must be running, and have one network interface only"
_REMEDIES = {
    "InvalidAllocationID.NotFound": "correct the allocation id; it must be of this account and region",
    "AuthFailure": "the address must belong to this account",
}


@dataclass(frozen=True)
class Claim:
    """The address that an instance is to have: that of an allocation, or any of those that bear ``tags``."""

    allocation: str | None
    tags: Tags
    instance_id: str
    region: str | None

    def __str__(self) -> str:
        return f"the elastic IP {self.allocation}" if self.allocation else f"an elastic IP with {shown(self.tags)}"


@dataclass(frozen=True)
class Address:
    """An elastic IP as DescribeAddresses tells of it. ``association`` is None while it is free.

    ``holder`` is the instance that has it, or the network interface of something else.
    """

    allocation: str
    ip: str
    association: str | None
    holder: str | None
    tags: Tags

    def is_of(self, claim: Claim) -> bool:
        """Whether it is what is claimed, whoever has it."""
        return self.allocation == claim.allocation if claim.allocation else bears(dict(self.tags), claim.tags)


def is_held(machine: Machine, claim: Claim, within: float) -> bool:
    """Whether this instance has it, by one DescribeAddresses, and remembers so in this boot. Raises AwsError."""
    known = held_address.load(machine, claim.instance_id)
    if known is None or known.boot_id != boot_id():
        return False
    mine = _Calls(Patience(machine, within), claim.region).of_instance(claim.instance_id)
    return any(one.is_of(claim) and one.allocation == known.allocation for one in mine)


def hold(machine: Machine, claim: Claim, within: float) -> str:
    """Have this instance get it; returns the address. What it had before, and was given by us, it gives back first.

    Waits while others have it. Raises MachineError at the deadline, in seconds; BootagentError when there is no such
    address, or when this instance has one that is not ours to take away; and AwsError.
    """
    patience = Patience(machine, within)
    calls = _Calls(patience, claim.region)
    while True:
        mine = calls.of_instance(claim.instance_id)
        if ours := [one for one in mine if one.is_of(claim)]:
            _remember(machine, claim, ours[0].allocation)
            return ours[0].ip
        if mine:
            _leave(machine, calls, claim, mine[0])
            continue
        there = calls.claimed(claim)
        for one in _in_turn(there, claim.instance_id):
            _remember(machine, claim, one.allocation)
            if _is_taken(calls, one, claim):
                calls.wait_to_see(one.allocation, claim.instance_id)
                return one.ip
        patience.wait(*_why_none(claim, there))


def give_back(machine: Machine, instance_id: str | None, within: float, *, hurried: bool = False) -> None:
    """Give the address back that this instance was given, unless somebody else has it by now.

    ``instance_id`` None, where there is no time to ask for it, is as :func:`bootagent.traffic.held_address.load` has
    it. ``hurried``: no call is tried for long, and it is not seen to be so. Raises MachineError and AwsError.
    """
    known = held_address.load(machine, instance_id)
    if known is None:
        return
    calls = _Calls(Patience(machine, within), known.region, hurried=hurried)
    for one in calls.of_instance(known.instance_id):
        if one.allocation == known.allocation:
            calls.disassociate(one)
            if not hurried:
                calls.wait_to_see_gone(one, known.instance_id)
    held_address.forget(machine)


# --- which one -----------------------------------------------------------------------------------------------


def _in_turn(there: Sequence[Address], instance_id: str) -> list[Address]:
    """The free ones, in an order of this instance's own: nodes that start together do not all ask for the same."""

    def turn(one: Address) -> str:
        return hashlib.sha256(f"{instance_id} {one.allocation}".encode()).hexdigest()

    return sorted((one for one in there if one.association is None), key=turn)


def _why_none(claim: Claim, there: Sequence[Address]) -> tuple[str, dict[str, object], str]:
    """What is waited for while all are taken, and what to do about it."""
    if claim.allocation:
        (one,) = there
        what = f"waiting for the elastic IP {one.ip} ({one.allocation}) to be given back"
        remedy = "bootagent stop on its holder gives it back, and so does its end; or disassociate it yourself"
        return what, {"holder": one.holder or "unknown"}, remedy
    what = f"waiting for an elastic IP with {shown(claim.tags)} to be free"
    return what, {"taken": f"all {len(there)}"}, "allocate more and tag them so, or have fewer instances"


def _leave(machine: Machine, calls: _Calls, claim: Claim, other: Address) -> None:
    """Give back what this instance has and is not to have: the instance can have one at a time."""
    known = held_address.load(machine, claim.instance_id)
    if known is None or known.allocation != other.allocation:
        raise BootagentError(
            f"{claim.instance_id} has the elastic IP {other.ip} ({other.allocation}) already, so it cannot get {claim}",
            remedy="disassociate it; what bootagent did not associate it does not take away",
        )
    calls.disassociate(other)
    calls.wait_to_see_gone(other, claim.instance_id)


def _is_taken(calls: _Calls, one: Address, claim: Claim) -> bool:
    """Ask for a free one; whether we have got it."""
    try:
        calls.associate(one, claim.instance_id)
    except AwsError as error:
        if error.code != TAKEN:
            raise
        return False  # somebody was faster
    return True


def _remember(machine: Machine, claim: Claim, allocation: str) -> None:
    held_address.save(machine, HeldAddress(claim.instance_id, claim.region, allocation, boot_id()))


# --- the calls -----------------------------------------------------------------------------------------------


class _Calls:
    """EC2's calls about elastic IPs, each under the deadline of ``patience``. All raise AwsError."""

    def __init__(self, patience: Patience, region: str | None, *, hurried: bool = False) -> None:
        self._patience = patience
        self._region = region
        self._hurried = hurried

    @property
    def _ec2(self) -> EC2Client:
        return aws.ec2(self._region, hurried=self._hurried)

    def of_instance(self, instance_id: str) -> list[Address]:
        """Those an instance has, on any of its interfaces."""
        asked: list[FilterTypeDef] = [{"Name": "instance-id", "Values": [instance_id]}]
        return self._described(lambda: self._ec2.describe_addresses(Filters=asked)["Addresses"])

    def claimed(self, claim: Claim) -> list[Address]:
        """Those that may be had. Raises BootagentError when there are none."""
        if claim.allocation:
            return [self._known(claim.allocation)]
        asked: list[FilterTypeDef] = [{"Name": f"tag:{key}", "Values": [value]} for key, value in claim.tags]
        found = self._described(lambda: self._ec2.describe_addresses(Filters=asked)["Addresses"])
        pool = [one for one in found if one.is_of(claim)]
        if not pool:
            raise BootagentError(
                f"there is no elastic IP with the tags {shown(claim.tags)} in {self._region or 'this region'}",
                remedy="allocate some and tag them so",
            )
        return pool

    def associate(self, one: Address, instance_id: str) -> None:
        """Ask for a free one; an instance that is not running yet is waited for."""
        while True:
            try:
                self._patience.call(
                    f"associate the elastic IP {one.ip} ({one.allocation}) with {instance_id}",
                    "ec2:AssociateAddress",
                    lambda: self._ec2.associate_address(
                        AllocationId=one.allocation, InstanceId=instance_id, AllowReassociation=False
                    ),
                )
                return
            except AwsError as error:
                if error.code not in _NOT_READY:
                    raise _with_remedy(error) from error.__cause__
                doing = f"waiting for EC2 to associate the elastic IP {one.ip}"
                self._patience.wait(doing, {"instance": instance_id, "code": error.code}, _NOT_READY_REMEDY)

    def disassociate(self, one: Address) -> None:
        """End the association that was seen, and no later one: each has an id of its own."""
        try:
            self._patience.call(
                f"disassociate the elastic IP {one.ip} ({one.allocation}) from {one.holder}",
                "ec2:DisassociateAddress",
                lambda: self._ec2.disassociate_address(AssociationId=one.association or ""),
            )
        except AwsError as error:
            if error.code != GONE:
                raise

    def wait_to_see(self, allocation: str, instance_id: str) -> None:
        """Wait until EC2 shows that an instance has the address."""
        while (one := self._known(allocation)).holder != instance_id:
            holder = one.holder or "nobody yet"
            self._patience.wait(f"waiting for EC2 to show who has {one.ip}", {"shown": holder, "wanted": instance_id})

    def wait_to_see_gone(self, one: Address, instance_id: str) -> None:
        """Wait until EC2 no longer shows an association."""
        while one.association in [other.association for other in self.of_instance(instance_id)]:
            self._patience.wait(f"waiting for EC2 to show that {one.ip} is free", {"shown": instance_id})

    def _known(self, allocation: str) -> Address:
        try:
            found = self._described(lambda: self._ec2.describe_addresses(AllocationIds=[allocation])["Addresses"])
        except AwsError as error:
            raise _with_remedy(error) from error.__cause__
        if not found:
            raise BootagentError(f"there is no elastic IP {allocation} in {self._region or 'this region'}")
        return found[0]

    def _described(self, ask: Callable[[], list[AddressTypeDef]]) -> list[Address]:
        found = self._patience.call("look for elastic IPs", "ec2:DescribeAddresses", ask)
        return [_address(one) for one in found if one.get("AllocationId")]


def _with_remedy(error: AwsError) -> AwsError:
    error.remedy = error.remedy or _REMEDIES.get(error.code)
    return error


def _address(found: AddressTypeDef) -> Address:
    return Address(
        allocation=found["AllocationId"],
        ip=found["PublicIp"],
        association=found.get("AssociationId") or None,
        holder=found.get("InstanceId") or found.get("NetworkInterfaceId") or None,
        tags=tuple((tag["Key"], tag["Value"]) for tag in found.get("Tags", [])),
    )
