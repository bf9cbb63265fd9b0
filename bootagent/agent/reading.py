"""From what was asked for to a plan: read the configuration, the instance and the sources, and mount what they need."""

from __future__ import annotations

import time
from collections.abc import Mapping

from bootagent import footprint, leaving, plan, readiness
from bootagent.agent.request import CONFIGURING, UNASKED
from bootagent.agent.work import Work
from bootagent.config import resolve
from bootagent.config.document import Document
from bootagent.config.model import App, Config
from bootagent.errors import BootagentError, ConfigError, MachineError, Problem, UsageError
from bootagent.instance import Instance
from bootagent.machine import Note
from bootagent.plan import Known, Plan
from bootagent.steps.base import Step
from bootagent.survey import (
    attachments,
    load_document,
    look,
    look_back,
    make_plan,
    moment_of,
    read_instance,
    refuse_lost,
    services_to_stop,
    side_by_side,
    traffic_told,
    with_traffic,
)

#: How long a rerun waits for credentials and a route; a boot waits as long as for its tags.
EARLY_SECONDS = 5.0


class LeftAloneError(Exception):
    """Nobody asked for this run, and somebody has stopped the services."""


def planned(work: Work) -> Plan:
    """The plan for what was asked, with the mounts that it needs in place.

    Raises LeftAloneError, UsageError, ConfigError, and other BootagentErrors.
    """
    stopped_before = work.memory.is_stopped
    _leave_alone(work, stopped_before)
    with work.journal.span("read", "read the configuration"):
        document = work.document = load_document(work.request.config)
    with work.journal.span("read", "read instance metadata and tags"):
        instance = read_instance(
            document,
            work.request.tags,
            lambda instance_id: work.memory.state.tags_on(instance_id),
            lambda seconds: _pause(work, seconds, stopped_before),
        )
    work.instance = instance
    work.memory.on_instance(instance.instance_id)
    config = work.config = _resolved(document, instance)
    if work.request.command in CONFIGURING:
        work.memory.keep_tags(work.request.tags)
    work.pooled = readiness.is_kept_back(hooked=config.lifecycle is not None)
    made = _back(work, config, instance) if work.request.rollback_to is not None else _on(work, config, instance)
    # Somebody wants the services up again, and this is where.
    work.memory.started(config.runit.definitions)
    leaving.save(work.machine, plan.leaving(config))
    footprint.note(work.machine, config.runit.definitions, config.runit.service_dir, until="stop")
    return made


# --- what comes before any plan ------------------------------------------------------------------------------


def _leave_alone(work: Work, stopped_before: bool) -> None:
    """What somebody has stopped, only somebody starts again."""
    if work.memory.is_stopped and (work.request.command in UNASKED or not stopped_before):
        raise LeftAloneError("the services were stopped, and stay so (bootagent reconfigure starts them)")


def _pause(work: Work, seconds: float, stopped_before: bool) -> None:
    """Wait for tags; meanwhile somebody else, who knows more, may have a turn."""
    work.journal.record("waiting", phase="read", step="wait for the instance's tags")
    with work.lock.given_up():
        time.sleep(seconds)
    work.memory.read()
    work.memory.save()
    _leave_alone(work, stopped_before)


def _resolved(found: Document, instance: Instance) -> Config:
    try:
        return resolve.resolve(found, instance.coordinates(), instance.tags)
    except ConfigError as error:
        old = [key for key, origin in instance.tag_origin.items() if origin == "remembered"]
        said = "is remembered from an earlier --tag; it is forgotten with"
        hints = [Problem("--tag", key, f"{said} bootagent reconfigure --tag {key}=") for key in old]
        raise ConfigError([*error.problems, *hints]) from None


# --- onward --------------------------------------------------------------------------------------------------


def _on(work: Work, config: Config, instance: Instance) -> Plan:
    """The plan to what the tags say."""
    _let_traffic_go(work, config, instance)
    if work.pooled:
        _keep_down(work)
    absent = _attach(work, config, instance)
    with work.journal.span("read", "ask the sources what is new"):
        assert work.document is not None
        patience = resolve.metadata_within(work.document) if work.request.command == "run" else EARLY_SECONDS
        known = look(config, instance, work.machine, work.memory.state, patience, absent)
    work.unread = _unread(known)
    apps, there = work.memory.state.apps, services_to_stop(work.document, work.memory.state, work.machine)
    return make_plan(config, known, there, apps, instance, work.machine, work.request.retry, not work.pooled)


