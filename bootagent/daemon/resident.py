"""The loop: one child at a time, what is due when, and what signals ask for.

Signal handlers only set flags. SIGHUP: reconfigure. SIGTERM and SIGINT: leave; the services stay up.
"""

from __future__ import annotations

import fcntl
import os
import select
import time

from bootagent.daemon.bare import signal
from bootagent.daemon.child import Child
from bootagent.daemon.escorts import Escorts
from bootagent.daemon.log import Log
from bootagent.daemon.lookout import Lookout, jittered
from bootagent.daemon.manager import ServiceManager

TYPE_CHECKING = False  # as typing has it, which is not small
if TYPE_CHECKING:
    from collections.abc import Sequence

#: The loop goes round at least this often.
WAIT_MOST_SECONDS = 60.0
#: A run that failed for a reason that may pass is tried again, more and more rarely.
RETRY_SECONDS = 5.0
RETRY_MOST_SECONDS = 600.0
#: How long a run may take to end when it is told to.
END_SECONDS = 10.0
#: How long a run that is in the way is waited for when the instance is told to die, before it is ended.
PATIENCE_SECONDS = 10
SPOT_PATIENCE_SECONDS = 2
#: How long a stop may take when the group terminates the instance, and no hook of ours has it wait.
GOING_SECONDS = 240
LOCK = "/run/bootagent/daemon.lock"
#: As errors.py has them; that module is not small.
EXIT_FAILED, EXIT_USAGE, EXIT_TRY_LATER = 1, 2, 75
SUMMARY = "/run/bootagent/summary"
#: What the runs are called in the status line.
SAID = {"run": "boot", "watch": "looking for a new release", "retry": "another try"}


