"""Goes beside what the daemon does while the group waits for it: sends heartbeats, and answers the hook at the end.

A process of its own, because a launch is tried by several runs, with pauses between them. It ends when the hook waits
no longer, and with the daemon that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from bootagent import aws, journal, readiness, state
from bootagent.errors import AwsError, BootagentError
from bootagent.instance import Instance
from bootagent.lifecycle import diagnosis, group
from bootagent.lifecycle.group import Hook, Member, Result
from bootagent.lifecycle.place import Place
from bootagent.lifecycle.verdict import RunEnd, Runs, judge
from bootagent.survey import DEFINITIONS

#: Since when a launch has waited, for that must outlive this process.
SINCE = "/var/lib/bootagent/launch.json"
#: The daemon keeps this file until the services are down, or as far down as they go.
STOPPING = "/run/bootagent/stopping"
#: Between two looks at the runs, and between two questions to AWS, in seconds.
LOOK_SECONDS = 0.5
ASK_SECONDS = 3.0
#: How often to see whether the daemon is still there.
PARENT_SECONDS = 5.0
#: How long an answer that AWS does not take is given again.
ANSWER_SECONDS = 180.0
#: How long an instance that is stopped waits to be told that its group waits for it.
CONFIRM_SECONDS = 180.0

#: Tells people a sentence; the second argument says whether something is wrong.
Tell = Callable[[str, bool], None]
T = TypeVar("T")


class _LeftError(Exception):
    """Whoever started us has gone."""


class Escort:
    """One escort. ``place`` says which hooks are ours."""

    def __init__(self, place: Place, tell: Tell) -> None:
        self._place = place
        self._machine = place.machine
        self._lifecycle = place.lifecycle
        self._tell = tell
        self._parent = os.getppid()
        self._told: set[str] = set()

    # --- at launch -------------------------------------------------------------------------------------------

    def launching(self) -> bool:
        """See the launch to its end; False when something was wrong, so that it is worth another try."""
        name, runs = self._lifecycle.launching, Runs(self._machine)
        if name is None:
            return True
        try:
            return self._launch(name, runs)
        except _LeftError:
            return True
        except BootagentError as error:
            self._tell(f"launch: {error}", True)
            return False

    def _launch(self, name: str, runs: Runs) -> bool:
        here = self._place.instance()
        until = time.monotonic() + self._lifecycle.give_up_after
        member = self._member(here, until)
        while member and member.launch_begins:
            self._pause(ASK_SECONDS)
            member = self._member(here, until)
        if member is None or not member.launch_waits:
            self._machine.real(SINCE).unlink(missing_ok=True)
            return True
        found = self._patiently(until, lambda: group.hook(member, name))
        if found is None:
            self._say(f"launch: group {member.group} has no hook {name}", wrong=True)
            return True
        return self._see_through(here, member, found, runs)

    def _see_through(self, here: Instance, member: Member, hook: Hook, runs: Runs) -> bool:
        begun = time.monotonic() - self._waited(member)
        beat_due, given_up = 0.0, False
        self._say(f"launch: {member.group} waits")
        while True:
            late = time.monotonic() - begun >= self._lifecycle.give_up_after
            if time.monotonic() >= beat_due and (given_up or not late):
                beat_due = time.monotonic() + self._beat(member, hook)
                if beat_due == float("inf"):
                    return self._over("launch: the hook waits no longer")
            end = runs.last()
            verdict = judge(end, pooled=member.is_pooled, late=late)
            if verdict == "continue" and self._are_up(member, end):
                return self._answer(here, hook, "CONTINUE", "launch: continued")
            if (verdict == "give up" or late) and not given_up:
                why = self._why(end, late=late)
                self._store(here, why, end)
                if self._lifecycle.on_failure == "abandon":
                    return self._answer(here, hook, "ABANDON", f"launch: abandoned: {why}", wrong=True)
                self._tell(f"launch: given up, and kept for inspection: {why}", True)
                given_up, beat_due = True, 0.0
            self._pause(LOOK_SECONDS)

    def _are_up(self, member: Member, end: RunEnd | None) -> bool:
        """Whether what the run has seen to last does so still."""
        if member.is_pooled or end is None:
            return True
        known = state.load(self._machine)
        definitions = known.definitions or DEFINITIONS
        down = readiness.down(self._machine, definitions, list(known.apps), self._lifecycle.sustained)
        if down:
            self._say(f"launch: waiting for {', '.join(down)} to be up again")
        return not down

    def _why(self, end: RunEnd | None, *, late: bool) -> str:
        said = "; ".join(end.problems) if end else "no run has ended"
        return f"not ready after {self._lifecycle.give_up_after:g} s: {said}" if late else said

    def _store(self, here: Instance, why: str, end: RunEnd | None) -> None:
        """Store the diagnosis before anything else: the instance may be gone a moment later."""
        found = diagnosis.make(self._place, here.instance_id or "unknown", why, end)
        prefix = self._place.diagnosis(here)
        diagnosis.announce(self._machine, f"the launch of {here.instance_id} is given up: {why}")
        if prefix is None:
            return
        try:
            self._tell(f"launch: the diagnosis is {diagnosis.store(found, prefix, here.region)}", False)
        except BootagentError as error:
            self._tell(f"launch: the diagnosis is not stored: {error}", True)

    def _waited(self, member: Member) -> float:
        """For how long the launch has waited in this state already, in seconds, as far as we know."""
        path = self._machine.real(SINCE)
        about = {"instance_id": member.instance_id, "state": member.state}
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads(path.read_bytes())
            if {**known, **about} == known:
                # Within a boot, not by the clock: that may have been set meanwhile.
                here = known["boot_id"] == journal.boot_id()
                return float(max(0.0, journal.uptime() - known["uptime"] if here else time.time() - known["at"]))
        now = {"boot_id": journal.boot_id(), "uptime": journal.uptime(), "at": time.time()}
        try:
            self._machine.make_directory(path.parent, mode=0o700)
            self._machine.write(path, json.dumps({**about, **now}).encode() + b"\n", mode=0o600)
        except OSError as error:  # a full disk must not keep the group waiting
            self._tell(f"launch: cannot write {SINCE}: {error.strerror}", True)
        return 0.0

    def _over(self, sentence: str) -> bool:
        self._machine.real(SINCE).unlink(missing_ok=True)
        self._say(sentence)
        return True

    # --- at the end ------------------------------------------------------------------------------------------

    def terminating(self) -> bool:
        """Send heartbeats while the services are stopped, and then answer. As :meth:`launching`."""
        name = self._lifecycle.terminating
        if name is None:
            return True
        try:
            return self._terminate(name)
        except _LeftError:
            return True
        except BootagentError as error:
            self._tell(f"termination: {error}", True)
            return False

    def _terminate(self, name: str) -> bool:
        here, stopping = self._place.instance(), self._machine.real(STOPPING)
        until = time.monotonic() + CONFIRM_SECONDS
        member = self._member(here, until)
        while member and not member.end_waits:
            if member.is_ending:
                return True
            if stopping.exists():
                until = time.monotonic() + CONFIRM_SECONDS
            elif time.monotonic() > until:
                self._say(f"termination: the state is {member.state}, not Terminating:Wait; nothing is answered")
                return True
            self._say("termination: waiting for Terminating:Wait")
            self._pause(ASK_SECONDS)
            member = self._member(here, until)
        if member is None:
            return True
        found = self._patiently(until, lambda: group.hook(member, name))
        if found is None:
            self._say(f"termination: group {member.group} has no hook {name}", wrong=True)
            return True
        self._say("termination: the group waits for the stop")
        beat_due = 0.0
        while stopping.exists():
            if time.monotonic() >= beat_due:
                beat_due = time.monotonic() + self._beat(member, found)
                if beat_due == float("inf"):
                    return True
            self._pause(LOOK_SECONDS)
        return self._answer(here, found, "CONTINUE", "termination: continued")

    # --- AWS -------------------------------------------------------------------------------------------------

    def _beat(self, member: Member, hook: Hook) -> float:
        """Send a heartbeat; returns the seconds until the next, infinite when the hook waits no longer."""
        try:
            return hook.timeout / 3 if group.beat(member, hook.name) else float("inf")
        except AwsError as error:
            self._say(f"no heartbeat: {error}", wrong=True)
            return min(ASK_SECONDS, hook.timeout / 3) if group.may_pass(error) else hook.timeout / 3

    def _answer(self, here: Instance, hook: Hook, result: Result, said: str, *, wrong: bool = False) -> bool:
        """Answer the hook, once the group confirms that it waits: whoever else answered has had the say."""
        until, at_launch = time.monotonic() + ANSWER_SECONDS, said.startswith("launch:")

        def answer() -> bool:
            member = group.member(here.region, here.instance_id or "")
            if member is None or not (member.launch_waits if at_launch else member.end_waits):
                return False
            return group.complete(member, hook.name, result)

        answered = self._patiently(until, answer)
        self._machine.real(SINCE).unlink(missing_ok=True)
        self._tell(said if answered else f"{said.partition(':')[0]}: the hook waits no longer", wrong)
        return True

    def _member(self, here: Instance, until: float) -> Member | None:
        if here.instance_id is None:
            return None
        instance_id = here.instance_id
        return self._patiently(until, lambda: group.member(here.region, instance_id))

    def _patiently(self, until: float, ask: Callable[[], T]) -> T:
        """What ``ask`` returns. Until then a refusal is no end: a role may be late, or be mended. Raises AwsError."""
        while True:
            try:
                return ask()
            except AwsError as error:
                if time.monotonic() >= until:
                    raise
                self._say(f"cannot answer the group yet: {error}", wrong=True)
                if aws.is_early(error):
                    aws.forget_clients()
            self._pause(ASK_SECONDS)

    def _pause(self, seconds: float) -> None:
        # A fleet that boots at once is not to ask at once.
        ends = time.monotonic() + seconds * random.uniform(0.8, 1.0)
        while (left := ends - time.monotonic()) > 0:
            if os.getppid() != self._parent:
                raise _LeftError
            time.sleep(min(left, PARENT_SECONDS))

    def _say(self, sentence: str, *, wrong: bool = False) -> None:
        """Tell it once; request ids make no other sentence."""
        if (kind := sentence.partition(" [request ")[0]) not in self._told:
            self._told.add(kind)
            self._tell(sentence, wrong)
