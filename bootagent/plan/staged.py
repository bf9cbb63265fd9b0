"""Lanes of apps whose releases are made here: staged aside, linked, switched to last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bootagent.config.model import App, Config
from bootagent.errors import BootagentError
from bootagent.plan import parts, volumes
from bootagent.plan.lane import Known, Lane, Moment, Phase
from bootagent.release import Layout, is_name, new_name, short
from bootagent.sources import Baked, Revision
from bootagent.state import AppState
from bootagent.steps.base import Step
from bootagent.steps.linked_paths import RevisionFile
from bootagent.steps.made_release import MadeBefore, MadeRelease
from bootagent.steps.prepared import Prepared
from bootagent.steps.prune import Prune


def put_back(config: Config, app: App, state: AppState, release: str, *, left: str | None, reason: str) -> Lane:
    """The lane back to ``release``, or that stays on it: after a failure, or because somebody asked.

    ``left`` is the release that ``current`` was switched to meanwhile; None when it never was.
    """
    log = f"bootagent rolled back to release {release}"
    ours = release in state.releases
    # A release somebody else made is left alone where it stands, but started like any other when it is switched to.
    mark = release if ours or left else None
    volume = _volume(app, release, state.releases[release].revision) if ours else None
    return Lane(
        app=app.name,
        intent="rollback",
        steps={
            "activate": (
                *([MadeBefore(volume)] if volume else []),
                parts.current(app, release, log, demoted=left if left and state.is_bad(left) else None),
            ),
            "serve": (parts.services(config, app, mark),),
        },
        release=release,
        label=state.releases[release].label if ours else None,
        reason=reason,
    )


def restore(config: Config, app: App, known: Known, release: str, moment: Moment, *, reason: str) -> Lane:
    """The lane back to ``release``, on a volume made from its snapshot again, and so prepared again."""
    record = known.state.releases[release]
    back = put_back(config, app, known.state, release, left=known.layout.current, reason=reason)
    stage = (
        *parts.shared(app, moment),
        *_prune(app, known, moment, making=release),
        *volumes.restored(app, release, record.revision, moment, parts.marker(app, release)),
        *_made_ready(config, app, known, release, record.revision, record.label),
    )
    return replace(back, steps={"stage": stage, **back.steps, "retire": _let_go(app, known, moment, release)})


def previous(layout: Layout, state: AppState) -> str | None:
    """The release to roll back to: the newest before the current one that is good, or somebody else's."""
    unfinished = state.pending.release if state.pending else None
    older = [
        name
        for name in layout.releases
        if name < (layout.current or "~") and name != unfinished and state.is_proven(name)
    ]
    return max(older, default=None)


def lane(config: Config, app: App, known: Known, moment: Moment) -> Lane:
    """The lane of an app. Raises BootagentError when no release can be made."""
    standing = _standing(known)
    revision, state, current = known.revision, known.state, known.layout.current
    if isinstance(revision, BootagentError):
        return _unread(config, app, known, standing or current, moment, str(revision))
    if isinstance(revision.content, Baked):
        return _baked(config, app, known, standing or current, moment)
    label = short(revision.label)
    if begun := _begun(state, revision, moment):
        return _deploy(config, app, known, revision, begun, moment, "finish what an earlier run began")
    made_of_it = standing is not None and state.revision_of(standing) == revision.id
    failed = state.has_failed(revision.id)
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
    return _deploy(config, app, known, revision, _new_name(known, moment), moment, f"{label} is new")


def _unread(config: Config, app: App, known: Known, standing: str | None, moment: Moment, reason: str) -> Lane:
    """The source does not answer: stay on what there is, or begin with what the image holds."""
    baked, state = known.fallback, known.state
    if baked:
        begun = _begun(state, baked, moment)
        failed = state.has_failed(baked.id)
        if begun or (standing is None and not failed):
            name = begun or _new_name(known, moment)
            said = f"{reason}; until it can be read, what the image holds serves"
            made = _deploy(config, app, replace(known, revision=baked), baked, name, moment, said)
            return replace(made, degraded=True, unread=True)
        if standing is None:
            reason = f"{reason}; and what the image holds failed before"
    elif standing is None and app.fallback:
        standing = _held(known)
    return _keep(config, app, known, standing, moment, reason=reason, degraded=True)


def _baked(config: Config, app: App, known: Known, standing: str | None, moment: Moment) -> Lane:
    """The releases that the image holds: the one it calls current, else the newest."""
    standing = standing or _held(known)
    if standing is None:
        reason = f"{app.deploy_to} holds no release: bake one into the image, or name a tree with source.path"
        return Lane(app=app.name, intent="nothing", steps={}, reason=reason)
    return _keep(config, app, known, standing, moment, reason="it is what the image holds")


def _held(known: Known) -> str | None:
    """The newest release that the image brought: none that was begun here, and none that failed."""
    unfinished = known.state.pending.release if known.state.pending else None
    names = (name for name in known.layout.releases if name != unfinished and known.state.is_proven(name))
    return max(names, default=None)


def _begun(state: AppState, revision: Revision, moment: Moment) -> str | None:
    """The release a run was killed in the middle of making of ``revision``, if its writes are there.

    They are when the power did not go with the run, or had been synced.
    """
    pending = state.pending
    if pending and pending.revision == revision.id and (pending.staged or pending.boot_id == moment.boot_id):
        return pending.release
    return None


def _new_name(known: Known, moment: Moment) -> str:
    pending = known.state.pending
    taken = {*known.layout.releases, *known.state.releases, *({pending.release} if pending else ())}
    # What the app was once read from in place has names of its own.
    return new_name(moment.now, {name for name in taken if is_name(name)})


