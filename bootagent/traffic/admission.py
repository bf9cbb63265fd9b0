"""Tell balancers of this instance and wait for their verdict; have them let it go and wait until they have.

Each balancer is told before any is waited for, so that the slowest one decides how long it takes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from bootagent import aws
from bootagent.deadline import NO_HURRY, Deadline, cut
from bootagent.ebs.patience import Patience
from bootagent.errors import AwsError, BootagentError, MachineError
from bootagent.journal import boot_id
from bootagent.machine import Machine, Note
from bootagent.traffic import registrations
from bootagent.traffic.balancers import WHOM, Verdict, calls
from bootagent.traffic.registrations import Balancer, Registration, Registrations

#: How long a look at the health may take: whoever only looks does not wait.
LOOK_SECONDS = 10.0
#: How long all balancers together may take to answer that they will let the instance go.
TOLD_SECONDS = 60.0
#: The same for who has no time: a machine that goes down goes down.
HURRIED_SECONDS = 15.0


def is_admitted(
    machine: Machine, balancers: Sequence[Balancer], instance_id: str, region: str | None, drain_within: float
) -> bool:
    """Whether every balancer was told of this instance, by this boot, and finds it healthy. One call for each.

    Raises AwsError when one cannot be asked for a reason that will not pass.
    """
    known = registrations.load(machine, instance_id)
    for balancer in balancers:
        told = known.of(balancer) if known else None
        if told is None or (told.drain_within, told.boot_id) != (drain_within, boot_id()):
            return False
        ask = calls(balancer.kind, Patience(machine, LOOK_SECONDS, WHOM), instance_id, region)
        try:
            verdict = ask.verdict(told)
        except AwsError as error:
            if aws.may_pass(error):
                return False  # who does more than look has more time
            raise
        except MachineError:
            return False
        if verdict.answer != "healthy":
            return False
    return True


def admit(
    machine: Machine,
    balancers: Sequence[Balancer],
    instance_id: str,
    region: str | None,
    within: float,
    drain_within: float,
) -> None:
    """Register with every balancer, and wait until all of them find the instance healthy: at most ``within`` seconds.

    One that refuses does not keep the others from being told. Raises AwsError, BootagentError, and MachineError at
    the deadline, with what each balancer said last.
    """
    patience = Patience(machine, within, WHOM)
    told: list[Registration] = []
    errors: list[BootagentError] = []
    for balancer in balancers:
        try:
            ask = calls(balancer.kind, patience, instance_id, region)
            registration = ask.find(balancer, drain_within, boot_id())
            registrations.add(machine, instance_id, region, registration)
            ask.register(registration)
            told.append(registration)
        except BootagentError as error:
            errors.append(error)
    try:
        _wait_for_health(patience, told, instance_id, region)
    except BootagentError as error:
        errors.append(error)
    _raise(errors)


def _wait_for_health(patience: Patience, told: Sequence[Registration], instance_id: str, region: str | None) -> None:
    waiting = list(told)
    while waiting:
        said: dict[Registration, Verdict] = {}
        for one in waiting:
            verdict = calls(one.kind, patience, instance_id, region).verdict(one)
            if verdict.answer != "healthy":
                said[one] = verdict
        waiting = list(said)
        if waiting:
            remedy = next((verdict.remedy for verdict in said.values() if verdict.remedy), None)
            names = ", ".join(str(one) for one in waiting)
            details = {str(one): verdict.said for one, verdict in said.items()}
            patience.wait(f"waiting for {names} to find this instance healthy", details, remedy)


def dismiss(
    machine: Machine,
    known: Registrations,
    doomed: Sequence[Registration],
    drain_most: float | None,
    *,
    hurried: bool = False,
    until: Deadline = NO_HURRY,
) -> None:
    """Deregister, and wait until the requests under way are done: as long as each may drain, at most ``drain_most`` s.

    What has not drained by then is told, and is no failure. ``hurried``: a balancer that does not answer at once is
    given up. ``until`` may leave less time. What could not be deregistered stays written down; raises AwsError or
    MachineError for it in the end.
    """
    patience = Patience(machine, until.grant(HURRIED_SECONDS if hurried else TOLD_SECONDS), WHOM)
    errors: list[BootagentError] = []
    draining: list[Registration] = []
    for one in doomed:
        try:
            calls(one.kind, patience, known.instance_id, known.region, hurried=hurried).deregister(one)
            draining.append(one)
        except BootagentError as error:
            errors.append(error)
    most = {one: one.drain_within if drain_most is None else min(one.drain_within, drain_most) for one in draining}
    begun, given = time.monotonic(), until.grant(max(most.values(), default=0.0))
    for one, wanted in most.items():
        try:
            if wanted > 0:
                left = min(wanted, given) - (time.monotonic() - begun)
                _wait_for_drain(machine, known, one, left, cut(given, wanted), hurried=hurried)
        except AwsError as error:  # it sends nothing more, and nobody knows when the last request is done
            machine.tell(Note(f"cannot see whether {one} has drained; going on", {"error": str(error)}))
        try:
            registrations.remove(machine, known.instance_id, one)
        except MachineError as error:  # a full disk; the others are to be waited for all the same
            errors.append(error)
    _raise(errors)


def _wait_for_drain(
    machine: Machine, known: Registrations, one: Registration, left: float, short: str, *, hurried: bool
) -> None:
    patience = Patience(machine, max(left, 0.0), WHOM)
    ask, said = calls(one.kind, patience, known.instance_id, known.region, hurried=hurried), "nothing"
    try:
        while (verdict := ask.verdict(one)).answer not in ("absent", "unused"):
            said = verdict.said
            patience.wait(f"waiting for {one} to drain", {"within": round(max(left, 0.0))})
    except MachineError:
        after = f" after {left:.1f} s{short}" if short else ""
        machine.tell(Note(f"{one} still drains{after}; going on", {"said": said}))


def _raise(errors: Sequence[BootagentError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        # The cause has what AWS said, for whoever is told of one call.
        call = next((error for error in errors if isinstance(error, AwsError)), None)
        raise BootagentError("; ".join(str(error) for error in errors)) from call
