"""The story: read, resolve, plan, carry out, record. Boot, reconfigure, rollback and recovery are all this one path."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from bootagent import __version__, footprint, leaving, plan, readiness, release, state, telling
from bootagent.config import resolve
from bootagent.config.document import Document
from bootagent.config.model import App, Config
from bootagent.errors import (
    EXIT_DEGRADED,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_USAGE,
    BootagentError,
    BundleError,
    ConfigError,
    MachineError,
    Problem,
    StepError,
    UsageError,
    plain,
)
from bootagent.instance import Instance, Tags
from bootagent.journal import Hearer, Journal, boot_id, timestamp, uptime
from bootagent.lock import Lock
from bootagent.machine import Machine, Note, Transfer
from bootagent.plan import DEPLOYING, Lane, Phase, Plan
from bootagent.services import runit, servicedir
from bootagent.state import Failure, LastRun, Pending, ReleaseRecord, State
from bootagent.steps.base import Step
from bootagent.survey import (
    around_a_stop,
    attachments,
    load_document,
    look,
    look_back,
    make_plan,
    moment_of,
    read_instance,
    refuse_lost,
    services_to_stop,
    side_by_side,
    traffic_told,
    with_traffic,
)

#: How long a rerun waits for credentials and a route; a boot waits as long as for its tags.
EARLY_SECONDS = 5.0
#: What brings the machine to what its tags say, named for why: at boot, by hand, on the watch, after a failure.
CONFIGURING = frozenset({"run", "reconfigure", "watch", "retry"})
#: Those that nobody asked for: they leave alone what somebody has stopped in this boot.
UNASKED = frozenset({"run", "watch", "retry"})
#: As far as an instance in the warm pool gets, and why.
PREPARING: tuple[Phase, ...] = ("stage",)
POOLED = "not serving: the warm pool has it"
#: One line on how the last run ended, for whoever would not read the state.
SUMMARY = "/run/bootagent/summary"
OUTCOMES = {EXIT_DONE: "done", EXIT_DEGRADED: "degraded", EXIT_FAILED: "failed"}


@dataclass(frozen=True)
class Request:
    """What somebody asked for, by command: see :data:`CONFIGURING`, and ``rollback`` and ``stop``.

    ``config`` is the main file; ``rollback_to`` a release, or "" for the previous one; ``force``: end a run that has
    the lock for too long.
    """

    command: str
    config: Path
    tags: Tags = field(default_factory=dict)
    lock_wait: float = 0.0
    retry: bool = False
    force: bool = False
    reason: str = "somebody asked"
    extent: plan.Extent = "stop"
    rollback_to: str | None = None
    app: str | None = None


@dataclass(frozen=True)
class Ending:
    """How one lane ended, as an exit code and a sentence; ``tail`` is what the failed program last said.

    ``transient``: another try may end better, though nothing else is published. ``failure`` is what went wrong, if
    anything did, with where it did.
    """

    exit_code: int
    sentence: str
    tail: str = ""
    transient: bool = False
    failure: Failure | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``problems`` are the sentences of whatever went wrong before any lane began.

    ``transient`` is as :class:`Ending` has it; ``watch_seconds`` how often the configuration wants to look for a new
    release: 0 for never, None when it could not be read. ``left_alone``: somebody has stopped the services.
    ``failures`` are the problems, with where they were.
    """

    exit_code: int
    endings: Mapping[str, Ending]
    problems: tuple[str, ...] = ()
    seconds: float = 0.0
    transient: bool = False
    watch_seconds: float | None = None
    left_alone: bool = False
    failures: tuple[Failure, ...] = ()

    def all_failures(self) -> tuple[Failure, ...]:
        """What went wrong, before any lane began and in each of them."""
        return (*self.failures, *(ending.failure for ending in self.endings.values() if ending.failure))

    def sentences(self) -> list[str]:
        """What to tell of it, worst first."""
        worst = sorted(self.endings.items(), key=lambda item: item[1].exit_code == EXIT_DONE)
        return [*self.problems, *(f"{name}: {ending.sentence}" for name, ending in worst)]