class Resident:
    """The daemon.

    ``place`` are the options that say where the machine is, ``words`` those for every run; ``launcher`` is bootagent.
    """

    def __init__(self, place: Sequence[str], words: Sequence[str], launcher: Sequence[str]) -> None:
        self._place, self._words, self._launcher = place, words, launcher
        self._log_words = words[words.index("--log") : words.index("--log") + 2]
        self._root = place[place.index("--root") + 1].rstrip("/")
        self._summary_path = self._root + SUMMARY
        self._log = Log(text="json" not in words and ("text" in words or os.isatty(2)))
        self._manager = ServiceManager()
        self._poll = select.poll()
        self._signals: set[int] = set()
        self._child: Child | None = None
        self._kill_due: float | None = None
        self._wanted: str | None = "run"  # the next run to begin, and why
        self._due: float | None = None  # when the watch, or another try, is
        self._due_why = ""
        self._retry_seconds = RETRY_SECONDS
        self._watch_seconds = 0.0
        self._summary: tuple[int, str] = (0, "")
        self._lookout = Lookout(self._log)
        self._stopped_for = ""  # the reason the services were taken down for
        self._stopped_summary: tuple[int, str] = (0, "")  # and what was said of it
        self._limits: list[str] = []  # what it was told of its time
        self._killed = False
        self._abandoned: list[Child] = []
        self._pooled: bool | None = None  # whether the warm pool has the instance; None: nobody has looked yet
        escort = [*launcher, "run", *place, *words, "--escort"]
        self._escorts = Escorts(escort, self._root, self._listen_to, self._forget_pipe, self._log)

    def run(self) -> int:
        """Stay until told to leave; returns the exit code."""
        try:
            only = only_one(self._root + LOCK)
        except OSError as error:
            self._log("cannot start", level="error", error=str(error))
            return EXIT_FAILED
        if only is None:
            self._log("cannot start", level="error", error="another daemon of bootagent runs already")
            return EXIT_TRY_LATER
        wakeup = self._catch_signals()
        self._manager.ready()
        self._log("started", pid=os.getpid())
        self._begin_what_is_due()
        while True:
            self._obey_signals()
            if signal.SIGTERM in self._signals:
                return self._leave()
            self._reap()
            self._look()
            self._begin_what_is_due()
            self._manager.status(self._status())
            self._poll.poll(1000 * self._wait_seconds())
            self._drain(wakeup)

    # --- signals -----------------------------------------------------------------------------------------------

    def _catch_signals(self) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda number, frame: self._signals.add(number))
        self._poll.register(reader, select.POLLIN)
        return reader

    def _drain(self, wakeup: int) -> None:
        try:
            while os.read(wakeup, 512):
                pass
        except BlockingIOError:
            pass

    def _obey_signals(self) -> None:
        if signal.SIGINT in self._signals:
            self._signals.add(signal.SIGTERM)
        if signal.SIGHUP in self._signals:
            self._signals.discard(signal.SIGHUP)
            self._retry_seconds = RETRY_SECONDS
            self._escorts.look_again()
            if dying := self._lookout.dying:
                self._log("hangup ignored", reason=dying)
            else:
                self._wanted = "reconfigure"

    def _leave(self) -> int:
        self._manager.stopping()
        self._log("leaving")
        self._escorts.dismiss()
        if self._child:
            self._end_child()
            deadline = time.monotonic() + END_SECONDS
            while self._child.ended() is None and time.monotonic() < deadline + 1:
                if time.monotonic() > deadline:
                    self._child.signal(signal.SIGKILL)
                time.sleep(0.05)
        return 0

    # --- children ----------------------------------------------------------------------------------------------

    def _begin(self, why: str) -> None:
        if why == "stop" or (why != "watch" and self._lookout.is_open):
            self._escorts.begin(self._lookout.dying if why == "stop" else "")
        if why == "stop":
            patience = SPOT_PATIENCE_SECONDS if "spot" in self._lookout.notices else PATIENCE_SECONDS
            argv = [*self._launcher, "stop", "--force", "--lock-wait", str(patience), *self._place]
            self._limits = limits(self._lookout.notices)
            argv += ["--shutdown", "--reason", self._lookout.dying, *self._limits, *self._log_words]
        else:
            argv = [*self._launcher, "run", "--once", "--because", why, *self._place, *self._words]
        self._due = None
        try:
            self._child = Child(why, argv)
        except OSError as error:
            self._log("cannot start", level="error", command=argv[0], error=str(error))
            self._try_again(why)
        else:
            self._listen_to(self._child)
            self._log("begun", why=why, child=self._child.pid)

    def _reap(self) -> None:
        self._abandoned = [old for old in self._abandoned if old.ended() is None]
        self._escorts.reap()
        self._escorts.send_what_is_due()
        child = self._child
        if child is None:
            return
        if not child.read():
            self._forget_pipe(child)
        code = child.ended()
        if code is None:
            if self._kill_due is None or time.monotonic() < self._kill_due:
                return
            if not self._killed:
                child.signal(signal.SIGKILL)
                self._killed, self._kill_due = True, time.monotonic() + END_SECONDS
                return
            # It hangs in the kernel, on a disk or a mount that is gone; what is next must not wait for it.
            self._abandoned.append(child)
            code = -signal.SIGKILL
        self._forget_pipe(child)
        self._child, self._kill_due, self._killed = None, None, False
        self._log("ended", level="info" if code == 0 else "error", why=child.why, exit_code=code)
        self._after(child, code)

    def _after(self, child: Child, code: int) -> None:
        """Decide what a child's end leads to."""
        if child.why == "stop":
            if code != 0 and self._limits != limits(self._lookout.notices):
                self._due, self._due_why = time.monotonic(), "stop"  # ended by us, to begin anew
                return
            self._escorts.stopped(self._lookout.dying)
            self._due, self._due_why = None, ""
            if code == 0:
                self._stopped_for = self._lookout.dying
                self._last_summary()
                self._stopped_summary = self._summary
            else:  # there may be two minutes left
                self._due, self._due_why = time.monotonic() + RETRY_SECONDS, "stop"
            return
        if child.watch_seconds is not None:
            self._watch_seconds = child.watch_seconds
        if code != EXIT_USAGE and child.transient:
            self._try_again("retry")
            return
        self._retry_seconds = RETRY_SECONDS
        if self._watch_seconds > 0:
            self._due, self._due_why = time.monotonic() + jittered(self._watch_seconds), "watch"

    def _try_again(self, why: str) -> None:
        pause = min(self._retry_seconds, self._watch_seconds or RETRY_MOST_SECONDS)
        self._due, self._due_why = time.monotonic() + jittered(pause), why
        self._retry_seconds = min(self._retry_seconds * 2, RETRY_MOST_SECONDS)

    def _begin_what_is_due(self) -> None:
        dying = self._lookout.dying
        if self._child:
            if dying and (self._child.why != "stop" or self._limits != limits(self._lookout.notices)):
                self._end_child()  # a stop begins anew where there is less time than it was told, or more
        elif dying:
            self._wanted = None
            self._last_summary()
            # Once more when somebody was at work since: a run that had waited for its tags, say.
            stopped = dying == self._stopped_for and self._summary == self._stopped_summary
            if not stopped and (self._due is None or self._due_why != "stop" or self._is_due()):
                self._begin("stop")
        elif self._wanted:
            why, self._wanted = self._wanted, None
            self._begin(why)
        elif self._is_due() and not self._is_stopped():
            self._begin(self._due_why)

    def _is_due(self) -> bool:
        return self._due is not None and time.monotonic() >= self._due

    def _is_stopped(self) -> bool:
        """Whether somebody took the services down, and nobody has brought them up since."""
        return self._last_summary().startswith("stopped:")

    def _end_child(self) -> None:
        """Tell it to end, once; it is killed when it does not. What it was at, the next run takes up."""
        if self._child and self._kill_due is None:
            self._child.signal(signal.SIGTERM)
            self._kill_due = time.monotonic() + END_SECONDS

    def _listen_to(self, child: Child) -> None:
        self._poll.register(child.pipe, select.POLLIN)

    def _forget_pipe(self, child: Child) -> None:
        if child.heard:
            child.heard = False
            self._poll.unregister(child.pipe)

    # --- notices -----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        was_dying = self._lookout.dying
        if not self._lookout.look():
            return
        dying, target = self._lookout.dying, self._lookout.notices.get("lifecycle", "InService")
        if was_dying and not dying and target == "InService":  # called off
            self._stopped_for = ""
            self._begin_anew()
        pooled = target.startswith("Warmed:")
        if self._pooled not in (None, pooled) and not dying:  # in the pool nothing serves, out of it all does
            self._begin_anew()
        self._pooled = pooled

    def _begin_anew(self) -> None:
        self._escorts.begin_anew()
        self._wanted = "reconfigure"

    # --- telling -----------------------------------------------------------------------------------------------

    def _status(self) -> str:
        return "; ".join(filter(None, (self._work_status(), self._escorts.status())))

    def _work_status(self) -> str:
        if self._child:
            if self._child.why == "stop":
                return f"stopping the services: {self._lookout.dying}"
            return f"{SAID.get(self._child.why, self._child.why)}: {self._child.status or 'starting'}"
        told = [self._last_summary() or "nothing done yet"]
        if self._due is not None and not self._is_stopped():
            at = time.strftime("%H:%M:%S", time.localtime(time.time() + self._due - time.monotonic()))
            told.append(f"{SAID.get(self._due_why, self._due_why)} at {at}")
        told += [f"{name} notice: {says}" for name, says in self._lookout.notices.items() if says != "InService"]
        return "; ".join(told)

    def _last_summary(self) -> str:
        """How the last run ended, whoever started it."""
        try:
            changed = os.stat(self._summary_path).st_mtime_ns  # noqa: PTH116
            if changed != self._summary[0]:
                with open(self._summary_path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                    self._summary = (changed, file.read(4096).strip())
        except OSError:
            self._summary = (0, "")
        return self._summary[1]

    def _wait_seconds(self) -> float:
        now = time.monotonic()
        waits = [WAIT_MOST_SECONDS]
        if (look := self._lookout.due()) is not None:
            waits.append(look - now)
        if self._due is not None and self._child is None and not self._is_stopped():
            waits.append(self._due - now)
        if self._kill_due is not None:
            waits.append(self._kill_due - now)
        if (again := self._escorts.due()) is not None:
            waits.append(again - now)
        if (alive := self._manager.alive()) is not None:
            waits.append(alive)
        return max(0.0, min(waits))


def only_one(path: str) -> int | None:
    """Hold the daemon's own lock for as long as this process lives; None when another holds it. Raises OSError."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def limits(found: dict[str, str]) -> list[str]:
    """How long a stop has, as options for it: until the spot instance goes, or while the group can be made to wait."""
    if "spot" not in found:
        return ["--escorted", "--within", str(GOING_SECONDS)]
    # {"action": "terminate", "time": "2026-11-21T08:22:00Z"}; the stop makes sense of what is something else.
    return ["--until", found["spot"].partition('"time"')[2].partition('"')[2].partition('"')[0]]


def main(arguments: Sequence[str]) -> int:
    """The daemon's process: ``PLACE… -- WORDS… -- LAUNCHER…``."""
    first = arguments.index("--")
    second = arguments.index("--", first + 1)
    return Resident(arguments[:first], arguments[first + 1 : second], arguments[second + 1 :]).run()
