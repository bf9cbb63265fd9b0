"""How the last run ended, for programs that are not root: one JSON document that anyone on the machine may read.

What services have said last is not in it: their logs are nobody else's. ``bootagent status --json`` shows that to root.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from bootagent import __version__
from bootagent.machine import Machine
from bootagent.state import LastRun, State
from bootagent.telling.serving import serving

#: In memory, and gone with the boot. Not in /run/bootagent, which nobody but root may enter.
PATH = "/run/bootagent-status.json"
VERSION = 1


def write(machine: Machine, known: State) -> None:
    """Replace the file as a whole. Raises OSError."""
    if known.last_run:
        content = json.dumps(document(known, known.last_run), indent=1).encode() + b"\n"
        machine.write(machine.real(PATH), content, mode=0o644)


def document(known: State, last: LastRun) -> dict[str, Any]:
    """The document. Its keys stay; more may come with a later agent of the same ``version``."""
    about = ("outcome", "exit_code", "command", "role", "environment", "mode", "error", "run", "boot_id")
    times = ("started", "finished", "seconds", "phases")
    failures = [asdict(failure) for failure in last.failures]
    for failure in failures:
        del failure["tail"]
    found = {one.app: one for one in serving(known)}
    return {
        "version": VERSION,
        "agent": __version__,
        "instance_id": known.instance_id,
        **{key: getattr(last, key) for key in (*about, *times)},
        "apps": {
            name: {
                "exit_code": last.exit_codes.get(name),
                "sentence": last.apps.get(name),
                "release": found[name].release if name in found else None,
                "revision": found[name].revision if name in found else None,
                "state": found[name].state if name in found else None,
            }
            for name in sorted({*last.apps, *found})
        },
        "failures": failures,
    }
