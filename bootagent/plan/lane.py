"""What a plan is made of and what it is made from: values, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from bootagent.errors import BootagentError
from bootagent.release import Layout
from bootagent.sources import Revision
from bootagent.state import AppState
from bootagent.steps.base import Step
from bootagent.turns import turns

Phase = Literal[
    "attach", "stage", "activate", "serve", "announce", "retire", "drain", "stop", "remove", "unmount", "sweep"
]
PHASES: tuple[Phase, ...] = ("attach", "stage", "activate", "serve", "announce", "retire")
#: The phases of a lane in which a failure has it go back to the release that worked.
DEPLOYING: tuple[Phase, ...] = ("stage", "activate", "serve")
#: The phases of a stop, in which a failure keeps nothing else from its turn.
STOPPING: tuple[Phase, ...] = ("drain", "stop", "remove", "unmount", "sweep")
Intent = Literal["deploy", "keep", "hotfix", "rollback", "retire", "stop", "announce", "withdraw", "nothing"]


@dataclass(frozen=True)
class Lane:
    """What one app goes through.

    ``release`` is the one it ends on, ``revision`` and ``label`` what that is made of (None when it is not ours).
    ``fallback`` is the release to put back should the activation fail. ``reason`` says in a sentence why the lane is
    what it is; ``degraded`` that this is less than what was asked for, ``unread`` that the source did not answer.
    ``after`` are apps whose services are up before those of this one are begun.
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
    after: tuple[str, ...] = ()


def in_turns(lanes: Sequence[Lane]) -> list[list[Lane]]:
    """The lanes in groups, each after the groups of those it comes after."""
    found = turns({lane.app: lane.after for lane in lanes})
    return [[lane for lane in lanes if lane.app in names] for names in found]


def turns_of(phase: Phase, lanes: Sequence[Lane]) -> list[list[Lane]]:
    """The lanes in the groups in which a phase has its turn: services start after others, and end before those."""
    if phase == "serve":
        return in_turns(lanes)
    leaving = list(reversed(in_turns([lane for lane in lanes if lane.intent == "retire"])))
    if phase != "stage" or not leaving:
        return [list(lanes)]
    first, *others = leaving
    return [[*first, *(lane for lane in lanes if lane.intent != "retire")], *others]


@dataclass(frozen=True)
class Plan:
    """The lanes of all apps.

    ``announce`` is for the node as a whole, once they all serve; ``withdraw`` for when one does not serve at all.
    """

    lanes: tuple[Lane, ...]
    announce: Lane | None = None
    withdraw: Lane | None = None


@dataclass(frozen=True)
class Known:
    """What is known of one app before planning: the disk, what the source holds, and the state.

    ``revision`` is an error when the source could not be read; ``fallback`` is then what the image holds in its place.
    ``present``: what an app reads in place is there, whether it answers or not. ``volumes`` are the releases for which
    a volume has been attached, ``whole`` those of them whose volume is this instance's own and here, and all that makes
    a release of it was done. ``environment`` is the commit that its git repository has for the environment tree, or
    why that is not known; ``environment_present`` the one that is checked out.
    """

    layout: Layout
    revision: Revision | BootagentError
    state: AppState
    fallback: Revision | None = None
    present: bool = True
    volumes: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    environment: str | BootagentError | None = None
    environment_present: str | None = None


@dataclass(frozen=True)
class Moment:
    """When and where the plan is made. ``now`` is UTC; ``retry``: give a bad revision another chance.

    ``zone`` is the availability zone. ``serving``: the node is to serve, so that traffic may come to it.
    """

    now: datetime
    boot_id: str
    region: str | None
    retry: bool = False
    instance_id: str | None = None
    zone: str | None = None
    serving: bool = True
