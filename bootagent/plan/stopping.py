"""The lanes of a stop: services down, hooks run, and what this agent has put on the machine taken off it again.

In a stop every step has its turn, whatever became of those before it: each looks for itself whether it may.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bootagent.config.model import Config
from bootagent.deadline import NO_HURRY, Deadline
from bootagent.environment import checkout
from bootagent.leaving import Hook, Leaving
from bootagent.plan import environment, parts
from bootagent.plan.down import ToStop, down
from bootagent.plan.lane import Lane, Phase, Plan
from bootagent.state import AppState
from bootagent.steps.as_before import AsBefore
from bootagent.steps.base import Step
from bootagent.steps.no_releases import NoReleases
from bootagent.steps.removed_services import RemovedServices
from bootagent.steps.stop_hook import StopHook
from bootagent.steps.swept import Swept
from bootagent.steps.unmounted import Unmounted
from bootagent.turns import turns

#: How far a stop goes. ``shutdown`` leaves what the next boot needs, ``stop`` what a run without a network needs, and
#: ``reset`` nothing that this agent has made.
Extent = Literal["shutdown", "stop", "reset"]
#: The lane of what is not one app's.
MACHINE = "machine"
#: Of the time that a stop has, so many seconds are kept for the elastic IP, and for what is mounted.
RESERVE_SECONDS = 20.0
#: How long a mount may stay busy once all services are down.
BUSY_SECONDS = 10.0


@dataclass(frozen=True)
class Around:
    """What a stop goes by besides the services: how far it goes, what was noted for it, and where things are.

    ``definitions`` are the directories of service directories, ``apps`` all that have releases here, those that run
    first. ``until`` is when all has to be over.
    """

    extent: Extent
    leaving: Leaving
    definitions: tuple[str, ...]
    apps: tuple[tuple[str, AppState], ...]
    until: Deadline = NO_HURRY


def stop(services: Sequence[ToStop], around: Around, reason: str) -> Plan:
    """The plan of a stop, and why."""
    return Plan((*_apps(_with_hooks(services, around), around, reason), _machine(around, reason)))


def before_services(services: Sequence[ToStop], around: Around) -> Deadline:
    """Of the stop's time, what there is before the first service is told to end."""
    return _kept(around).before(sum(_turns(_with_hooks(services, around), around).values()))


def leaving(config: Config) -> Leaving:
    """What is to be noted for the next stop."""
    hooks = []
    for app in config.apps:
        if app.stop:
            env = {
                "BOOTAGENT_APP": app.name,
                "BOOTAGENT_ROLE": config.role,
                "BOOTAGENT_ENVIRONMENT": config.environment or "",
            }
            variables = tuple(sorted(env.items()))
            given = environment.for_hook(app, app.current, copied=parts.copies_scripts(app))
            hooks.append(Hook(app.name, app.current, app.stop, app.hooks_within, variables, app.user, app.group, given))
    return Leaving(config.runit.service_dir, tuple(hooks))


def _with_hooks(services: Sequence[ToStop], around: Around) -> list[ToStop]:
    """With the apps that have a stop hook and no service: they never had one, or a stop before has removed them."""
    known = {one.app for one in services}
    rest = [hook.app for hook in around.leaving.hooks if hook.app not in known]
    return [*services, *(ToStop(app, around.definitions[0], ()) for app in rest)]


def _apps(services: Sequence[ToStop], around: Around, reason: str) -> Iterator[Lane]:
    hooks = {hook.app: hook for hook in around.leaving.hooks}
    wanted, until = _turns(services, around), _kept(around)
    for one in services:
        hook = hooks.get(one.app)
        # What waits until the services of this app are down, and its hook was run.
        after = sum(seconds for apps, seconds in wanted.items() if _is_before(apps, one.app, wanted))
        later = until.before(after + (hook.within if hook else 0.0))
        steps: dict[Phase, tuple[Step, ...]] = {
            "stop": (
                *(down(one, later) if one.services else ()),
                *([_hook(hook, one, around, until.before(after))] if hook else ()),
            )
        }
        if around.extent != "shutdown" and one.services:
            removed = RemovedServices(one.app, one.definitions, around.leaving.service_dir, one.services, until)
            steps["remove"] = (removed,)
        yield Lane(one.app, "stop", steps, reason=reason, after=one.after)


def _kept(around: Around) -> Deadline:
    return replace(around.until, reserve=RESERVE_SECONDS)


def _turns(services: Sequence[ToStop], around: Around) -> dict[tuple[str, ...], float]:
    """The apps in the turns they were started in, which end in reverse, and how many seconds each may take to end."""
    hooks = {hook.app: hook.within for hook in around.leaving.hooks}
    wanted: dict[str, float] = {}
    for one in services:  # an app may have services in two places
        wanted[one.app] = max(wanted.get(one.app, 0.0), one.seconds() + hooks.get(one.app, 0.0))
    found = turns({one.app: one.after for one in services})
    return {tuple(apps): max(wanted[app] for app in apps) for apps in found}


def _is_before(apps: tuple[str, ...], app: str, wanted: Mapping[tuple[str, ...], float]) -> bool:
    """Whether these apps were started in an earlier turn than ``app``."""
    own = next(index for index, names in enumerate(wanted) if app in names)
    return list(wanted).index(apps) < own


def _hook(hook: Hook, stopped: ToStop, around: Around, until: Deadline) -> Step:
    app = next((app for name, app in around.apps if name == hook.app), None)
    record = app.releases.get(app.proven) if app and app.proven else None
    services = tuple(f"{stopped.definitions}/{name}/service" for name, _ in stopped.services)
    return StopHook(hook, record.label if record else "", services, until)


def _machine(around: Around, reason: str) -> Lane:
    steps: dict[Phase, tuple[Step, ...]] = {
        "unmount": (Unmounted(BUSY_SECONDS, around.extent == "shutdown", around.until),)
    }
    if around.extent != "shutdown":
        reset = around.extent == "reset"
        places = list(dict.fromkeys(app.deploy_to for _, app in around.apps))
        kept = () if reset else tuple(f"{place}/releases" for place in places)
        steps["sweep"] = (
            *(Swept(definitions, around.leaving.service_dir) for definitions in around.definitions),
            *(_released(place, around) for place in sorted(places) if reset),
            AsBefore("reset" if reset else "stop", kept),
        )
    return Lane(MACHINE, "stop", steps, reason=reason)


def _released(deploy_to: str, around: Around) -> Step:
    """What takes the releases away from a directory; an app that was renamed may have its share in it."""
    apps = [(name, app) for name, app in around.apps if app.deploy_to == deploy_to]
    releases: set[str] = set()
    own: list[str] = []
    for name, app in apps:
        known = () if app.in_place else {*app.releases, *([app.pending.release] if app.pending else ())}
        releases |= {*known}
        own += [*(parts.marker_of(name, release) for release in sorted(known)), checkout.place(name)]
    return NoReleases(", ".join(name for name, _ in apps), deploy_to, tuple(sorted(releases)), tuple(own))
