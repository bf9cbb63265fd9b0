"""What a lane does for the environment of its app's services: the tree from git, and the secrets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bootagent.config.model import App, Service
from bootagent.environment import checkout, secrets
from bootagent.environment.directories import Tree
from bootagent.environment.fetch import Asked
from bootagent.errors import BootagentError
from bootagent.git_repository import Commit
from bootagent.git_repository.address import without_secrets
from bootagent.hooks import Given
from bootagent.plan.lane import Known, Lane, Moment
from bootagent.steps.base import Step
from bootagent.steps.copied_scripts import CopiedScripts
from bootagent.steps.environment_checkout import EnvironmentCheckout
from bootagent.steps.fetched_secrets import FetchedSecrets, ServiceSecrets
from bootagent.steps.prepared import Prepared

#: Where the tree of a release is copied to, when the release itself must not be touched by the agent.
COPIES = "/run/bootagent/environment"


def tree(app: App, current: str, *, copied: bool = False) -> Tree | None:
    """Where the app's environment tree is when its services run in ``current``; None when it has none.

    ``copied``: it is read from a copy.
    """
    found = app.environment
    if found is None:
        return None
    if found.git:
        shown = "/".join(filter(None, (without_secrets(found.git.url), found.path)))
        return Tree(f"{checkout.place(app.name)}/{checkout.CURRENT}", found.path or ".", found.layers, shown)
    if found.path.startswith("/"):
        return Tree(found.path, ".", found.layers, found.path)
    shown = f"{current}/{found.path}"
    if copied:
        return Tree(f"{COPIES}/{app.name}", ".", found.layers, shown, of_release=True, copied=True)
    return Tree(current, found.path, found.layers, shown, of_release=True)


def copied(app: App) -> list[Step]:
    """The copy of a tree that is in a release read in place."""
    found = app.environment
    if found is None or found.git or found.path.startswith("/"):
        return []
    origin = f"{app.deploy_to}/current/{found.path}"
    return [CopiedScripts(origin, f"{COPIES}/{app.name}", app.user, app.group)]


def secrets_place(app: str, service: Service) -> str | None:
    """Where the secrets of a service are; None when it has none. Those a release brings share theirs."""
    if not service.secrets:
        return None
    return secrets.place(app, None if service.name == "*" else service.name)


def for_hook(app: App, current: str, *, copied: bool = False) -> Given | None:
    """What a hook that runs in ``current`` finds: what all services of the app do. None when that is nothing."""
    found, secret = tree(app, current, copied=copied), secrets_place(app.name, app.unnamed)
    return Given(app.name, found, secret) if found or secret else None


def hooks_secrets(app: App) -> str | None:
    """Where the secrets of the app's hooks are: those of the services that a release brings. None without hooks."""
    return secrets_place(app.name, app.unnamed) if app.prepare or app.stop else None


def completed(lane: Lane, app: App, known: Known, moment: Moment, *, or_at_hand: bool = False) -> Lane:
    """The lane with what must be there before its hook is run and its services are started.

    ``or_at_hand``: secrets that cannot be had are no reason not to go on with those that are there.
    """
    if "serve" not in lane.steps:
        return lane
    unread = isinstance(known.environment, BootagentError)
    if unread and known.environment_present is None:
        return Lane(app.name, "nothing", {}, reason=f"environment: {known.environment}", unread=True)
    more = (*_checked_out(app, known, moment), *_fetched(app, moment, or_at_hand=or_at_hand))
    if stage := _with(lane.steps.get("stage", ()), more, app):
        lane = replace(lane, steps={**lane.steps, "stage": stage})
    if unread:
        kept = (known.environment_present or "")[:12]
        said = f"{lane.reason}; {known.environment}; the environment stays that of {kept}"
        return replace(lane, reason=said, degraded=True, unread=True)
    return lane


def _with(stage: Sequence[Step], more: Sequence[Step], app: App) -> tuple[Step, ...]:
    """What is staged, and more: before the hook, which is to find it, else last."""
    at = next((index for index, step in enumerate(stage) if isinstance(step, Prepared)), len(stage))
    hook = [replace(one, given=for_hook(app, one.release)) for one in stage[at:] if isinstance(one, Prepared)]
    return (*stage[:at], *more, *hook, *stage[at + len(hook) :])


def _checked_out(app: App, known: Known, moment: Moment) -> list[Step]:
    if app.environment is None or app.environment.git is None or not isinstance(known.environment, str):
        return []
    git = app.environment.git
    commit = Commit(git.url, known.environment, git.submodules, git.key, git.known_hosts, moment.region)
    place = tree(app, "/")
    assert place is not None
    return [EnvironmentCheckout(app.name, commit, place, app.limits.within)]


def _fetched(app: App, moment: Moment, *, or_at_hand: bool) -> list[Step]:
    own = [service for service in app.services if app.only is None or service.name in app.only]
    # The role may name one that only the release knows; and hooks have what those have.
    brings = app.only is None or {*app.only} - {service.name for service in app.services} or hooks_secrets(app)
    wanted = [
        ServiceSecrets(place, _asked(service), tuple(name for name, _ in service.env))
        for service in (*own, *((app.unnamed,) if brings else ()))
        if (place := secrets_place(app.name, service))
    ]
    return [FetchedSecrets(app.name, tuple(wanted), moment.region, or_at_hand)] if wanted else []


def _asked(service: Service) -> tuple[Asked, ...]:
    return tuple(Asked(one.name, one.origin) for one in service.secrets)