def run(request: Request, machine: Machine, hearer: Hearer) -> Outcome:
    """Do what is asked, under the lock, and record it. Raises LockedError; every other failure is in the outcome."""

    def wait(holder: str) -> None:
        hearer({"event": "waiting", "t": 0.0, "step": f"another bootagent is at work ({holder})"})

    with Lock(machine, request.command, request.lock_wait, wait, force=request.force) as lock:
        phases = telling.Phases(hearer)
        journal = Journal(machine, phases, only_changes=request.command == "watch")
        machine = _telling(machine, journal)
        started = timestamp()
        journal.record(
            "run-begin", command=request.command, version=__version__, boot_id=boot_id(), uptime=round(uptime(), 2)
        )
        work, quiet, refused = _Run(request, machine, journal, lock), False, False
        outcome = replace(work.outcome(), seconds=round(journal.elapsed(), 3), watch_seconds=work.watch_seconds())
        try:
            quiet = journal.is_quiet and work.ended_so_before(outcome)
            refused = (outcome.exit_code == EXIT_USAGE and work.config is not None) or quiet or outcome.left_alone
            last = _last_run(request, journal, started, outcome, work)
            work.remember(None if refused else replace(last, phases=phases.seconds()))
        except BootagentError as error:  # on a full disk, too, the exit code is to be the truth
            outcome = replace(outcome, problems=(*outcome.problems, str(error)))
        if not refused:
            work.tell()
        journal.record(
            "run-end",
            exit_code=outcome.exit_code,
            outcome=_named(request, outcome),
            transient=outcome.transient,
            readiness=work.readiness,
            problems=outcome.sentences() if outcome.exit_code else [],
            tails={name: ending.tail for name, ending in outcome.endings.items() if ending.tail},
            failures=[{**vars(failure), "tail": ""} for failure in outcome.all_failures()],
        )
        journal.close()
        if not (outcome.left_alone or quiet):
            _summarize(request, machine, outcome)
        return outcome


