"""The lanes of a stop: services down, hooks run, and what this agent has put on the machine taken off it again.

In a stop every step has its turn, whatever became of those before it: each looks for itself whether it may.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bootagent.config.model import Config
from bootagent.environment import checkout
from bootagent.leaving import MARKERS, Hook, Leaving
from bootagent.plan import parts
from bootagent.plan.lane import Lane, Phase, Plan
from bootagent.state import AppState
from bootagent.steps.as_before import AsBefore
from bootagent.steps.base import Step
from bootagent.steps.no_orphans import NoOrphans
from bootagent.steps.no_releases import NoReleases
from bootagent.steps.removed_services import RemovedServices
from bootagent.steps.stop_hook import StopHook
from bootagent.steps.stopped import Stopped
from bootagent.steps.swept import Swept
from bootagent.steps.unmounted import Unmounted

#: How far a stop goes. ``shutdown`` leaves what the next boot needs, ``stop`` what a run without a network needs, and
#: ``reset`` nothing that this agent has made.
Extent = Literal["shutdown", "stop", "reset"]
#: The lane of what is not one app's.
MACHINE = "machine"
#: When the machine goes down, a hook gets no more seconds than this.
HURRIED_SECONDS = 120.0
#: How long a mount may stay busy once all services are down.
BUSY_SECONDS = 10.0


@dataclass(frozen=True)
class ToStop:
    """An app's service directories below ``definitions``, each with the seconds it may take to stop.

    ``order`` says of services, ``after`` of the app, what they were started after: it is stopped after them.
    """

    app: str
    definitions: str
    services: tuple[tuple[str, float], ...]
    order: tuple[tuple[str, tuple[str, ...]], ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Around:
    """What a stop goes by besides the services: how far it goes, what was noted for it, and where things are.

    ``definitions`` are the directories of service directories.
    """

    extent: Extent
    leaving: Leaving
    definitions: tuple[str, ...]
    apps: Mapping[str, AppState]


def stop(services: Sequence[ToStop], around: Around, reason: str) -> Plan:
    """The plan of a stop, and why."""
    return Plan((*_apps(services, around, reason), _machine(around, reason)))


def services_down(services: Sequence[ToStop]) -> tuple[Step, ...]:
    """What takes these services down, in order, and nothing else."""
    return tuple(Stopped(one.app, one.definitions, one.services, one.order) for one in services)


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
            hooks.append(Hook(app.name, app.current, app.stop, app.hooks_within, variables, app.user, app.group))
    return Leaving(config.runit.service_dir, tuple(hooks))


def _apps(services: Sequence[ToStop], around: Around, reason: str) -> Iterator[Lane]:
    hooks = {hook.app: hook for hook in around.leaving.hooks}
    for one in services:
        steps: dict[Phase, tuple[Step, ...]] = {
            "stop": (
                *services_down([one]),
                NoOrphans(one.app, one.definitions, one.services),
                *([_hook(hooks[one.app], one, around)] if one.app in hooks else ()),
            )
        }
        if around.extent != "shutdown":
            removed = RemovedServices(one.app, one.definitions, around.leaving.service_dir, one.services)
            steps["remove"] = (removed,)
        yield Lane(one.app, "stop", steps, reason=reason, after=one.after)


def _hook(hook: Hook, stopped: ToStop, around: Around) -> Step:
    app = around.apps.get(hook.app)
    record = app.releases.get(app.proven) if app and app.proven else None
    return StopHook(
        app=hook.app,
        current=hook.current,
        command=hook.command,
        within=min(hook.within, HURRIED_SECONDS) if around.extent == "shutdown" else hook.within,
        env=(*hook.env, ("BOOTAGENT_REVISION", record.label if record else "")),
        user=hook.user,
        group=hook.group,
        services=tuple(f"{stopped.definitions}/{name}/service" for name, _ in stopped.services),
        marker=f"{MARKERS}/{hook.app}",
    )


def _machine(around: Around, reason: str) -> Lane:
    steps: dict[Phase, tuple[Step, ...]] = {"unmount": (Unmounted(BUSY_SECONDS, around.extent == "shutdown"),)}
    if around.extent != "shutdown":
        reset = around.extent == "reset"
        kept = () if reset else tuple(f"{app.deploy_to}/releases" for app in around.apps.values())
        steps["sweep"] = (
            *(Swept(definitions, around.leaving.service_dir) for definitions in around.definitions),
            *(_released(name, app) for name, app in sorted(around.apps.items()) if reset),
            AsBefore("reset" if reset else "stop", kept),
        )
    return Lane(MACHINE, "stop", steps, reason=reason)


def _released(name: str, app: AppState) -> Step:
    known = () if app.in_place else (*app.releases, *([app.pending.release] if app.pending else ()))
    names = tuple(sorted(set(known)))
    own = (*(parts.marker_of(name, release) for release in names), checkout.place(name))
    return NoReleases(name, app.deploy_to, names, own)