def _standing(known: Known) -> str | None:
    """The release to stay on: the current one unless it is unproven, else the last good one."""
    layout, state = known.layout, known.state
    unfinished = state.pending.release if state.pending else None
    if layout.current and state.is_proven(layout.current) and layout.current != unfinished:
        return layout.current
    return state.last_good(layout.releases)


def _deploy(config: Config, app: App, known: Known, revision: Revision, name: str, moment: Moment, reason: str) -> Lane:
    left = parts.leave_behind(config, app, known, moment)
    fallback = None if left else _standing(known)
    stage: list[Step] = [
        *left,
        *parts.shared(app, moment),
        *_prune(app, known, moment, making=name),
        *parts.staged(app, name, revision.content, moment),
        *_made_ready(config, app, known, name, revision.id, revision.label),
    ]
    log = f"Branch {revision.origin} (at {revision.label}) deployed as release {name} by bootagent"
    steps: dict[Phase, tuple[Step, ...]] = {
        "stage": tuple(stage),
        "activate": (parts.startable(config, app, name), parts.current(app, name, log)),
        "serve": (parts.services(config, app, name),),
    }
    if volumes.is_on_volumes(app):
        steps["retire"] = _let_go(app, known, moment, name)
    return Lane(
        app=app.name,
        intent="deploy",
        steps=steps,
        release=name,
        revision=revision.id,
        label=revision.label,
        fallback=fallback if fallback != name else None,
        reason=reason,
    )


def _made_ready(config: Config, app: App, known: Known, name: str, revision: str, label: str) -> list[Step]:
    """What makes a release of the content that has come: its links, its REVISION, and what the hook does."""
    volume = _volume(app, name, revision)
    made: list[Step] = [
        *parts.links(app, name, fresh=name != known.layout.current, volume=volume),
        RevisionFile(app.deploy_to, name, label, app.user, app.group),
    ]
    if app.prepare:
        env = {
            "BOOTAGENT_APP": app.name,
            "BOOTAGENT_ROLE": config.role,
            "BOOTAGENT_ENVIRONMENT": config.environment or "",
            "BOOTAGENT_REVISION": label,
        }
        made.append(
            Prepared(
                release=f"{app.deploy_to}/releases/{name}",
                command=app.prepare,
                within=app.hooks_within,
                env=tuple(sorted(env.items())),
                user=app.user,
                group=app.group,
                marker=parts.marker(app, name),
            )
        )
    if volume:
        made.append(MadeRelease(volume))
    return made


def _volume(app: App, name: str, revision: str) -> str | None:
    """The record of the volume that a release is on; None when it is on none."""
    on_one = volumes.is_on_volumes(app) and volumes.is_snapshot(revision)
    return volumes.record(app.name, name) if on_one else None


def _keep(
    config: Config, app: App, known: Known, standing: str | None, moment: Moment, *, reason: str, degraded: bool = False
) -> Lane:
    unread = isinstance(known.revision, BootagentError)
    if standing is None:
        if known.layout.elsewhere:
            reason = f"current points at {known.layout.elsewhere}, which is no release; {reason}"
        return Lane(app=app.name, intent="nothing", steps={}, reason=reason, unread=unread)
    record = known.state.releases.get(standing)
    stage = list(_prune(app, known, moment, making=None))
    if record:
        ready = parts.links(app, standing, fresh=False)
        if _volume(app, standing, record.revision):
            there = volumes.restored(app, standing, record.revision, moment, parts.marker(app, standing))
            if standing not in known.whole:  # on the instance that the image was made of, or lost: it comes as new
                ready = _made_ready(config, app, known, standing, record.revision, record.label)
            ready = [*there, *ready]
        stage = [*parts.shared(app, moment), *stage, *ready]
    else:
        reason = f"release {standing} was put there by someone else; {reason}"
    return Lane(
        app=app.name,
        intent="keep" if record else "hotfix",
        steps={
            "stage": tuple(stage),
            "activate": (parts.current(app, standing, None),) if standing != known.layout.current else (),
            "serve": (parts.services(config, app, standing if record else None),),
        },
        release=standing,
        revision=record.revision if record else None,
        label=record.label if record else None,
        reason=reason,
        degraded=degraded,
        unread=unread,
    )


def _prune(app: App, known: Known, moment: Moment, making: str | None) -> tuple[Step, ...]:
    """Remove what is too old, so that ``keep_releases`` stay with the one in the making; bad ones go first.

    What a killed run left unfinished goes too, unless this run or a later one may finish it. Never the current
    release, nor the last good one. Volumes cost money: of releases that are on their own, no old one stays.
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
    if volumes.is_on_volumes(app):
        doomed = sorted({*(name for name in by_age if name in state.releases), *abandoned})
        keep = tuple(sorted({*present, *((making,) if making else ())} - set(doomed)))
        return (*volumes.retired_volumes(app.name, moment, keep=keep), _pruned(app, doomed))
    return (_pruned(app, sorted({*by_age[: max(0, total - app.keep_releases)], *abandoned})),)


def _let_go(app: App, known: Known, moment: Moment, name: str) -> tuple[Step, ...]:
    """What only the release before this one needed, once this one serves."""
    ours = sorted({*known.state.releases} & {*known.layout.releases} - {name})
    return (*volumes.retired_volumes(app.name, moment, keep=(name,)), _pruned(app, ours))


def _pruned(app: App, doomed: Sequence[str]) -> Step:
    return Prune(app.deploy_to, tuple(doomed), tuple(parts.marker(app, name) for name in doomed))
