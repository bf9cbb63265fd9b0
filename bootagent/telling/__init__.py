"""Who is told how a run ended, beside the log and the state. All of it is a courtesy: none of it fails a run.

- ``console_line.py``: one line for whoever looks at the console
- ``status_file.py``: a JSON document for other programs
- ``metrics.py``: a file for Prometheus
- ``tags.py``: the instance's tags in EC2, the only call to AWS
- ``failure.py``, ``serving.py``, ``phases.py``: what there is to tell
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bootagent.config.model import Telling
from bootagent.errors import BootagentError
from bootagent.machine import Machine, Note
from bootagent.state import State, Told
from bootagent.telling import console_line, metrics, status_file, tags
from bootagent.telling.failure import failure_of
from bootagent.telling.phases import Phases

__all__ = ["Phases", "as_before", "failure_of", "looked", "tell"]


def tell(machine: Machine, known: State, how: Telling, region: str | None, *, boot_id: str, seen: bool) -> Told:
    """Tell of ``known.last_run``; returns what others know now.

    ``seen``: metadata has said in this run which instance this is, and ``region`` where; ``boot_id`` is this boot's.
    """
    if how.console:
        console_line.show(machine, console_line.line(known))
    _tried(machine, "write the status file", lambda: status_file.write(machine, known))
    told = replace(known.told, metrics=how.metrics)
    if known.told.metrics and known.told.metrics != how.metrics:
        old = known.told.metrics
        _tried(machine, f"remove {old}", lambda: metrics.remove(machine, old))
    if path := how.metrics:
        _tried(machine, f"write {path}", lambda: metrics.write(machine, path, known))
    if seen:
        told = replace(told, region=region, boot_id=boot_id)
    if not how.tags:
        return replace(told, tags={})
    # An image's state names another instance, until metadata has been read.
    return _tag(machine, known, told) if told.boot_id == boot_id else told


def looked(machine: Machine, known: State) -> None:
    """Tell of a run that has found all as it was: that it looked, and no more."""
    if path := known.told.metrics:
        _tried(machine, f"write {path}", lambda: metrics.look(machine, path, known))


def as_before(told: Told) -> Telling:
    """Who is told when no configuration can be read: whoever was told last."""
    return Telling(tags=bool(told.tags), metrics=told.metrics)


def _tag(machine: Machine, known: State, told: Told) -> Told:
    wanted = tags.wanted(known)
    if known.instance_id is None or wanted == told.tags:
        return told
    hurried = known.last_run is not None and known.last_run.command == "stop"
    if problem := tags.write(known.instance_id, told.region, wanted, hurried=hurried):
        machine.tell(Note(f"the instance's tags are not up to date: {problem}"))
        return told
    return replace(told, tags=wanted)


def _tried(machine: Machine, doing: str, work: Callable[[], None]) -> None:
    try:
        work()
    except (BootagentError, OSError) as error:
        machine.tell(Note(f"cannot {doing}: {error}"))
