"""What the agent remembers between runs, as frozen values and as one JSON file written atomically.

The disk is the truth about what is there; the state says what it means: which revision was last dealt with, which
releases proved good or bad, and what a killed run was in the middle of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bootagent import own_file
from bootagent.machine import Machine

PATH = "/var/lib/bootagent/state.json"

ReleaseState = Literal["staged", "active", "good", "bad"]


@dataclass(frozen=True)
class ReleaseRecord:
    """What is known of one release. ``at`` is RFC 3339 UTC; ``reason`` says why it is bad."""

    state: ReleaseState
    revision: str
    label: str
    at: str
    reason: str | None = None


@dataclass(frozen=True)
class Pending:
    """A release being made. ``boot_id`` tells a killed run, whose writes are there, from a power cut."""

    release: str
    revision: str
    label: str
    boot_id: str
    staged: bool = False


@dataclass(frozen=True)
class AppState:
    """``revision`` is the identity last dealt with, well or badly: only another one makes a new release.

    ``proven`` is the release last seen to serve, whoever made it: the one to go back to. ``in_place``: the releases
    are somewhere else, and it may hang to look at ``deploy_to``.
    """

    deploy_to: str
    revision: str | None = None
    pending: Pending | None = None
    releases: Mapping[str, ReleaseRecord] = field(default_factory=dict)
    proven: str | None = None
    in_place: bool = False

    def with_release(self, name: str, record: ReleaseRecord) -> AppState:
        """The same with one record added or replaced."""
        return replace(self, releases={**self.releases, name: record})

    def revision_of(self, name: str) -> str | None:
        """What a release is made of; None when it is not ours."""
        return self.releases[name].revision if name in self.releases else None

    def is_proven(self, name: str) -> bool:
        """Whether a release is good, or somebody else's business."""
        return name not in self.releases or self.releases[name].state == "good"

    def has_failed(self, revision: str) -> bool:
        """Whether a release made of a revision failed its activation."""
        return any(one.state == "bad" and one.revision == revision for one in self.releases.values())

    def is_bad(self, name: str | None) -> bool:
        """Whether a release failed its activation."""
        return name is not None and name in self.releases and self.releases[name].state == "bad"

    def last_good(self, present: tuple[str, ...]) -> str | None:
        """The release last seen to serve, or else the newest good one, among those present."""
        if self.proven in present and not self.is_bad(self.proven):
            return self.proven
        good = [name for name, record in self.releases.items() if record.state == "good" and name in present]
        return max(good, default=None)


@dataclass(frozen=True)
class Failure:
    """What went wrong with an app; with None, before any app had its turn.

    ``phase`` and ``step`` say where, ``sentence`` why, ``tail`` what the program or service last said. ``code``,
    ``request_id`` and ``iam_action`` are those of the call to AWS that failed.
    """

    sentence: str
    app: str | None = None
    phase: str = "read"
    step: str | None = None
    tail: str = ""
    code: str | None = None
    request_id: str | None = None
    iam_action: str | None = None


@dataclass(frozen=True)
class LastRun:
    """How the last finished run ended; ``apps`` maps each to its sentence, ``exit_codes`` to what it ended in.

    Times are RFC 3339 UTC; ``phases`` says how many seconds each had, where lanes run side by side the longest.
    """

    run: str
    command: str
    started: str
    finished: str
    exit_code: int
    outcome: str
    error: str | None = None
    role: str | None = None
    environment: str | None = None
    apps: Mapping[str, str] = field(default_factory=dict)
    boot_id: str | None = None
    mode: str | None = None
    seconds: float = 0.0
    exit_codes: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What others were told last: the instance's tags in EC2, in which region, and the file for Prometheus.

    ``boot_id`` is the boot in which it was seen whose tags they are.
    """

    region: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: str | None = None
    boot_id: str | None = None


@dataclass(frozen=True)
class State:
    """Everything remembered. ``instance_id`` is the machine it was learned on, ``begun`` the run that began last.

    ``tags`` are those given on a command line: user-data may say them once, and a reboot is to end in the same role.
    ``stopped`` is the boot in which somebody wanted the services down, ``definitions`` where their directories are.
    ``left`` are apps, by name, that the role does not run any more, or that are somewhere else now: their releases are
    there yet.
    """

    instance_id: str | None = None
    apps: Mapping[str, AppState] = field(default_factory=dict)
    last_run: LastRun | None = None
    begun: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    stopped: str | None = None
    definitions: str | None = None
    told: Told = Told()
    left: tuple[tuple[str, AppState], ...] = ()

    def app(self, name: str, deploy_to: str) -> AppState:
        """An app's state in this directory; a fresh one when none is known."""
        there = [*self.apps.items(), *self.left]
        found = (app for other, app in there if (other, app.deploy_to) == (name, deploy_to))
        return next(found, AppState(deploy_to))

    def with_app(self, name: str, app: AppState | None) -> State:
        """The same with one app's state replaced; None: the role does not run it any more."""
        others = {key: value for key, value in self.apps.items() if key != name}
        before, place = self.apps.get(name), app.deploy_to if app else None
        left = [(other, one) for other, one in self.left if (other, one.deploy_to) != (name, place)]
        if before and before.deploy_to != place and before.releases:
            left.append((name, replace(before, pending=None)))
        return replace(self, apps={**others, name: app} if app else others, left=tuple(left))

    def tags_on(self, instance_id: str | None) -> Mapping[str, str]:
        """The tags remembered for this instance."""
        return self.on_instance(instance_id).tags

    def on_instance(self, instance_id: str | None) -> State:
        """The state as it holds on this instance: what an image baked elsewhere was in the middle of is forgotten."""
        if self.instance_id == instance_id:
            return self
        if self.instance_id is None:  # learned where no metadata said who it was, say while an image was made
            return replace(self, instance_id=instance_id, tags={}, told=Told(metrics=self.told.metrics))
        apps = {name: replace(app, pending=None) for name, app in self.apps.items()}
        told = Told(metrics=self.told.metrics)
        return State(instance_id, apps, None, self.begun, definitions=self.definitions, told=told, left=self.left)


def load(machine: Machine) -> State:
    """Read the state. A damaged file is set aside: the disk tells the rest. Raises MachineError."""
    return own_file.load(machine, PATH, _from_json) or State()


def save(machine: Machine, state: State) -> None:
    """Write the state atomically and durably; only root may read it. Raises MachineError."""
    own_file.save(machine, PATH, state)


def _from_json(found: Any) -> State:
    return State(
        instance_id=found["instance_id"],
        apps={name: _app(app) for name, app in found["apps"].items()},
        last_run=_last_run(found["last_run"]) if found["last_run"] else None,
        begun=found.get("begun"),
        tags=found.get("tags", {}),
        stopped=found.get("stopped"),
        definitions=found.get("definitions"),
        told=Told(**found.get("told", {})),
        left=tuple((name, _app(app)) for name, app in found.get("left", ())),
    )


def _app(found: Any) -> AppState:
    return AppState(
        deploy_to=found["deploy_to"],
        revision=found["revision"],
        proven=found.get("proven"),
        in_place=found.get("in_place", False),
        pending=Pending(**found["pending"]) if found["pending"] else None,
        releases={key: ReleaseRecord(**record) for key, record in found["releases"].items()},
    )


def _last_run(found: Any) -> LastRun:
    failures = tuple(Failure(**one) for one in found.get("failures", ()))
    return LastRun(**{**found, "failures": failures})
