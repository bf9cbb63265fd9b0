"""The plan: what is to be done, as values. Pure: no files, no clock, no AWS.

Each app has a lane through the phases. Lanes run side by side; a lane that fails stops, and the others go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from bootagent.config.model import App, Check, Config, Runit, Service
from bootagent.errors import BootagentError
from bootagent.pull.bundle import Limits
from bootagent.release import Layout, new_name, short
from bootagent.sources import Revision
from bootagent.state import AppState
from bootagent.steps.base import Step
from bootagent.steps.current import Current
from bootagent.steps.directories import Directories
from bootagent.steps.linked_paths import LinkedPaths, RevisionFile
from bootagent.steps.prepared import Prepared
from bootagent.steps.prune import Prune
from bootagent.steps.services import Services, ServiceSpec
from bootagent.steps.shared_file import SharedFile
from bootagent.steps.staged_bundle import StagedBundle
from bootagent.steps.stopped import Stopped

Phase = Literal["stage", "activate", "serve"]
PHASES: tuple[Phase, ...] = ("stage", "activate", "serve")
Intent = Literal["deploy", "keep", "hotfix", "rollback", "retire", "stop", "nothing"]

MARKERS = "/var/lib/bootagent/prepared"


@dataclass(frozen=True)
class Lane:
    """What one app goes through.

    ``release`` is the one it ends on, ``revision`` and ``label`` what that is made of (None when it is not ours).
    ``fallback`` is the release to put back should the activation fail. ``reason`` says in a sentence why the lane is
    what it is; ``degraded`` that this is less than what was asked for, ``unread`` that the source did not answer.
    """

    app: str
    intent: Intent
    steps: Mapping[Phase, tuple[Step, ...]]
    release: str | None = None
    revision: str | None = None
    label: str | None = None
    fallback: str | None = None
    reason: str = ""
    degraded: bool = False
    unread: bool = False


@dataclass(frozen=True)
class Plan:
    """The lanes of all apps."""

    lanes: tuple[Lane, ...]


@dataclass(frozen=True)
class Known:
    """What is known of one app before planning: the disk, what the source holds, and the state.

    ``revision`` is an error when the source could not be read.
    """

    layout: Layout
    revision: Revision | BootagentError
    state: AppState


@dataclass(frozen=True)
class Moment:
    """When and where the plan is made. ``now`` is UTC; ``retry``: give a bad revision another chance."""

    now: datetime
    boot_id: str
    region: str | None
    retry: bool = False


def make(config: Config, known: Mapping[str, Known], retired: Sequence[str], moment: Moment) -> Plan:
    """The plan for the role's apps, and for those in ``retired``, which have services and no place in the role."""
    lanes = [_lane_or_why_not(config, app, known[app.name], moment) for app in config.apps]
    return Plan((*(_retire(config.runit, name) for name in retired), *lanes))


def _lane_or_why_not(config: Config, app: App, known: Known, moment: Moment) -> Lane:
    """One app that cannot be planned must not keep the others from their turn."""
    try:
        return _lane(config, app, known, moment)
    except BootagentError as error:
        return Lane(app=app.name, intent="nothing", steps={}, reason=str(error))


def put_back(config: Config, app: App, state: AppState, release: str, *, left: str | None, reason: str) -> Lane:
    """The lane back to ``release``, or that stays on it: after a failure, or because somebody asked.

    ``left`` is the release that ``current`` was switched to meanwhile; None when it never was.
    """
    log = f"bootagent rolled back to release {release}"
    ours = release in state.releases
    # A release somebody else made is left alone where it stands, but started like any other when it is switched to.
    mark = release if ours or left else None
    return Lane(
        app=app.name,
        intent="rollback",
        steps={
            "activate": (_current(app, release, log, demoted=left if left and state.is_bad(left) else None),),
            "serve": (_services(config, app, mark),),
        },
        release=release,
        label=state.releases[release].label if ours else None,
        reason=reason,
    )


def previous(layout: Layout, state: AppState) -> str | None:
    """The release to roll back to: the newest before the current one that is good, or somebody else's."""
    unfinished = state.pending.release if state.pending else None
    older = [
        name
        for name in layout.releases
        if name < (layout.current or "~") and name != unfinished and state.is_proven(name)
    ]
    return max(older, default=None)


@dataclass(frozen=True)
class ToStop:
    """An app's service directories below ``definitions``, each with the seconds it may take to stop."""

    app: str
    definitions: str
    services: tuple[tuple[str, float], ...]


