"""Lanes of apps whose releases are read where they are: through an NFS mount, on a volume with all of deploy_to, or in
the image itself.

There is nothing to stage and no link of ours to switch. A release goes by the name its source has for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from bootagent.config.model import App, Config, EbsSource, ImageSource, NfsSource
from bootagent.errors import BootagentError
from bootagent.plan import environment, parts, volumes
from bootagent.plan.lane import Known, Lane, Moment, Phase
from bootagent.release import short
from bootagent.sources import IMAGE_IN_PLACE, Revision, Tree
from bootagent.state import AppState
from bootagent.steps.base import Step
from bootagent.steps.copied_scripts import CopiedScripts
from bootagent.steps.uncovered import Uncovered


def lane(config: Config, app: App, known: Known, moment: Moment) -> Lane:
    """The lane of an app."""
    revision, state = known.revision, known.state
    stays = standing(app, state)
    if isinstance(revision, BootagentError):
        return _unread(config, app, known, stays, moment, str(revision))
    label = short(revision.label)
    failed = state.has_failed(revision.id)
    if stays and state.revision_of(stays) == revision.id:
        return _keep(config, app, known, stays, moment, reason=f"{label} is what was deployed last")
    if stays and isinstance(app.source, EbsSource) and not moment.retry:
        if failed:
            reason = f"{label} failed before; make another snapshot, or give it a try with --retry"
            return _keep(config, app, known, stays, moment, reason=reason, degraded=True)
        if revision.id == state.revision:
            reason = f"{label} was rolled back; --retry deploys it again"
            return _keep(config, app, known, stays, moment, reason=reason)
    reason = f"{label} failed before: see whether it works by now" if failed else f"{label} is new"
    return _deploy(config, app, known, revision, stays, moment, reason)


def put_back(config: Config, app: App, state: AppState, release: str, *, reason: str) -> Lane:
    """The lane back to ``release``, which is still there."""
    record = state.releases[release]
    shown: tuple[Step, ...] = ()
    if isinstance(app.source, EbsSource):
        shown = (volumes.shown(app, app.source, release),)
    return Lane(
        app=app.name,
        intent="rollback",
        steps={"activate": shown, "serve": (parts.services(config, app, record.revision),)},
        release=release,
        label=record.label,
        reason=reason,
    )


def restore(config: Config, app: App, state: AppState, release: str, moment: Moment, *, reason: str) -> Lane:
    """The lane back to ``release``, on a volume made from its snapshot again."""
    record = state.releases[release]
    steps = _steps(config, app, release, record.revision, moment)
    return Lane(app.name, "rollback", steps, release=release, label=record.label, reason=reason)


def standing(app: App, state: AppState) -> str | None:
    """The release last seen to serve, if it has not failed since, and is not from before the app was read in place."""
    name = state.proven
    record = state.releases.get(name) if name else None
    if name is None or record is None or record.state != "good":
        return None
    if isinstance(app.source, EbsSource):
        return name if record.revision == name else None
    if isinstance(app.source, ImageSource):
        return name if record.revision == IMAGE_IN_PLACE else None
    return name if record.revision.startswith("nfs:") and record.label == name else None


def _unread(config: Config, app: App, known: Known, standing: str | None, moment: Moment, reason: str) -> Lane:
    if standing and isinstance(app.source, EbsSource):
        return _keep(config, app, known, standing, moment, reason=reason, degraded=True)
    if standing and known.present:
        # Its server does not answer: whoever touches the mount now may hang. What runs, runs.
        return Lane(app.name, "keep", {}, release=standing, reason=reason, degraded=True, unread=True)
    if known.fallback and isinstance(known.fallback.content, Tree):
        return _stand_in(config, app, known.fallback, known.fallback.content, reason)
    unread = not isinstance(app.source, ImageSource)  # nothing will come of waiting for what is not in the image
    return Lane(app=app.name, intent="nothing", steps={}, reason=reason, unread=unread)


def _stand_in(config: Config, app: App, baked: Revision, tree: Tree, reason: str) -> Lane:
    """What the image holds, run where it is."""
    return Lane(
        app=app.name,
        intent="keep",
        steps={"serve": (parts.services(config, app, baked.id, stand_in=tree.path),)},
        release=baked.label,
        label=baked.label,
        reason=f"{reason}; until it can be read, what the image holds serves",
        degraded=True,
        unread=True,
    )


def _keep(
    config: Config, app: App, known: Known, standing: str, moment: Moment, *, reason: str, degraded: bool = False
) -> Lane:
    record = known.state.releases[standing]
    return Lane(
        app=app.name,
        intent="keep",
        steps=_steps(config, app, standing, record.revision, moment),
        release=standing,
        revision=record.revision,
        label=record.label,
        reason=reason,
        degraded=degraded,
        unread=isinstance(known.revision, BootagentError),
    )


def _deploy(
    config: Config, app: App, known: Known, revision: Revision, standing: str | None, moment: Moment, reason: str
) -> Lane:
    name = _name(app, revision)
    left = parts.leave_behind(config, app, known, moment)
    if left and isinstance(app.source, EbsSource) and app.source.bind:
        left = [Uncovered(app.deploy_to), *left]  # there is no way back: what would stop us later stops us now
    fallback = standing if standing != name and isinstance(app.source, EbsSource) else None
    return Lane(
        app=app.name,
        intent="deploy",
        steps=_steps(config, app, name, revision.id, moment, first=left),
        release=name,
        revision=revision.id,
        label=revision.label,
        fallback=fallback,
        reason=reason,
    )


def _steps(
    config: Config, app: App, name: str, revision: str, moment: Moment, *, first: Sequence[Step] = ()
) -> dict[Phase, tuple[Step, ...]]:
    """What has the app run the release ``name``, wherever it stands; ``first`` comes before all."""
    serve = (parts.services(config, app, revision),)
    if isinstance(app.source, NfsSource):
        return {"stage": (*first, _copied_scripts(app), *environment.copied(app)), "serve": serve}
    if not isinstance(app.source, EbsSource):
        return {"stage": tuple(first), "serve": serve}
    return {
        "stage": (*first, volumes.attached(app, app.source, name, revision, moment)),
        "activate": (volumes.shown(app, app.source, name),),
        "serve": serve,
        "retire": volumes.retired_volumes(app.name, moment, keep=(name,)),
    }


def _name(app: App, revision: Revision) -> str:
    return revision.id if isinstance(app.source, EbsSource) else revision.label


def _copied_scripts(app: App) -> Step:
    origin = f"{app.deploy_to}/current/{app.release_services}"
    return CopiedScripts(origin, parts.scripts(app), app.user, app.group)
