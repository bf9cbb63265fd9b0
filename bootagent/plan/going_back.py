"""Going back because somebody asked: to which releases that is possible, and the lane there.

Of releases on volumes only the one that serves has its volume. Any other comes back from its snapshot, as new: what was
written to the volume since is not in it.
"""

from __future__ import annotations

from dataclasses import replace

from bootagent.config.model import App, Config, EbsSource
from bootagent.plan import environment, in_place, staged, volumes
from bootagent.plan.lane import Known, Lane, Moment
from bootagent.release import Layout, is_name
from bootagent.state import AppState


def can_go_back(app: App) -> bool:
    """Whether the agent has a say in which release the app runs."""
    return not app.in_place or isinstance(app.source, EbsSource)


def choices(app: App, layout: Layout, state: AppState) -> tuple[str, ...]:
    """The releases there are to go back to, oldest first: on the disk, or to be had from their snapshots."""
    if app.in_place:
        found = [(one.at, name) for name, one in state.releases.items() if _is_whole(name, state)]
        return tuple(name for _, name in sorted(found))
    if not volumes.is_on_volumes(app):
        return layout.releases
    restorable = {name for name in state.releases if is_name(name) and snapshot_of(app, state, name)}
    return tuple(sorted({*layout.releases, *restorable}))


def previous(app: App, layout: Layout, state: AppState) -> str | None:
    """The release to go back to unless one is named: the newest before the one that serves that is good."""
    there = choices(app, layout, state)
    if not app.in_place:
        return staged.previous(replace(layout, releases=there), state)
    standing = in_place.standing(app, state)
    before = there[: there.index(standing)] if standing in there else there
    return next((name for name in reversed(before) if state.is_proven(name)), None)


def serving(app: App, layout: Layout, state: AppState) -> str | None:
    """The release that serves now."""
    return in_place.standing(app, state) if app.in_place else layout.current


def snapshot_of(app: App, state: AppState, release: str) -> str | None:
    """What brings a release; None when no snapshot does."""
    revision = state.revision_of(release)
    return revision if isinstance(app.source, EbsSource) and revision and volumes.is_snapshot(revision) else None


def lane(config: Config, app: App, known: Known, release: str, moment: Moment) -> Lane:
    """The lane to ``release``, that comes back to the one which serves now if it fails.

    Code goes back; secrets and an environment from git are those of today, or, where they cannot be had, at hand.
    """
    layout, state = known.layout, known.state
    here = serving(app, layout, state)
    left = here if here != release else None
    reason = "asked by bootagent rollback"
    if app.in_place:
        back = in_place.restore(config, app, state, release, moment, reason=reason)
    elif snapshot_of(app, state, release):
        back = staged.restore(config, app, known, release, moment, reason=reason)
    else:
        back = staged.put_back(config, app, state, release, left=left, reason=reason)
    return replace(environment.completed(back, app, known, moment, or_at_hand=True), fallback=left)


def _is_whole(name: str, state: AppState) -> bool:
    return volumes.is_snapshot(name) and state.revision_of(name) == name