class _Run:
    """One run. What it learns on the way is kept, so that however far it came can be recorded."""

    def __init__(self, request: Request, machine: Machine, journal: Journal, lock: Lock) -> None:
        self._request = request
        self._machine = machine
        self._journal = journal
        self._lock = lock
        self._saved = state.load(machine)
        self._begun_before = self._saved.begun
        self._state = replace(self._saved, begun=journal.run)
        self._document: Document | None = None
        self.config: Config | None = None
        #: What a launch that waits may rely on: the services stayed healthy, or are prepared for the warm pool.
        self.readiness: Literal["sustained", "prepared"] | None = None
        self._pooled = False
        self._serving: dict[str, Sequence[Step]] = {}
        self._instance: Instance | None = None
        self._unread: dict[str, BootagentError] = {}

    def outcome(self) -> Outcome:
        try:
            if self._request.command != "watch":  # which mostly finds nothing to do, and each write waits for the disk
                self._save(self._state)
            made = self._planned()
            if self.config:  # somebody wants them up again, and this is where
                self._state = replace(self._state, stopped=None, definitions=self.config.runit.definitions)
                self._note_for_a_stop(self.config)
            return self._seen_to_last(self._carry_out(made))
        except _LeftAloneError as error:
            return Outcome(EXIT_DONE, {}, (str(error),), left_alone=True)
        except ConfigError as error:
            failures = tuple(Failure(str(problem)) for problem in error.problems)
            return Outcome(error.exit_code, {}, tuple(map(str, error.problems)), failures=failures)
        except UsageError as error:
            return Outcome(error.exit_code, {}, (str(error),), failures=(telling.failure_of(error),))
        except BootagentError as error:
            code, failure = EXIT_DEGRADED if self._something_serves() else EXIT_FAILED, telling.failure_of(error)
            return Outcome(code, {}, (str(error),), transient=True, failures=(failure,))
        except Exception as error:
            said = str(self._fault(error))
            return Outcome(EXIT_FAILED, {}, (said,), failures=(Failure(said),))

    def remember(self, last_run: LastRun | None) -> None:
        """Record how the run ended; None: it was refused before it began, and how the last one ended still holds."""
        if last_run:
            self._save(replace(self._state, last_run=last_run))
        else:
            self._save(replace(self._state, begun=self._begun_before))

    def tell(self) -> None:
        """Tell whoever wants to know how the run ended. It is a courtesy, and none of it fails a run."""
        here, known = self._instance, self._state
        try:
            how = resolve.telling(self._document) if self._document else telling.as_before(known.told)
            region = here.region if here else None
            told = telling.tell(self._machine, known, how, region, boot_id=boot_id(), seen=here is not None)
            self._save(replace(self._state, told=told))
        except BootagentError as error:
            self._machine.tell(Note(f"what was told cannot be remembered: {error}"))
        except Exception as error:
            self._fault(error)

    def ended_so_before(self, outcome: Outcome) -> bool:
        """Whether the last run that is told of ended the same way."""
        return self._state.last_run is not None and self._state.last_run.exit_code == outcome.exit_code

    def _fault(self, error: Exception) -> BootagentError:
        """A fault of the agent itself: people get a sentence, the journal the rest."""
        self._journal.record("fault", error=repr(error), traceback=traceback.format_exc())
        return BootagentError(f"internal error: {error!r}", remedy="please report it; the journal has the details")

    # --- read and plan -----------------------------------------------------------------------------------------

    def _planned(self) -> Plan:
        journal, request = self._journal, self._request
        if request.command == "stop":
            return self._stop_plan()
        self._stopped_before = self._is_stopped()
        self._leave_alone()
        with journal.span("read", "read the configuration"):
            self._document = load_document(request.config)
        with journal.span("read", "read instance metadata and tags"):
            instance = read_instance(
                self._document, request.tags, lambda instance_id: self._state.tags_on(instance_id), self._pause
            )
        self._instance = instance
        self._state = self._state.on_instance(instance.instance_id)
        self.config = self._resolved(self._document, instance)
        if request.command in CONFIGURING:
            tags = {**self._state.tags, **request.tags}
            self._state = replace(self._state, tags={key: value for key, value in tags.items() if value})
        if self.config.lifecycle and (pooled := readiness.is_pooled()):
            self._pooled = pooled
        if request.rollback_to is not None:
            return with_traffic(
                self._rollback_plan(self.config, instance, request.rollback_to), self.config, instance, self._machine
            )
        self._let_traffic_go(self.config, instance)
        if self._pooled:
            self._keep_down()
        absent = self._attach(self.config, instance)
        with journal.span("read", "ask the sources what is new"):
            patience = resolve.metadata_within(self._document) if request.command == "run" else EARLY_SECONDS
            known = look(self.config, instance, self._machine, self._state, patience, absent)
        self._unread = {name: one.revision for name, one in known.items() if isinstance(one.revision, BootagentError)}
        serving = not self._pooled
        return make_plan(self.config, known, self._state.apps, instance, self._machine, request.retry, serving)

    def _attach(self, config: Config, instance: Instance) -> dict[str, BootagentError]:
        """Mount what the sources read from, and the role's volumes; which apps' mounts are not there, and why.

        Raises MachineError when a volume is not there: nothing may start without it.
        """
        now = moment_of(instance, retry=self._request.retry)
        self._let_go(plan.former(config, now))
        wanted = attachments(config, instance, self._machine, now)
        failures = side_by_side(lambda one: self._run_all(one.steps, "attach", one.name), wanted)
        failed = [(one, error) for one, error in zip(wanted, failures, strict=True) if error]
        if lost := [f"{one.name}: {error}" for one, error in failed if not one.apps]:
            raise MachineError("; ".join(lost)) from next(error for one, error in failed if not one.apps)
        return {app: error for one, error in failed for app in one.apps}

    def _let_traffic_go(self, config: Config, instance: Instance) -> None:
        """Balancers that the role does not name send nothing more before what the former role ran is stopped."""
        if traffic_told(self._machine, instance.instance_id).balancers:
            now = moment_of(instance, retry=False, serving=not self._pooled)
            if error := self._run_all((plan.former_traffic(config, now),), "attach", plan.TRAFFIC):
                self._machine.tell(Note(f"{error}; going on"))  # it is tried again when the role serves

    def _let_go(self, former: Step) -> None:
        """Let volumes of another role go, or those with other tags: not from under whoever writes to them."""
        if former.is_satisfied(self._machine):
            return
        services = services_to_stop(self._document, self._state, self._machine)
        if error := self._run_all((*plan.services_down(services), former), "attach", "volumes"):
            raise error

    def _pause(self, seconds: float) -> None:
        """Wait for tags; meanwhile somebody else, who knows more, may have a turn."""
        self._journal.record("waiting", phase="read", step="wait for the instance's tags")
        with self._lock.given_up():
            time.sleep(seconds)
        self._saved = state.load(self._machine)
        self._begun_before = self._saved.begun
        self._state = replace(self._saved, begun=self._journal.run)
        self._save(self._state)
        self._leave_alone()

    def _resolved(self, found: Document, instance: Instance) -> Config:
        try:
            return resolve.resolve(found, instance.coordinates(), instance.tags)
        except ConfigError as error:
            old = [key for key, origin in instance.tag_origin.items() if origin == "remembered"]
            said = "is remembered from an earlier --tag; it is forgotten with"
            hints = [Problem("--tag", key, f"{said} bootagent reconfigure --tag {key}=") for key in old]
            raise ConfigError([*error.problems, *hints]) from None

    def _is_stopped(self) -> bool:
        return self._state.stopped == boot_id()

    def _leave_alone(self) -> None:
        """What somebody has stopped, only somebody starts again."""
        if self._is_stopped() and (self._request.command in UNASKED or not self._stopped_before):
            raise _LeftAloneError("the services were stopped, and stay so (bootagent reconfigure starts them)")

    def watch_seconds(self) -> float | None:
        """How often the configuration wants to look for a new release; None when it could not be read."""
        return resolve.watch_interval(self._document) if self._document else None

    def _note_for_a_stop(self, config: Config) -> None:
        leaving.save(self._machine, plan.leaving(config))
        footprint.note(self._machine, config.runit.definitions, config.runit.service_dir, until="stop")

    def _stop_plan(self) -> Plan:
        """A machine that goes down has no time for metadata; nor must a broken configuration keep services up."""
        try:
            self._document = load_document(self._request.config)
        except ConfigError as error:
            self._journal.record("fault", error=str(error))
        self._state = replace(self._state, stopped=boot_id())
        self._save(self._state)  # before anything else: whoever waits for a turn must find it
        services = services_to_stop(self._document, self._state, self._machine)
        around = around_a_stop(self._document, self._state, self._machine, self._request.extent)
        made = plan.stop(services, around, self._request.reason)
        return replace(made, lanes=(*self._traffic_off(), *made.lanes))

    def _traffic_off(self) -> tuple[Lane, ...]:
        try:
            told = traffic_told(self._machine, None)
        except BootagentError as error:
            self._journal.record("fault", error=str(error))
            return ()
        if not told.names:
            return ()
        return (plan.off(told, self._request.extent, self._request.reason, doomed=self._request.extent == "shutdown"),)

    def _rollback_plan(self, config: Config, instance: Instance, wanted: str) -> Plan:
        app = _chosen(config, self._request.app)
        if self._pooled:
            raise UsageError("nothing serves while the warm pool has this instance", remedy="wait until it leaves")
        if self._is_stopped():  # its mounts, secrets and the other apps are gone, too
            raise UsageError("the services were stopped", remedy="bootagent reconfigure starts them; then roll back")
        if not plan.going_back.can_go_back(app):
            raise UsageError(f"the releases of {app.name} are not this machine's: go back at {app.source}")
        known = look_back(self._machine, app, self._state)
        state = known.state
        target = wanted or plan.going_back.previous(app, known.layout, state)
        if target is None:
            raise UsageError(f"{app.name} has no earlier release to roll back to")
        there = plan.going_back.choices(app, known.layout, state)
        if target not in there:
            raise UsageError(f"{app.name} has no release {target!r}; it has {', '.join(there) or 'none'}")
        if state.is_bad(target):
            raise UsageError(f"release {target} of {app.name} is bad: {state.releases[target].reason}")
        refuse_lost(self._machine, app, known, target, instance)
        now = moment_of(instance, retry=self._request.retry)
        return Plan((plan.going_back.lane(config, app, known, target, now),))

    def _something_serves(self) -> bool:
        """Whether every app known from before has its current release and its services up."""
        try:
            return self._all_serve()
        except (BootagentError, OSError):
            return False

    def _all_serve(self) -> bool:
        if not self._state.apps or not any(map(self._services_of, self._state.apps)):
            return False  # as after a stop
        return all(map(self._serves, self._state.apps))

    def _serves(self, name: str) -> bool:
        """Whether an app known from before has its current release, and all services that it has are up."""
        app = self._state.apps[name]
        if not app.in_place and release.observe(self._machine, app.deploy_to).current is None:
            return False
        found = [runit.status(directory / "service") for directory in self._services_of(name)]
        return all(one is not None and one.state == "run" for one in found)

    def _still_serves(self, name: str) -> bool:
        try:
            return name in self._state.apps and bool(self._services_of(name)) and self._serves(name)
        except (BootagentError, OSError):
            return False

    def _services_of(self, name: str) -> list[Path]:
        if self._document is None:
            return []
        definitions = self._document.tables["runit"]["definitions"]
        installed = servicedir.installed(self._machine, definitions, name)
        return [self._machine.real(definitions) / service for service in installed]

    # --- carry out ---------------------------------------------------------------------------------------------

    def _carry_out(self, made: Plan) -> Outcome:
        for lane in made.lanes:
            about = {"intent": lane.intent, "release": lane.release, "revision": lane.label, "reason": lane.reason}
            self._journal.record("lane", app=lane.app, **about)
        return self._take_down(made) if self._request.command == "stop" else self._deploy(made)

    def _deploy(self, made: Plan) -> Outcome:
        endings: dict[str, Ending] = {}
        going = [lane for lane in made.lanes if lane.intent != "nothing"]
        for lane in made.lanes:
            if lane.intent == "nothing":
                sentence = f"nothing to run: {lane.reason}"
                endings[lane.app] = Ending(EXIT_FAILED, sentence, transient=lane.unread)
        for phase in PREPARING if self._pooled else DEPLOYING:
            self._before(phase, going)
            for turn in plan.in_turns(going) if phase == "serve" else [going]:

                def begin(lane: Lane, phase: Phase = phase) -> BootagentError | None:
                    return _held_up(lane, phase, endings) or self._run_steps(lane, phase)

                failures = side_by_side(begin, turn)
                failed = [(lane, error) for lane, error in zip(turn, failures, strict=True) if error]
                for lane, error in failed:
                    failure = telling.failure_of(error, lane.app)
                    endings[lane.app] = replace(self._fall_back(lane, phase, error), failure=failure)
            going = [lane for lane in going if lane.app not in endings]
        for lane in going:
            endings[lane.app] = self._prepared(lane) if self._pooled else self._succeeded(lane)
        endings.update(self._announced(made, endings))
        going = [] if self._pooled else going
        for lane, error in zip(going, side_by_side(lambda lane: self._run_steps(lane, "retire"), going), strict=True):
            if error:  # it serves; what is left over costs money, and the next run tries again
                ending = endings[lane.app]
                failure = telling.failure_of(error, lane.app)
                said = f"{ending.sentence}; {error}"
                endings[lane.app] = replace(ending, sentence=said, transient=True, failure=failure)
        for lane in made.lanes:  # what was so before a step was tried
            if (ending := endings[lane.app]).exit_code != EXIT_DONE and ending.failure is None:
                endings[lane.app] = replace(ending, failure=self._planned_failure(lane))
        worst = max((ending.exit_code for ending in endings.values()), key=_severity, default=EXIT_DONE)
        return Outcome(worst, endings, transient=any(ending.transient for ending in endings.values()))

    def _announced(self, made: Plan, endings: Mapping[str, Ending]) -> dict[str, Ending]:
        """Have traffic come once all of the role serves, and keep it away when some of it does not serve at all."""
        names = [app.name for app in self.config.apps] if self.config else []
        failed = [name for name in names if name in endings and endings[name].exit_code == EXIT_FAILED]
        # What could not even be planned may still serve as before: that is no reason to take the node out.
        planned = {lane.app for lane in made.lanes if lane.intent != "nothing"}
        failed = [name for name in failed if name in planned or not self._still_serves(name)]
        whole = all(name in endings for name in names) or self._something_serves()
        lane = made.withdraw if failed else made.announce if whole else None
        if lane is None:
            return {}
        self._journal.record("lane", app=lane.app, intent=lane.intent, reason=lane.reason)
        if lane.intent == "nothing":
            return {lane.app: Ending(EXIT_FAILED, lane.reason, failure=Failure(lane.reason, lane.app, phase="plan"))}
        if error := self._run_steps(lane, "announce"):
            failure = telling.failure_of(error, lane.app)
            return {lane.app: Ending(EXIT_FAILED, str(error), transient=True, failure=failure)}
        return {lane.app: Ending(EXIT_DONE, lane.reason)}

    def _planned_failure(self, lane: Lane) -> Failure:
        """Why a lane was less than what was asked for from the beginning."""
        if error := self._unread.get(lane.app):
            return telling.failure_of(error, lane.app)
        return Failure(lane.reason, lane.app, phase="plan")

    def _take_down(self, made: Plan) -> Outcome:
        """Carry out a stop: whatever one step could not do, every other has its turn."""
        errors: dict[str, list[BootagentError]] = {lane.app: [] for lane in made.lanes}
        notes: list[Note] = []
        self._machine = _hearing(self._machine, notes)

        def steps_of(lane: Lane, phase: Phase) -> list[BootagentError]:
            failures = [self._run_all((step,), phase, lane.app) for step in lane.steps.get(phase, ())]
            return [error for error in failures if error]

        for phase in plan.STOPPING:
            for turn in reversed(plan.in_turns(made.lanes)) if phase == "stop" else [made.lanes]:
                found = side_by_side(lambda lane, phase=phase: steps_of(lane, phase), turn)
                for lane, failed in zip(turn, found, strict=True):
                    errors[lane.app] += failed
        endings = {lane.app: _stopped(lane, errors[lane.app], self._request.extent, notes) for lane in made.lanes}
        if self._request.extent == "reset" and not any(errors.values()):
            # Of what was made there is nothing left to know; the tags were given, and that it is stopped holds.
            self._save(replace(self._state, apps={}, definitions=None, last_run=None))
        worst = max((ending.exit_code for ending in endings.values()), key=_severity, default=EXIT_DONE)
        return Outcome(worst, endings, transient=worst != EXIT_DONE)

    def _run_steps(self, lane: Lane, phase: Phase) -> BootagentError | None:
        return self._run_all(lane.steps.get(phase, ()), phase, lane.app)

    def _run_all(self, steps: Sequence[Step], phase: Phase, app: str) -> BootagentError | None:
        for step in steps:
            try:
                self._run_step(step, phase, app)
            except BootagentError as error:
                return error
        return None

    def _run_step(self, step: Step, phase: Phase, app: str) -> None:
        """Satisfied: skip. Else journal, apply, look again."""
        try:
            if step.is_satisfied(self._machine):
                self._journal.record("satisfied", phase=phase, step=str(step), app=app)
                return
            with self._journal.span(phase, str(step), app):
                step.apply(self._machine)
                if not step.is_satisfied(self._machine):
                    raise BootagentError("it was done, and yet it is not so")
        except BootagentError as error:
            raise StepError(str(step), error, phase=phase) from error
        except OSError as error:  # a full disk, a directory gone: the machine's fault, and told like one
            raise StepError(str(step), MachineError(str(error)), phase=phase) from error
        except Exception as error:  # a fault of ours fails this lane like any other: it may have to go back
            raise StepError(str(step), self._fault(error), phase=phase) from error

    # --- what a launch waits for -------------------------------------------------------------------------------

    def _seen_to_last(self, outcome: Outcome) -> Outcome:
        """While a launch waits for it, see that what serves stays healthy for as long as the configuration wants."""
        lifecycle = self.config.lifecycle if self.config else None
        if outcome.exit_code == EXIT_FAILED or lifecycle is None or self._request.command not in CONFIGURING:
            return outcome
        if self._pooled:
            self.readiness = "prepared"
        elif lifecycle.launching and self.config and readiness.is_launching(self._machine):
            seconds, definitions = lifecycle.sustained, self.config.runit.definitions
            with self._journal.span("serve", f"launch: waiting {seconds:g} s of health"):
                problem = readiness.lasting_problem(self._machine, self._serving, definitions, seconds)
            if problem:
                said = (*outcome.problems, problem)
                failures = (*outcome.failures, Failure(problem, phase="serve"))
                return replace(outcome, exit_code=EXIT_FAILED, problems=said, transient=True, failures=failures)
            self.readiness = "sustained"
        return outcome

    def _keep_down(self) -> None:
        """In the warm pool nothing serves, not even what the image or an earlier run has brought."""
        down = plan.services_down(services_to_stop(self._document, self._state, self._machine))
        if error := self._run_all(down, "attach", "warm pool"):
            raise error

    def _prepared(self, lane: Lane) -> Ending:
        """A lane that ends before its release is switched to; the run that is to serve takes it up from there."""
        if lane.intent == "retire":
            return self._succeeded(lane)
        app = self._app(lane)
        known = self._state.app(lane.app, app.deploy_to)
        if known.pending and not app.in_place:
            # The instance may be stopped in the pool: what was staged is to be found whole when it leaves.
            self._machine.sync_filesystem(self._machine.real(app.deploy_to))
            self._save(self._state.with_app(lane.app, replace(known, pending=replace(known.pending, staged=True))))
        code = EXIT_DEGRADED if lane.degraded else EXIT_DONE
        return Ending(code, f"release {lane.release} is prepared; {POOLED}", transient=lane.unread)

    # --- what the state learns ---------------------------------------------------------------------------------

    def _before(self, phase: Phase, lanes: Sequence[Lane]) -> None:
        """Write down what a run killed in this phase must find."""
        found = self._state
        for lane in lanes:
            if not (made := _made(lane)):
                continue
            name, revision, label = made
            app = self._app(lane)
            known = found.app(lane.app, app.deploy_to)
            # Durable on disk only once the switch has been made, which syncs first.
            resumed = known.pending is not None and known.pending.release == name and known.pending.staged
            pending = Pending(name, revision, label, boot_id(), phase == "serve" or resumed)
            proven = lane.fallback or known.proven
            known = replace(known, pending=pending, proven=proven, in_place=app.in_place)
            record = ReleaseRecord("active" if phase == "serve" else "staged", revision, label, timestamp())
            found = found.with_app(lane.app, known.with_release(name, record))
        self._save(found)

    def _succeeded(self, lane: Lane) -> Ending:
        if lane.intent == "retire":
            self._save(self._state.with_app(lane.app, None))
            return Ending(EXIT_DONE, "its services are removed; the role does not run it")
        app = self._app(lane)
        self._serving[lane.app] = lane.steps.get("serve", ())
        known = self._state.app(lane.app, app.deploy_to)
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
        self._save(self._state.with_app(lane.app, self._without_pruned(known, app)))
        code = EXIT_DEGRADED if lane.degraded else EXIT_DONE
        return Ending(code, f"{_said(lane)}; {lane.reason}", transient=lane.unread)

    def _fall_back(self, lane: Lane, phase: Phase, error: BootagentError) -> Ending:
        """A lane failed: mark its release, and go back to (or stay on) the one that worked."""
        tail = _tail(error)
        if lane.intent == "retire":
            return Ending(EXIT_FAILED, str(error), tail, transient=True)
        app = self._app(lane)
        known = self._state.app(lane.app, app.deploy_to)
        cause = error.cause if isinstance(error, StepError) else error
        blamed = phase != "stage" and not isinstance(cause, MachineError)
        if blamed and (made := _made(lane)):
            name, revision, label = made
            record = ReleaseRecord("bad", revision, label, timestamp(), reason=str(error))
            known = replace(known, revision=revision, pending=None).with_release(name, record)
            self._save(self._state.with_app(lane.app, known))
        # What was published wrong stays wrong; what a hook could not do, it may be able to do later.
        # And where the source did not answer, it may answer yet.
        transient = lane.unread or (not blamed and not isinstance(cause, BundleError))
        fallback = lane.fallback or (lane.release if lane.intent in ("keep", "hotfix") and phase == "stage" else None)
        if fallback is None or self.config is None or self._pooled:
            serving = phase != "serve" and self._something_serves()  # such as what another source brought
            return Ending(EXIT_DEGRADED if serving else EXIT_FAILED, str(error), tail, transient=transient)
        back = plan.put_back(
            self.config,
            app,
            known,
            fallback,
            left=lane.release if phase != "stage" and lane.release != fallback else None,
            reason="the activation failed",
        )
        for later in DEPLOYING:
            if again := self._run_steps(back, later):
                if phase == "stage" and self._something_serves():  # nothing was switched, nor stopped
                    return Ending(EXIT_DEGRADED, f"{error}; what ran still serves", tail, transient=transient)
                sentence = f"{error}; and release {fallback} could not be put back: {again}"
                return Ending(EXIT_FAILED, sentence, tail, transient=True)
        self._serving[lane.app] = back.steps.get("serve", ())
        kept = "still serves" if phase == "stage" else "was put back and serves"
        return Ending(EXIT_DEGRADED, f"{error}; release {fallback} {kept}", tail, transient=transient)

    def _without_pruned(self, known: state.AppState, app: App) -> state.AppState:
        """Forget good and staged releases that are gone; that a revision was bad is remembered."""
        # Of those that are elsewhere, and of those that snapshots can bring back, these are what has been seen of them.
        newest = sorted(known.releases, key=lambda name: known.releases[name].at)[-app.keep_releases :]
        if app.in_place:
            seen = {name: one for name, one in known.releases.items() if name in (*newest, known.proven)}
            return replace(known, in_place=True, releases=seen)
        present = release.observe(self._machine, app.deploy_to).releases
        kept = {
            name: record
            for name, record in known.releases.items()
            if name in present
            or (record.state == "bad" and record.revision == known.revision)
            or (name in newest and plan.going_back.snapshot_of(app, known, name))
        }
        return replace(known, in_place=False, releases=kept)

    def _app(self, lane: Lane) -> App:
        assert self.config is not None  # lanes are made from it
        return next(app for app in self.config.apps if app.name == lane.app)

    def _save(self, found: State) -> None:
        self._state = found
        if found != self._saved:  # each write waits for the disk
            try:
                state.save(self._machine, found)
            except BootagentError:
                if self._request.command != "stop":
                    raise
            self._saved = found