def stop(services: Sequence[ToStop], reason: str) -> Plan:
    """The plan that takes services down, and why."""
    lanes = [
        Lane(one.app, "stop", {"serve": (Stopped(one.app, one.definitions, one.services),)}, reason=reason)
        for one in services
    ]
    return Plan(tuple(lanes))


def _lane(config: Config, app: App, known: Known, moment: Moment) -> Lane:
    standing = _standing(known)
    revision, state, current = known.revision, known.state, known.layout.current
    if isinstance(revision, BootagentError):
        return _keep(config, app, known, standing or current, moment, reason=str(revision), degraded=True)
    pending, label = state.pending, short(revision.label)
    if pending and pending.revision == revision.id and (pending.staged or pending.boot_id == moment.boot_id):
        # A run was killed in the middle of this one; its writes are there, since the power did not go with it.
        return _deploy(config, app, known, revision, pending.release, moment, "finish what an earlier run began")
    made_of_it = standing is not None and state.revision_of(standing) == revision.id
    failed = any(one.state == "bad" and one.revision == revision.id for one in state.releases.values())
    if made_of_it or failed or revision.id == state.revision:
        gone = (
            current is None
            and not failed
            and not any(state.revision_of(name) == revision.id for name in known.layout.releases)
        )
        if standing and not gone and (made_of_it or not moment.retry):
            reason = f"{label} is what was deployed last"
            if failed and not made_of_it:
                reason = f"{label} failed before; publish another, or give it a try with --retry"
            elif not made_of_it and standing in state.releases:
                reason = f"{label} was rolled back; --retry deploys it again"
            return _keep(config, app, known, standing, moment, reason=reason, degraded=failed and not made_of_it)
        if not standing and current and state.revision_of(current) == revision.id and not moment.retry:
            reason = f"{label} failed before and there is no other: see whether it works by now"
            return _deploy(config, app, known, revision, current, moment, reason)
    taken = {*known.layout.releases, *state.releases, *({pending.release} if pending else ())}
    name = new_name(moment.now, taken)
    return _deploy(config, app, known, revision, name, moment, f"{label} is new")


def _standing(known: Known) -> str | None:
    """The release to stay on: the current one unless it is unproven, else the last good one."""
    layout, state = known.layout, known.state
    unfinished = state.pending.release if state.pending else None
    if layout.current and state.is_proven(layout.current) and layout.current != unfinished:
        return layout.current
    return state.last_good(layout.releases)


def _deploy(config: Config, app: App, known: Known, revision: Revision, name: str, moment: Moment, reason: str) -> Lane:
    release = f"{app.deploy_to}/releases/{name}"
    fallback = _standing(known)
    stage: list[Step] = [
        *_shared(app, moment),
        _prune(app, known, making=name),
        StagedBundle(
            release=release,
            bundle=revision.bundle,
            limits=Limits(app.limits.unpacked, app.limits.files, app.limits.reserve),
            within=app.limits.within,
            user=app.user,
            group=app.group,
        ),
        *_links(app, name, fresh=name != known.layout.current),
        RevisionFile(app.deploy_to, name, revision.label, app.user, app.group),
    ]
    if app.prepare:
        env = {
            "BOOTAGENT_APP": app.name,
            "BOOTAGENT_ROLE": config.role,
            "BOOTAGENT_ENVIRONMENT": config.environment or "",
            "BOOTAGENT_REVISION": revision.label,
        }
        stage.append(
            Prepared(
                release=release,
                command=app.prepare,
                within=app.prepare_within,
                env=tuple(sorted(env.items())),
                user=app.user,
                group=app.group,
                marker=_marker(app, name),
            )
        )
    log = f"Branch {revision.origin} (at {revision.label}) deployed as release {name} by bootagent"
    return Lane(
        app=app.name,
        intent="deploy",
        steps={
            "stage": tuple(stage),
            "activate": (_current(app, name, log),),
            "serve": (
                _services(
                    config,
                    app,
                    name,
                ),
            ),
        },
        release=name,
        revision=revision.id,
        label=revision.label,
        fallback=fallback if fallback != name else None,
        reason=reason,
    )


