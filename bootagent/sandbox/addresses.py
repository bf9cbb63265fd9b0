"""Elastic IPs of the simulated cloud, with the rules of EC2 that decide races.

    with Addresses(cloud) as addresses:
        allocation = addresses.allocate({"Pool": "web"})

AssociateAddress, DisassociateAddress and DescribeAddresses: Amazon EC2 API Reference. An address is one instance's at a
time and an instance has one address; unless it is told not to, AssociateAddress takes it from whoever has it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

from bootagent.sandbox import ebs_shapes as shapes
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.ebs_model import Refusal
from bootagent.sandbox.query_form import Form, passes

_OVER = frozenset({"shutting-down", "terminated"})


@dataclass(frozen=True)
class Association:
    """That an instance has an address, or something else's network interface has it."""

    id: str
    instance_id: str | None
    interface: str


@dataclass
class Address:
    """An elastic IP. ``shown`` is what DescribeAddresses tells until ``shown_until``, on the monotonic clock."""

    id: str
    ip: str
    tags: dict[str, str]
    association: Association | None = None
    shown: Association | None = None
    shown_until: float = 0.0
    #: Every instance that has had it, in order.
    holders: list[str] = field(default_factory=list)

    def change(self, association: Association | None, lag: float) -> None:
        """Let it be somebody else's, which is seen ``lag`` seconds later."""
        self.shown, self.shown_until = self.seen, time.monotonic() + lag
        self.association = association
        if association and association.instance_id:
            self.holders.append(association.instance_id)

    @property
    def seen(self) -> Association | None:
        """The association as DescribeAddresses has it by now."""
        return self.shown if time.monotonic() < self.shown_until else self.association