class _LeftAloneError(Exception):
    """Nobody asked for this run, and somebody has stopped the services."""


def _telling(machine: Machine, journal: Journal) -> Machine:
    """The same machine, whose notes go to the journal too."""
    listener = machine.tell

    def tell(event: object) -> None:
        if isinstance(event, Note):
            journal.record("note", step=event.label, **event.details)
        listener(event)  # type: ignore[arg-type]

    return Machine(machine.root, tell)


def _made(lane: Lane) -> tuple[str, str, str] | None:
    """The release a lane makes, and the identity and label of its revision; None when it makes none."""
    if lane.intent == "deploy" and lane.release and lane.revision and lane.label:
        return lane.release, lane.revision, lane.label
    return None


def _named(request: Request, outcome: Outcome) -> str:
    if request.command == "stop" and outcome.exit_code == EXIT_DONE:
        return "stopped"
    return OUTCOMES.get(outcome.exit_code, "refused")


def _summarize(request: Request, machine: Machine, outcome: Outcome) -> None:
    """Leave the summary; it is a courtesy, and on a full disk there is none."""
    said = "; ".join(outcome.sentences()) or "this role runs nothing"
    line = plain(" ".join(f"{_named(request, outcome)}: {said}".split()))
    with contextlib.suppress(OSError):
        machine.write(machine.real(SUMMARY), line.encode() + b"\n")


