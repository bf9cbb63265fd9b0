"""One run: what it has at hand, what it learns on the way, and how it carries out a step."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bootagent import release
from bootagent.agent.memory import Memory
from bootagent.agent.request import Request
from bootagent.config.document import Document
from bootagent.config.model import App, Config
from bootagent.errors import BootagentError, MachineError, StepError
from bootagent.instance import Instance
from bootagent.journal import Journal
from bootagent.lock import Lock
from bootagent.machine import Machine
from bootagent.plan import Lane, Phase
from bootagent.services import runit, servicedir
from bootagent.steps.base import Step


class Work:
    """Kept up to date as the run goes on, so that however far it came can be recorded.

    ``pooled``: the warm pool has this instance. ``unread`` says of apps why their source, or that of their
    environment, did not answer. ``serving`` are the steps that saw to each app's services. ``readiness`` is what a
    launch that waits may rely on: the services stayed healthy, or are prepared for the warm pool.
    """

    def __init__(self, request: Request, machine: Machine, journal: Journal, lock: Lock) -> None:
        self.request = request
        self.machine = machine
        self.journal = journal
        self.lock = lock
        self.memory = Memory(machine, journal.run, forgiving=request.command == "stop")
        self.document: Document | None = None
        self.instance: Instance | None = None
        self.config: Config | None = None
        self.pooled = False
        self.unread: dict[str, BootagentError] = {}
        self.serving: dict[str, Sequence[Step]] = {}
        self.readiness: Literal["sustained", "prepared"] | None = None

    def app(self, lane: Lane) -> App:
        """The app that a lane was made for; one that is retired has none."""
        assert self.config is not None  # lanes are made from it
        return next(app for app in self.config.apps if app.name == lane.app)

    # --- steps -------------------------------------------------------------------------------------------------

    def run_phase(self, lane: Lane, phase: Phase) -> BootagentError | None:
        """Carry out a phase of a lane up to its first failure, and return that."""
        return self.run_steps(lane.steps.get(phase, ()), phase, lane.app)

    def run_steps(self, steps: Sequence[Step], phase: Phase, app: str) -> BootagentError | None:
        """Carry out some steps up to the first failure, and return that."""
        for step in steps:
            try:
                self._run_step(step, phase, app)
            except BootagentError as error:
                return error
        return None

    def fault(self, error: Exception) -> BootagentError:
        """A fault of the agent itself: people get a sentence, the journal the rest."""
        # That of a text which cannot be encoded quotes the text, which may be a secret.
        what = type(error).__name__ if isinstance(error, UnicodeError) else repr(error)
        where = "".join(traceback.format_tb(error.__traceback__))
        self.journal.record("fault", error=what, traceback=f"{where}{what}")
        return BootagentError(f"internal error: {what}", remedy="please report it; the journal has the details")

    def _run_step(self, step: Step, phase: Phase, app: str) -> None:
        """Satisfied: skip. Else journal, apply, look again."""
        try:
            if step.is_satisfied(self.machine):
                self.journal.record("satisfied", phase=phase, step=str(step), app=app)
                return
            with self.journal.span(phase, str(step), app):
                step.apply(self.machine)
                if not step.is_satisfied(self.machine):
                    raise BootagentError("it was done, and yet it is not so")
        except BootagentError as error:
            raise StepError(str(step), error, phase=phase) from error
        except OSError as error:  # a full disk, a directory gone: the machine's fault, and told like one
            raise StepError(str(step), MachineError(str(error)), phase=phase) from error
        except Exception as error:  # a fault of ours fails this lane like any other: it may have to go back
            raise StepError(str(step), self.fault(error), phase=phase) from error

    # --- what serves -------------------------------------------------------------------------------------------

    def something_serves(self) -> bool:
        """Whether every app known from before has its current release and its services up."""
        known = self.memory.state.apps
        try:
            # After a stop there are apps, and none has services.
            return any(map(self._services_of, known)) and all(map(self._serves, known))
        except (BootagentError, OSError):
            return False

    def still_serves(self, name: str) -> bool:
        """Whether an app is known from before, with services, and they are up."""
        try:
            return name in self.memory.state.apps and bool(self._services_of(name)) and self._serves(name)
        except (BootagentError, OSError):
            return False

    def _serves(self, name: str) -> bool:
        app = self.memory.state.apps[name]
        if not app.in_place and release.observe(self.machine, app.deploy_to).current is None:
            return False
        found = [runit.status(directory / "service") for directory in self._services_of(name)]
        return all(one is not None and one.state == "run" for one in found)

    def _services_of(self, name: str) -> list[Path]:
        if self.document is None:
            return []
        definitions = self.document.tables["runit"]["definitions"]
        installed = servicedir.installed(self.machine, definitions, name)
        return [self.machine.real(definitions) / service for service in installed]