class Addresses(AbstractContextManager["Addresses"]):
    """The elastic IPs of a running cloud. ``lag``: seconds until DescribeAddresses shows a change."""

    def __init__(self, cloud: Cloud) -> None:
        self.lag = 0.0
        self._cloud = cloud
        self._lock = threading.RLock()
        self._addresses: dict[str, Address] = {}
        self._actions: Mapping[str, Callable[[Form], object]] = {
            "DescribeAddresses": self._describe,
            "AssociateAddress": self._associate,
            "DisassociateAddress": self._disassociate,
            "TerminateInstances": self._terminate,
        }

    def __enter__(self) -> Addresses:
        self._cloud.api.override("ec2", self.answer, part="addresses")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cloud.api.override("ec2", None, part="addresses")

    def answer(self, fields: Mapping[str, str]) -> tuple[int, bytes] | None:
        """The answer to a call; None when it is about something else."""
        handler = self._actions.get(fields.get("Action", ""))
        if handler is None:
            return None
        try:
            with self._lock:
                found = handler(Form(fields))
        except Refusal as refusal:
            return refusal.status, shapes.error(refusal)
        return None if found is None else (200, shapes.document(f"{fields['Action']}Response", found))

    # --- setting it up ---------------------------------------------------------------------------------------

    def allocate(self, tags: Mapping[str, str] | None = None, *, allocation: str | None = None) -> str:
        """A new address; its allocation id."""
        with self._lock:
            allocation = allocation or f"eipalloc-{secrets.token_hex(8)}"
            self._addresses[allocation] = Address(allocation, f"203.0.113.{len(self._addresses) + 1}", dict(tags or {}))
            return allocation

    def give(self, allocation: str, holder: str) -> None:
        """Somebody associates it with an instance, or with the network interface of, say, a NAT gateway."""
        with self._lock:
            self._addresses[allocation].change(_association(holder), self.lag)

    def take(self, allocation: str) -> None:
        """Somebody disassociates it."""
        with self._lock:
            self._addresses[allocation].change(None, self.lag)

    @property
    def holders(self) -> dict[str, str | None]:
        """Who has each address now, by its allocation id."""
        with self._lock:
            found = {key: one.association for key, one in self._addresses.items()}
        return {key: (one.instance_id or one.interface) if one else None for key, one in found.items()}

    def history(self, allocation: str) -> list[str]:
        """Every instance that has had an address, in order."""
        with self._lock:
            return list(self._addresses[allocation].holders)

    # --- the calls -------------------------------------------------------------------------------------------

    def _describe(self, form: Form) -> object:
        wanted = form.words("AllocationId")
        found = [self._known(one) for one in wanted] if wanted else list(self._addresses.values())
        for criterion in form.items("Filter"):
            found = [one for one in found if passes(criterion, one.tags, _fields(one))]
        return {"addressesSet": [_shape(one) for one in found]}

    def _associate(self, form: Form) -> object:
        address, instance_id = self._known(form.required("AllocationId")), form.required("InstanceId")
        self._refuse_unready(instance_id)
        mine = address.association is not None and address.association.instance_id == instance_id
        if not mine:
            # The parameter's default is true, whatever the action's description says: it is to be said.
            may_take = form.text("AllowReassociation") is None or form.flag("AllowReassociation")
            other = next((one for one in self._addresses.values() if _is_held_by(one, instance_id)), None)
            if not may_take and (address.association or other):
                name = address.id if address.association else _association(instance_id).interface
                said = (address.association or (other.association if other else None)) or Association("", None, "")
                raise Refusal(
                    "Resource.AlreadyAssociated", f"resource {name} is already associated with associate-id {said.id}"
                )
            if other:
                other.change(None, self.lag)
            address.change(_association(instance_id), self.lag)
        return {"return": True, "associationId": address.association.id if address.association else None}

    def _disassociate(self, form: Form) -> object:
        wanted = form.required("AssociationId")
        for one in self._addresses.values():
            if one.association and one.association.id == wanted:
                one.change(None, self.lag)
                return {"return": True}
        raise Refusal("InvalidAssociationID.NotFound", f"The association ID '{wanted}' does not exist")

    def _terminate(self, form: Form) -> None:
        """What a terminated instance had is free; the instances themselves are moto's."""
        for one in self._addresses.values():
            if one.association and one.association.instance_id in form.words("InstanceId"):
                one.change(None, self.lag)

    def _known(self, allocation: str) -> Address:
        if allocation not in self._addresses:
            raise Refusal("InvalidAllocationID.NotFound", f"The allocation ID '{allocation}' does not exist")
        return self._addresses[allocation]

    def _refuse_unready(self, instance_id: str) -> None:
        ec2 = self._cloud.api.ec2(self._cloud.region)
        asked = ec2.describe_instances(Filters=[{"Name": "instance-id", "Values": [instance_id]}])["Reservations"]
        states = [found["State"]["Name"] for reservation in asked for found in reservation["Instances"]]
        if not states or states[0] in _OVER:
            raise Refusal("InvalidInstanceID.NotFound", f"The instance ID '{instance_id}' does not exist")
        if states[0] == "pending":
            said = f"The pending instance '{instance_id}' is not in a valid state for this operation."
            raise Refusal("InvalidInstanceID", said)


def _association(holder: str) -> Association:
    is_instance = holder.startswith("i-")
    interface = f"eni-{holder.removeprefix('i-')}" if is_instance else holder
    return Association(f"eipassoc-{secrets.token_hex(8)}", holder if is_instance else None, interface)


def _is_held_by(one: Address, instance_id: str) -> bool:
    return one.association is not None and one.association.instance_id == instance_id


def _shape(one: Address) -> object:
    seen = one.seen
    return {
        "publicIp": one.ip,
        "allocationId": one.id,
        "domain": "vpc",
        "associationId": seen.id if seen else None,
        "instanceId": seen.instance_id if seen else None,
        "networkInterfaceId": seen.interface if seen else None,
        "tagSet": [{"key": key, "value": value} for key, value in one.tags.items()],
    }


def _fields(one: Address) -> dict[str, list[str]]:
    seen = one.seen
    return {
        "allocation-id": [one.id],
        "public-ip": [one.ip],
        "domain": ["vpc"],
        "association-id": [seen.id] if seen else [],
        "instance-id": [seen.instance_id] if seen and seen.instance_id else [],
    }