def _held_up(lane: Lane, phase: Phase, endings: Mapping[str, Ending]) -> MachineError | None:
    """Why the services of a lane are not begun: others that must be up first are not."""
    down = [app for app in lane.after if app in endings and endings[app].exit_code == EXIT_FAILED]
    if phase != "serve" or not down or not lane.steps.get(phase):
        return None
    return MachineError(f"its services are not begun: they come after those of {', '.join(down)}, which does not serve")


def _stopped(lane: Lane, errors: Sequence[BootagentError], extent: plan.Extent, notes: Sequence[Note]) -> Ending:
    own = [note for note in notes if str(note.details.get("service")).startswith(f"{lane.app}.")]
    killed = "".join(f"; {note.label}" for note in own if "killed_after" in note.details)
    if errors:
        tail = "\n".join(filter(None, map(_tail, errors)))
        failure = telling.failure_of(errors[0], lane.app)
        return Ending(EXIT_FAILED, "; ".join(map(str, errors)) + killed, tail, transient=True, failure=failure)
    if lane.intent == "withdraw":
        return Ending(EXIT_DONE, lane.reason)
    if lane.app != plan.MACHINE:
        return Ending(EXIT_DONE, f"its services are down{killed}; {lane.reason}")
    removed = [str(note.details["what"]) for note in notes if note.label == "removed"]
    if extent == "reset" and removed:
        return Ending(EXIT_DONE, f"it is as before its first boot; removed {', '.join(removed)}")
    said = {"shutdown": "nothing is mounted", "stop": "it is as before the boot", "reset": "as before its first boot"}
    return Ending(EXIT_DONE, said[extent])


