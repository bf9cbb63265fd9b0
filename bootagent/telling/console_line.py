"""One line on the machine's console: what ``aws ec2 get-console-output`` shows of an instance nobody can log in to."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path

from bootagent.errors import EXIT_DONE, plain
from bootagent.machine import Machine
from bootagent.state import Failure, LastRun, State
from bootagent.telling.serving import Serving, serving

CONSOLE = "/dev/console"
CHARACTERS = 600
REASON_CHARACTERS = 240


def line(known: State) -> str:
    """How the last run ended, e.g. ``bootagent: degraded, web: stays on release 2026… (serve: …), 42 s``."""
    last = known.last_run
    if last is None:
        return "bootagent: no run yet"
    said = "; ".join(_clauses(last, {one.app: one for one in serving(known)})) or "this role runs nothing"
    took = f", {last.seconds:.0f} s"
    head = plain(" ".join(f"bootagent: {last.outcome}, {said}".split()))
    return _cut(head, CHARACTERS - len(took)) + took


def show(machine: Machine, text: str) -> None:
    """Write a text as one line to the console, unless who it is for sits at a terminal, or the machine is not this one.

    It waits for nobody and fails nothing: a serial line that stands still must not keep a boot from its end.
    """
    if machine.root == Path("/") and not _is_watched():
        write(machine.real(CONSOLE), _cut(plain(" ".join(text.split())), CHARACTERS))


def write(console: Path, text: str) -> bool:
    """Write a line to a character device; whether all of it was taken."""
    with contextlib.suppress(OSError):
        # O_NOCTTY: a console must not become the terminal whose hangup ends us.
        descriptor = os.open(console, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                # From the left margin, whatever somebody else has left there.
                content = f"\r\n{text}\r\n".encode(errors="replace")
                return os.write(descriptor, content) == len(content)
        finally:
            os.close(descriptor)
    return False


def _is_watched() -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return sys.stderr.isatty()
    return False


def _clauses(last: LastRun, found: dict[str, Serving]) -> list[str]:
    """What went wrong comes first: the line may be cut."""
    causes: dict[str | None, Failure] = {}
    for failure in last.failures:
        causes.setdefault(failure.app, failure)
    clauses = [_reason(causes[None])] if None in causes else []
    if not last.apps and not clauses and last.error:
        clauses.append(last.error)
    worst = sorted(last.apps, key=lambda name: last.exit_codes.get(name, EXIT_DONE) == EXIT_DONE)
    return clauses + [_clause(last, name, found.get(name), causes.get(name)) for name in worst]


def _clause(last: LastRun, name: str, found: Serving | None, failure: Failure | None) -> str:
    sentence = last.apps[name]
    if last.exit_codes.get(name, EXIT_DONE) == EXIT_DONE:
        return f"{name}: {sentence.partition(';')[0]}"
    if failure is None:
        return f"{name}: {sentence}"
    if last.command == "stop":
        return f"{name}: {_reason(failure)}"
    fate = f"stays on release {found.release}" if found and found.release else "does not work"
    return f"{name}: {fate} ({_reason(failure)})"


def _reason(failure: Failure) -> str:
    return _cut(f"{failure.phase}: {failure.sentence}", REASON_CHARACTERS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
