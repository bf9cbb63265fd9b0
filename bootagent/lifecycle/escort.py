"""Goes beside what the daemon does while the group waits for it: sends heartbeats, and answers the hook at the end.

A process of its own, because a launch is tried by several runs, with pauses between them. It ends when the hook waits
no longer, and with the daemon that started it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from bootagent import aws, journal, readiness, state
from bootagent.config import resolve
from bootagent.errors import AwsError, BootagentError
from bootagent.instance import Instance
from bootagent.lifecycle import diagnosis, group
from bootagent.lifecycle.group import Hook, Member, Result
from bootagent.lifecycle.heart import Heart
from bootagent.lifecycle.place import Place
from bootagent.lifecycle.verdict import RunEnd, Runs, judge
from bootagent.survey import DEFINITIONS
from bootagent.telling import console_line

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
#: How long the diagnosis is tried to be stored before the launch is given up without it.
STORE_SECONDS = 60.0
#: How long to wait until the group says of the instance what its metadata says already.
CONFIRM_SECONDS = 180.0
#: Of the time that the group may wait at all, what a launch is tried for: there must be time to say why it failed.
SHARE_OF_LIMIT = 0.95

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
        self._heart: Heart | None = None

    def launching(self) -> bool:
        """See the launch to its end; False when something was wrong, so that it is worth another try."""
        return self._seen_to("launch", self._launch)

    def terminating(self) -> bool:
        """Send heartbeats while the services are stopped, and then answer. As :meth:`launching`."""
        return self._seen_to("termination", self._terminate)

    def _seen_to(self, what: str, see: Callable[[], None]) -> bool:
        try:
            see()
        except _LeftError:
            return True
        except (BootagentError, OSError) as error:
            self._tell(f"{what}: {error}", True)
            return False
        return True

    # --- at launch -------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        if self._lifecycle.launching is None and not readiness.is_pooled():
            return
        here = self._place.instance()
        since = readiness.launching_since(self._machine)
        runs = Runs(self._machine, journal.uptime() if since is None else since)
        until = time.monotonic() + self._lifecycle.give_up_after
        member = self._member_at_launch(here, until)
        hook = self._hook_at_launch(member, until) if member else None
        if member and hook:
            with self._beating(member, hook) as heart:
                self._see_through(here, member, hook, runs, heart)
        self._machine.real(SINCE).unlink(missing_ok=True)

    def _member_at_launch(self, here: Instance, until: float) -> Member | None:
        """The instance once hooks hold it at launch; None when none does. Raises AwsError, MetadataError."""
        known = time.monotonic() + CONFIRM_SECONDS
        while True:
            member = self._member(here, until)
            if member and member.launch_waits:
                return member
            if member and member.launch_begins:
                if time.monotonic() > until:
                    raise BootagentError(f"{member.instance_id} has been {member.state} all along, and is waited for")
            # What was decided a moment ago may be known to metadata before it is to whom we ask.
            elif time.monotonic() > known or not group.is_behind(member, readiness.target_state()):
                return None
            self._pause(ASK_SECONDS)

    def _hook_at_launch(self, member: Member, until: float) -> Hook | None:
        """The one of ours that may hold it; None when there is none. Raises AwsError.

        On its way back into the warm pool it is the hook of terminations: "Use lifecycle hooks with a warm pool".
        """
        names = [self._lifecycle.launching, self._lifecycle.terminating if member.is_pooled else None]
        found = [hook for name in names if name and (hook := self._hook(member, name, "launch", until))]
        if len(found) < 2:
            return found[0] if found else None
        waits = (one for one in found if self._patiently(until, functools.partial(group.beat, member, one.name)))
        return next(waits, None)

    def _see_through(self, here: Instance, member: Member, hook: Hook, runs: Runs, heart: Heart) -> None:
        begun = time.monotonic() - self._waited(member)
        most = min(self._lifecycle.give_up_after, SHARE_OF_LIMIT * hook.limit)
        given_up = False
        self._say(f"launch: {member.group} waits")
        while not heart.has_stopped:
            late = time.monotonic() - begun >= most
            end = runs.last()
            verdict = judge(end, pooled=member.is_pooled, late=late, at_work=runs.are_at_work())
            up = functools.partial(self._are_up, member, end)
            if verdict == "continue" and up() and self._answer(member, hook, "CONTINUE", "launch: continued", holds=up):
                return
            if (verdict == "give up" or late) and not given_up:
                why = _why(end, most if late else None)
                self._store(here, why, end)
                if self._lifecycle.on_failure == "abandon":
                    self._answer(member, hook, "ABANDON", f"launch: abandoned: {why}", wrong=True)
                    return
                self._tell(f"launch: given up, and kept for inspection: {why}", True)
                given_up = True
            self._pause(LOOK_SECONDS)
        self._say("launch: the hook waits no longer")

    def _are_up(self, member: Member, end: RunEnd | None) -> bool:
        """Whether what the run has seen to last does so still."""
        if member.is_pooled or end is None:
            return True
        known = state.load(self._machine)
        if known.stopped == journal.boot_id():
            self._say("launch: waiting for the services, which were stopped (bootagent reconfigure starts them)")
            return False
        definitions = known.definitions or DEFINITIONS
        down = readiness.down(self._machine, definitions, list(known.apps), self._lifecycle.sustained)
        if down:
            self._say(f"launch: waiting for {', '.join(down)} to be up again")
        return not down

    def _store(self, here: Instance, why: str, end: RunEnd | None) -> None:
        """Store the diagnosis before anything else: the instance may be gone a moment later."""
        found = diagnosis.make(self._place, here.instance_id or "unknown", why, end)
        if resolve.telling(self._place.document).console:
            console_line.show(self._machine, f"bootagent: the launch of {here.instance_id} is given up: {why}")
        prefix = self._place.diagnosis(here)
        if prefix is None:
            return
        until = time.monotonic() + STORE_SECONDS
        try:
            url = self._patiently(until, lambda: diagnosis.store(found, prefix, here.region))
        except BootagentError as error:  # to be held up for its sake would help nobody
            self._tell(f"launch: the diagnosis is not stored: {error}", True)
        else:
            self._tell(f"launch: the diagnosis is {url}", False)

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

    # --- at the end ------------------------------------------------------------------------------------------

    def _terminate(self) -> None:
        name = self._lifecycle.terminating
        member = self._member_at_end(self._place.instance()) if name else None
        hook = self._hook(member, name, "termination", time.monotonic() + CONFIRM_SECONDS) if member and name else None
        if member and hook:
            self._say("termination: the group waits for the stop")
            with self._beating(member, hook) as heart:
                while self._is_stopping() and not heart.has_stopped:
                    self._pause(LOOK_SECONDS)
                self._answer(member, hook, "CONTINUE", "termination: continued")

    def _member_at_end(self, here: Instance) -> Member | None:
        """The instance once hooks hold it before its end; None when none does, or may. Raises AwsError."""
        until = time.monotonic() + CONFIRM_SECONDS
        member = self._member(here, until)
        while member and not member.end_waits:
            if member.is_ending:
                return None
            if self._is_stopping():
                until = time.monotonic() + CONFIRM_SECONDS
            elif time.monotonic() > until:
                self._say(f"termination: the state is {member.state}, not Terminating:Wait; nothing is answered")
                return None
            self._say("termination: waiting for Terminating:Wait")
            self._pause(ASK_SECONDS)
            member = self._member(here, until)
        return member

    def _is_stopping(self) -> bool:
        return self._machine.real(STOPPING).exists()

    # --- AWS -------------------------------------------------------------------------------------------------

    def _answer(
        self,
        member: Member,
        hook: Hook,
        result: Result,
        said: str,
        *,
        wrong: bool = False,
        holds: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Answer the hook once the group confirms it, and that the instance is in the state that was judged.

        Out of the warm pool the same hook waits again, for more. False when, before it could be given, the answer
        ``holds`` no longer. Raises AwsError.
        """

        def answer() -> bool | None:
            now = group.member(member.region, member.instance_id)
            if now is None or now.state != member.state or group.hook(now, hook.name) is None:
                return False
            return group.complete(now, hook.name, result) if holds() else None

        answered = self._patiently(time.monotonic() + ANSWER_SECONDS, answer)
        if answered is None:
            return False
        self._tell(said if answered else f"{said.partition(':')[0]}: the hook waits no longer", wrong)
        return True

    def _beating(self, member: Member, hook: Hook) -> Heart:
        self._heart = Heart(member, hook, lambda sentence: self._say(sentence, wrong=True))
        return self._heart

    def _hook(self, member: Member, name: str, what: str, until: float) -> Hook | None:
        found = self._patiently(until, functools.partial(group.hook, member, name))
        if found is None:
            self._say(f"{what}: group {member.group} has no hook {name}", wrong=True)
        return found

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
                self._say(f"to be tried again: {error}", wrong=True)
                if aws.is_early(error):
                    aws.forget_clients()
            self._pause(ASK_SECONDS)

    def _pause(self, seconds: float) -> None:
        if self._heart:
            self._heart.go_on()
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


def _why(end: RunEnd | None, late: float | None) -> str:
    """Why a launch is given up; ``late``: for how many seconds it has been tried, when that is the reason."""
    said = "; ".join(end.problems) if end else "no run has ended"
    return said if late is None else f"not ready after {late:g} s: {said}"
