"""The last run as metrics, in a file for the textfile collector of Prometheus's node exporter.

The text-based format of "Exposition formats" in Prometheus's documentation.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from datetime import datetime

from bootagent import __version__, beneath
from bootagent.machine import Machine
from bootagent.state import LastRun, State
from bootagent.telling.serving import serving

#: A look that finds all as it was is told no more often than this: each write waits for the disk.
LOOK_SECONDS = 60.0
OUTCOMES = ("done", "degraded", "failed", "refused", "stopped")

Sample = tuple[Mapping[str, str | None], float]


def write(machine: Machine, path: str, known: State) -> None:
    """Replace the file as a whole; the collector never reads half of it. Raises OSError, BootagentError.

    The directory may belong to whoever collects, so no link on the way is followed.
    """
    if last := known.last_run:
        _write(machine, path, text(known, last, _seconds(last.finished)))


def look(machine: Machine, path: str, known: State) -> None:
    """The same after a run that found all as it was, unless one has been told of just now. Raises as :func:`write`."""
    now = time.time()
    with contextlib.suppress(FileNotFoundError):
        if 0 <= now - machine.real(path).lstat().st_mtime < LOOK_SECONDS:
            return
    if known.last_run:
        _write(machine, path, text(known, known.last_run, now))


def remove(machine: Machine, path: str) -> None:
    """Take the file away: what nobody keeps up must not go on being collected. Raises OSError, BootagentError."""
    parent, _, name = path.strip("/").rpartition("/")
    beneath.unlink(machine.root, parent or ".", name)


def text(known: State, last: LastRun, looked: float) -> str:
    """All metrics; ``looked`` is when a run last looked, in seconds since the epoch."""
    about = {"role": last.role, "environment": last.environment, "mode": last.mode, "version": __version__}
    apps = serving(known)
    families = [
        _gauge("bootagent_run_info", "What the last run made of this instance, and by which agent.", [(about, 1)]),
        _gauge(
            "bootagent_last_run_timestamp_seconds",
            "When the last run ended that changed something, or was asked for.",
            [({}, _seconds(last.finished))],
        ),
        _gauge(
            "bootagent_last_look_timestamp_seconds",
            f"When a run last saw whether all is as it should be; told every {LOOK_SECONDS:g} seconds at most.",
            [({}, looked)],
        ),
        _gauge("bootagent_last_run_duration_seconds", "How long it took.", [({}, last.seconds)]),
        _gauge(
            "bootagent_last_run_phase_duration_seconds",
            "How long each phase of it took, of apps side by side the longest.",
            [({"phase": phase}, seconds) for phase, seconds in sorted(last.phases.items())],
        ),
        _gauge(
            "bootagent_last_run_exit_code",
            "How it ended: 0 done, 1 failed, 2 refused, 3 degraded.",
            [({}, last.exit_code)],
        ),
        _gauge(
            "bootagent_last_run_outcome",
            "How it ended, by name: 1 for the one that is so.",
            [({"outcome": one}, one == last.outcome) for one in OUTCOMES],
        ),
        _gauge(
            "bootagent_app_exit_code",
            "How the last run ended for an app, and for the machine or its traffic where it had to do with them.",
            [({"app": name}, code) for name, code in sorted(last.exit_codes.items())],
        ),
        _gauge(
            "bootagent_app_release_info",
            "The release of an app that was last seen to serve.",
            [
                ({"app": one.app, "release": one.release, "revision": one.revision, "state": one.state}, 1)
                for one in apps
                if one.release
            ],
        ),
    ]
    return "".join(families)


def _write(machine: Machine, path: str, content: str) -> None:
    beneath.write(machine.root, path.lstrip("/"), content.encode(), mode=0o644, owner=None)


def _gauge(name: str, about: str, samples: Iterable[Sample]) -> str:
    lines = [f"{name}{_labels(labels)} {float(value):.15g}" for labels, value in samples]
    told = about.replace("\\", r"\\").replace("\n", r"\n")
    return "\n".join([f"# HELP {name} {told}", f"# TYPE {name} gauge", *lines, ""]) if lines else ""


def _labels(labels: Mapping[str, str | None]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value or "")}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    value = value.encode(errors="replace").decode()
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()