def _hearing(machine: Machine, notes: list[Note]) -> Machine:
    """The same machine; what steps tell in notes is added to ``notes``."""
    listener = machine.tell

    def hear(event: Transfer | Note) -> None:
        if isinstance(event, Note):
            notes.append(event)
        listener(event)

    return Machine(machine.root, hear)


def _severity(code: int) -> int:
    return (EXIT_DONE, EXIT_DEGRADED, EXIT_FAILED).index(code)


def _said(lane: Lane) -> str:
    verb = {"deploy": "now runs", "rollback": "is back on"}.get(lane.intent, "stays on")
    return f"{verb} release {lane.release}" + (f" ({release.short(lane.label)})" if lane.label else "")


def _tail(error: BootagentError) -> str:
    cause = error.cause if isinstance(error, StepError) else error
    return str(getattr(cause, "tail", ""))


def _chosen(config: Config, name: str | None) -> App:
    names = [app.name for app in config.apps]
    if name is None and len(names) != 1:
        raise UsageError(f"which app? Name one with --app: {', '.join(names)}")
    if name is not None and name not in names:
        raise UsageError(f"{name!r} is no app of role {config.role}; it has {', '.join(names)}")
    return config.apps[names.index(name or names[0])]


def _last_run(request: Request, journal: Journal, started: str, outcome: Outcome, work: _Run) -> LastRun:
    sentences = [*outcome.problems, *(e.sentence for e in outcome.endings.values() if e.exit_code != EXIT_DONE)]
    return LastRun(
        run=journal.run,
        command=request.command,
        started=started,
        finished=timestamp(),
        exit_code=outcome.exit_code,
        outcome=_named(request, outcome),
        error="; ".join(sentences) or None,
        role=work.config.role if work.config else None,
        environment=work.config.environment if work.config else None,
        apps={name: ending.sentence for name, ending in outcome.endings.items()},
        boot_id=boot_id(),
        mode=work.config.mode if work.config else None,
        seconds=outcome.seconds,
        exit_codes={name: ending.exit_code for name, ending in outcome.endings.items()},
        failures=outcome.all_failures(),
    )
