"""What the agent knows from run to run, and how a run adds to it: before each phase what a run killed in it must find,
after it what became of each release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bootagent import plan, release, state
from bootagent.config.model import App
from bootagent.errors import BootagentError
from bootagent.instance import Tags
from bootagent.journal import boot_id, timestamp
from bootagent.machine import Machine
from bootagent.plan import Lane, Phase
from bootagent.state import AppState, LastRun, Pending, ReleaseRecord, State

#: A lane, and the app it is of.
Going = Sequence[tuple[Lane, App]]


class Memory:
    """The state, and what is on disk of it. ``forgiving``: that it cannot be written stops nobody."""

    def __init__(self, machine: Machine, run: str, *, forgiving: bool) -> None:
        self._machine = machine
        self._run = run
        self._forgiving = forgiving
        self.read()

    def read(self) -> None:
        """Begin with what is on disk. Raises MachineError."""
        self._saved = state.load(self._machine)
        self._begun_before = self._saved.begun
        self.state = replace(self._saved, begun=self._run)

    def save(self, found: State | None = None) -> None:
        """Write ``found`` down, or what was learnt and not yet written. Raises MachineError."""
        self.state = found or self.state
        if self.state != self._saved:  # each write waits for the disk
            try:
                state.save(self._machine, self.state)
            except BootagentError:
                if not self._forgiving:
                    raise
            self._saved = self.state

    def finish(self, last_run: LastRun | None) -> None:
        """Record how the run ended; None: it was refused before it began, and how the last one ended still holds."""
        if last_run:
            self.save(replace(self.state, last_run=last_run))
        else:
            self.save(replace(self.state, begun=self._begun_before))

    # --- what was asked ----------------------------------------------------------------------------------------

    def on_instance(self, instance_id: str | None) -> None:
        """What was known on another instance, of which this one's image was made, is known no more."""
        self.state = self.state.on_instance(instance_id)

    def keep_tags(self, tags: Tags) -> None:
        """Remember tags that were given on the command line; one without a value is forgotten."""
        known = {**self.state.tags, **tags}
        self.state = replace(self.state, tags={key: value for key, value in known.items() if value})

    @property
    def is_stopped(self) -> bool:
        """Whether somebody has stopped the services in this boot."""
        return self.state.stopped == boot_id()

    def wanted(self) -> None:
        """Somebody wants the services up, whether this run comes to it or another one does."""
        self.state = replace(self.state, stopped=None)

    def started(self, definitions: str) -> None:
        """Somebody wants the services up, and this is where they are."""
        self.state = replace(self.state, stopped=None, definitions=definitions)

    def stopped(self) -> None:
        """Somebody wants them down: written at once, for whoever waits for a turn."""
        self.save(replace(self.state, stopped=boot_id()))

    def forget_all(self) -> None:
        """Of what was made there is nothing left to know; the tags were given, and that it is stopped holds."""
        self.save(replace(self.state, apps={}, left=(), definitions=None, last_run=None))

    # --- what became of releases -------------------------------------------------------------------------------

    def app(self, lane: Lane, app: App) -> AppState:
        """What is known of the app of a lane."""
        return self.state.app(lane.app, app.deploy_to)

    def trying(self, phase: Phase, going: Going) -> None:
        """Write down what a run killed in this phase must find."""
        found = self.state
        for lane, app in going:
            if not (made := _made(lane)):
                continue
            name, revision, label = made
            known = found.app(lane.app, app.deploy_to)
            # Durable on disk only once the switch has been made, which syncs first.
            resumed = known.pending is not None and known.pending.release == name and known.pending.staged
            pending = Pending(name, revision, label, boot_id(), phase == "serve" or resumed)
            proven = lane.fallback or known.proven
            known = replace(known, pending=pending, proven=proven, in_place=app.in_place)
            record = ReleaseRecord("active" if phase == "serve" else "staged", revision, label, timestamp())
            found = found.with_app(lane.app, known.with_release(name, record))
        self.save(found)

    def staged(self, lane: Lane, app: App) -> None:
        """What the lane has prepared is to be found whole by the run that is to serve."""
        known = self.app(lane, app)
        if known.pending and not app.in_place:
            # The instance may be stopped in the pool: what was staged is to be found whole when it leaves.
            self._machine.sync_filesystem(self._machine.real(app.deploy_to))
            self.save(self.state.with_app(lane.app, replace(known, pending=replace(known.pending, staged=True))))

    def good(self, lane: Lane, app: App) -> None:
        """The lane's release serves."""
        known = self.app(lane, app)
        if made := _made(lane):
            name, revision, label = made
            record = ReleaseRecord("good", revision, label, timestamp())
            known = replace(known, revision=revision, pending=None).with_release(name, record)
        elif lane.intent == "rollback":
            # Whatever was being tried is not wanted now: a rerun is not to take it up.
            tried = known.pending.revision if known.pending else known.revision
            known = replace(known, revision=tried, pending=None)
        elif not lane.degraded:
            known = replace(known, pending=None)
        known = replace(known, proven=lane.release)
        self.save(self.state.with_app(lane.app, self._without_pruned(known, app)))

    def is_on_trial(self, lane: Lane, app: App) -> bool:
        """Whether the lane's release has yet to prove that it works: this run makes it, or none has ever served."""
        return _made(lane) is not None or self.app(lane, app).proven is None

    def bad(self, lane: Lane, app: App, reason: str) -> None:
        """The lane's release, if it has made one, does not work."""
        if made := _made(lane):
            name, revision, label = made
            record = ReleaseRecord("bad", revision, label, timestamp(), reason=reason)
            known = replace(self.app(lane, app), revision=revision, pending=None).with_release(name, record)
            self.save(self.state.with_app(lane.app, known))

    def forget(self, app: str) -> None:
        """The role does not run an app any more; what it has released is there yet."""
        self.save(self.state.with_app(app, None))

    def _without_pruned(self, known: AppState, app: App) -> AppState:
        """Forget good and staged releases that are gone; that a revision was bad is remembered."""
        # Of those that are elsewhere, and of those that snapshots can bring back, these are what has been seen of them.
        newest = sorted(known.releases, key=lambda name: known.releases[name].at)[-app.keep_releases :]
        if app.in_place:
            seen = {name: one for name, one in known.releases.items() if name in (*newest, known.proven)}
            return replace(known, in_place=True, releases=seen)
        present = release.observe(self._machine, app.deploy_to).releases
        kept: Mapping[str, ReleaseRecord] = {
            name: record
            for name, record in known.releases.items()
            if name in present
            or (record.state == "bad" and record.revision == known.revision)
            or (name in newest and plan.going_back.snapshot_of(app, known, name))
        }
        return replace(known, in_place=False, releases=kept)


def _made(lane: Lane) -> tuple[str, str, str] | None:
    """The release a lane makes, and the identity and label of its revision; None when it makes none."""
    if lane.intent == "deploy" and lane.release and lane.revision and lane.label:
        return lane.release, lane.revision, lane.label
    return None
