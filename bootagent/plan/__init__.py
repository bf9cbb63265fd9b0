"""The plan: what is to be done, as values. Pure: no files, no clock, no AWS.

Each app has a lane through the phases. Lanes run side by side; a lane that fails stops, and the others go on.

- ``lane.py``: what a plan is made of, and from
- ``attachments.py``: mounts and data volumes, which must be there before anything else can be looked at
- ``staged.py``: lanes of apps whose releases are made here, in Capistrano's layout
- ``in_place.py``: lanes of apps whose releases are read where they are
- ``going_back.py``: to which release an app may go back, and its lane there
- ``stopping.py``: the lanes of a stop; ``down.py``: in which order services are taken down
- ``traffic.py``: what is done for the node as a whole, when its apps serve
- ``environment.py``: the environment tree from git, and secrets
- ``parts.py``: the steps that all kinds of lanes are put together from
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bootagent.config.model import App, Config, Runit
from bootagent.environment import checkout
from bootagent.errors import BootagentError
from bootagent.plan import environment, going_back, in_place, parts, staged, volumes
from bootagent.plan.attachments import Attachment, attachments
from bootagent.plan.down import ToStop, no_services, services_down
from bootagent.plan.lane import (
    DEPLOYING,
    PHASES,
    STOPPING,
    Intent,
    Known,
    Lane,
    Moment,
    Phase,
    Plan,
    in_turns,
    turns_of,
)
from bootagent.plan.stopping import MACHINE, Around, Extent, before_services, leaving, stop
from bootagent.plan.traffic import TRAFFIC, Told, former_traffic, off, with_traffic
from bootagent.plan.volumes import former, record, volume_record
from bootagent.state import AppState
from bootagent.steps.forgotten import Forgotten

__all__ = [
    "DEPLOYING",
    "MACHINE",
    "PHASES",
    "STOPPING",
    "TRAFFIC",
    "Around",
    "Attachment",
    "Extent",
    "Intent",
    "Known",
    "Lane",
    "Moment",
    "Phase",
    "Plan",
    "ToStop",
    "Told",
    "attachments",
    "before_services",
    "former",
    "former_traffic",
    "going_back",
    "in_turns",
    "leaving",
    "make",
    "off",
    "put_back",
    "record",
    "services_down",
    "stop",
    "turns_of",
    "volume_record",
    "with_traffic",
]


def make(config: Config, known: Mapping[str, Known], retired: Sequence[ToStop], moment: Moment) -> Plan:
    """The plan for the role's apps, and for those in ``retired``, which have services and no place in the role."""
    lanes = [_lane(config, app, known[app.name], moment) for app in config.apps]
    gone = dict.fromkeys(one.app for one in retired)
    of_app = {app: [one for one in retired if one.app == app] for app in gone}
    return Plan((*(_retire(config.runit, app, there, moment) for app, there in of_app.items()), *lanes))


def put_back(config: Config, app: App, state: AppState, release: str, *, left: str | None, reason: str) -> Lane:
    """The lane back to ``release``, or that stays on it: after a failure, or because somebody asked.

    ``left`` is the release that was switched to meanwhile; None when none was.
    """
    if app.in_place:
        return in_place.put_back(config, app, state, release, reason=reason)
    return staged.put_back(config, app, state, release, left=left, reason=reason)


def _retire(runit: Runit, app: str, there: Sequence[ToStop], moment: Moment) -> Lane:
    # First of all: what this role does not run must not hold a port that it needs.
    down = [step for one in there for step in no_services(one, runit.service_dir)]
    gone = Forgotten(app, (checkout.place(app), f"{environment.COPIES}/{app}", f"{parts.SCRIPTS}/{app}"))
    steps = (*down, gone, *volumes.retired_volumes(app, moment, keep=()))
    after = tuple(sorted({other for one in there for other in one.after}))
    return Lane(app=app, intent="retire", steps={"stage": steps}, reason="the role does not run it", after=after)


def _lane(config: Config, app: App, known: Known, moment: Moment) -> Lane:
    """One app that cannot be planned must not keep the others from their turn."""
    try:
        made = in_place.lane(config, app, known, moment) if app.in_place else staged.lane(config, app, known, moment)
        return replace(environment.completed(made, app, known, moment), after=app.after)
    except BootagentError as error:
        return Lane(app=app.name, intent="nothing", steps={}, reason=str(error))