def _keep(
    config: Config, app: App, known: Known, standing: str | None, moment: Moment, *, reason: str, degraded: bool = False
) -> Lane:
    unread = isinstance(known.revision, BootagentError)
    if standing is None:
        if known.layout.elsewhere:
            reason = f"current points at {known.layout.elsewhere}, which is no release; {reason}"
        return Lane(app=app.name, intent="nothing", steps={}, reason=reason, unread=unread)
    record = known.state.releases.get(standing)
    stage = [_prune(app, known, making=None)]
    if record:
        stage = [*_shared(app, moment), *stage, *_links(app, standing, fresh=False)]
    else:
        reason = f"release {standing} was put there by someone else; {reason}"
    return Lane(
        app=app.name,
        intent="keep" if record else "hotfix",
        steps={
            "stage": tuple(stage),
            "activate": (_current(app, standing, None),) if standing != known.layout.current else (),
            "serve": (
                _services(
                    config,
                    app,
                    standing if record else None,
                ),
            ),
        },
        release=standing,
        revision=record.revision if record else None,
        label=record.label if record else None,
        reason=reason,
        degraded=degraded,
        unread=unread,
    )


def _retire(runit: Runit, app: str) -> Lane:
    services = Services(
        app=app,
        current="/",
        mark=None,
        specs=(),
        unnamed=None,
        only=None,
        release_services="config/service",
        watched=(),
        service_dir=runit.service_dir,
        definitions=runit.definitions,
    )
    # First of all: what this role does not run must not hold a port that it needs.
    return Lane(app=app, intent="retire", steps={"stage": (services,)}, reason="the role does not run it")


def _prune(app: App, known: Known, making: str | None) -> Step:
    """Remove what is too old, so that ``keep_releases`` stay with the one in the making; bad ones go first.

    What a killed run left unfinished goes too, unless this run or a later one may finish it. Never the current
    release, nor the last good one.
    """
    layout, state = known.layout, known.state
    present = set(layout.releases)
    protected = {layout.current, _standing(known), state.last_good(layout.releases), making}
    abandoned: set[str] = set()
    if state.pending:
        if isinstance(known.revision, BootagentError):
            protected.add(state.pending.release)
        abandoned = {state.pending.release} & present - protected
    others = sorted(present - protected - abandoned)
    by_age = [name for name in others if state.is_bad(name)] + [name for name in others if not state.is_bad(name)]
    total = len(present - abandoned | ({making} if making else set()))
    doomed = sorted({*by_age[: max(0, total - app.keep_releases)], *abandoned})
    return Prune(app.deploy_to, tuple(doomed), tuple(_marker(app, name) for name in doomed))


def _marker(app: App, name: str) -> str:
    return f"{MARKERS}/{app.name}.{name}"


def _shared(app: App, moment: Moment) -> list[Step]:
    files = tuple(file.path for file in app.linked_files)
    steps: list[Step] = [Directories(app.deploy_to, app.linked_dirs, files, app.user, app.group)]
    region = app.source.region or moment.region
    steps += [
        SharedFile(app.deploy_to, file.path, file.origin, region, app.user, app.group)
        for file in app.linked_files
        if file.origin
    ]
    return steps


def _links(app: App, name: str, *, fresh: bool) -> list[Step]:
    files = tuple(file.path for file in app.linked_files)
    if not files and not app.linked_dirs:
        return []
    return [LinkedPaths(app.deploy_to, name, files, app.linked_dirs, app.user, app.group, fresh)]


def _current(app: App, name: str, log: str | None, demoted: str | None = None) -> Step:
    return Current(app.deploy_to, name, log, demoted, app.user, app.group)


def _services(config: Config, app: App, mark: str | None) -> Step:
    return Services(
        app=app.name,
        current=f"{app.deploy_to}/current",
        mark=mark,
        specs=tuple(_spec(service) for service in app.services),
        unnamed=_spec(app.unnamed),
        only=app.only,
        release_services=app.release_services,
        watched=tuple(f"{app.deploy_to}/shared/{file.path}" for file in app.linked_files if file.origin),
        service_dir=config.runit.service_dir,
        definitions=config.runit.definitions,
    )


def _spec(service: Service) -> ServiceSpec:
    check: Check = service.check
    return ServiceSpec(
        name=service.name,
        command=service.command,
        user=service.user,
        group=service.group,
        env=service.env,
        log=service.log,
        stable_for=service.stable_for,
        stop_within=service.stop_within,
        within=check.within,
        http=check.http,
        tcp=check.tcp,
        check_command=check.command,
    )
