"""What serves after a run, app by app, as the state has it."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent.errors import EXIT_FAILED
from bootagent.state import LastRun, State


@dataclass(frozen=True)
class Serving:
    """An app's release that serves; None when none is known to. ``exit_code`` is how its last run ended, if it had one.

    ``revision`` is for people; ``state`` is the release's, "foreign" when somebody else made it.
    """

    app: str
    release: str | None
    revision: str | None
    state: str | None
    exit_code: int | None


def serving(known: State) -> tuple[Serving, ...]:
    """Every app of the state. The disk is not asked: a dead one would hang who tells of it."""
    last = known.last_run
    return tuple(_one(known, name, last.exit_codes.get(name) if last else None) for name in sorted(known.apps))


def _one(known: State, name: str, exit_code: int | None) -> Serving:
    app = known.apps[name]
    if app.proven is None or (exit_code == EXIT_FAILED and not _stopping(known.last_run)):
        return Serving(name, None, None, None, exit_code)
    record = app.releases.get(app.proven)
    return Serving(name, app.proven, record.label if record else None, record.state if record else "foreign", exit_code)


def _stopping(last: LastRun | None) -> bool:
    return last is not None and last.command == "stop"