def _unread(known: Mapping[str, Known]) -> dict[str, BootagentError]:
    """Why an app's source did not answer, or else that of its environment."""
    asked = [(name, answer) for name, one in known.items() for answer in (one.environment, one.revision)]
    return {name: answer for name, answer in asked if isinstance(answer, BootagentError)}


def _attach(work: Work, config: Config, instance: Instance) -> dict[str, BootagentError]:
    """Mount what the sources read from, and the role's volumes; which apps' mounts are not there, and why.

    Raises MachineError when a volume is not there: nothing may start without it.
    """
    now = moment_of(instance, retry=work.request.retry)
    _let_volumes_go(work, plan.former(config, now))
    wanted = attachments(config, instance, work.machine, now)
    failures = side_by_side(lambda one: work.run_steps(one.steps, "attach", one.name), wanted)
    failed = [(one, error) for one, error in zip(wanted, failures, strict=True) if error]
    if lost := [f"{one.name}: {error}" for one, error in failed if not one.apps]:
        raise MachineError("; ".join(lost)) from next(error for one, error in failed if not one.apps)
    return {app: error for one, error in failed for app in one.apps}


def _let_traffic_go(work: Work, config: Config, instance: Instance) -> None:
    """Balancers that the role does not name send nothing more before what the former role ran is stopped."""
    if traffic_told(work.machine, instance.instance_id).balancers:
        now = moment_of(instance, retry=False, serving=not work.pooled)
        if error := work.run_steps((plan.former_traffic(config, now),), "attach", plan.TRAFFIC):
            work.machine.tell(Note(f"{error}; going on"))  # it is tried again when the role serves


def _let_volumes_go(work: Work, former: Step) -> None:
    """Let volumes of another role go, or those with other tags: not from under whoever writes to them."""
    if not former.is_satisfied(work.machine):
        _down(work, "volumes", former)


def _keep_down(work: Work) -> None:
    """In the warm pool nothing serves, not even what the image or an earlier run has brought."""
    _down(work, "warm pool")


def _down(work: Work, name: str, *then: Step) -> None:
    services = services_to_stop(work.document, work.memory.state, work.machine)
    if error := work.run_steps((*plan.services_down(services), *then), "attach", name):
        raise error


# --- back ----------------------------------------------------------------------------------------------------


def _back(work: Work, config: Config, instance: Instance) -> Plan:
    """The plan back to a release that was here, or is in a snapshot."""
    app = _chosen(config, work.request.app)
    if work.pooled:
        raise UsageError("nothing serves while the warm pool has this instance", remedy="wait until it leaves")
    if work.memory.is_stopped:  # its mounts, secrets and the other apps are gone, too
        raise UsageError("the services were stopped", remedy="bootagent reconfigure starts them; then roll back")
    if not plan.going_back.can_go_back(app):
        raise UsageError(f"the releases of {app.name} are not this machine's: go back at {app.source}")
    known = look_back(work.machine, app, work.memory.state, instance.region)
    if isinstance(known.environment, BootagentError):
        work.unread = {app.name: known.environment}
    target = work.request.rollback_to or plan.going_back.previous(app, known.layout, known.state)
    if target is None:
        raise UsageError(f"{app.name} has no earlier release to roll back to")
    there = plan.going_back.choices(app, known.layout, known.state)
    if target not in there:
        raise UsageError(f"{app.name} has no release {target!r}; it has {', '.join(there) or 'none'}")
    if known.state.is_bad(target):
        raise UsageError(f"release {target} of {app.name} is bad: {known.state.releases[target].reason}")
    refuse_lost(work.machine, app, known, target, instance)
    now = moment_of(instance, retry=work.request.retry)
    made = Plan((plan.going_back.lane(config, app, known, target, now),))
    return with_traffic(made, config, instance, work.machine)


def _chosen(config: Config, name: str | None) -> App:
    names = [app.name for app in config.apps]
    if name is None and len(names) != 1:
        raise UsageError(f"which app? Name one with --app: {', '.join(names)}")
    if name is not None and name not in names:
        raise UsageError(f"{name!r} is no app of role {config.role}; it has {', '.join(names)}")
    return config.apps[names.index(name or names[0])]
