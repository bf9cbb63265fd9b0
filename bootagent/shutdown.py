"""Whether the machine itself is going down."""

from __future__ import annotations

from bootagent.errors import CommandError
from bootagent.machine import Machine

ASK_SECONDS = 10.0


def is_under_way(machine: Machine) -> bool:
    """Whether systemd, where it runs the machine, is shutting it down: systemctl(1), is-system-running.

    A manager that does not answer is taken to be: that keeps what the next boot needs.
    """
    if not machine.real("/run/systemd/system").is_dir():  # sd_booted(3)
        return False
    try:
        found = machine.run(["systemctl", "is-system-running"], timeout=ASK_SECONDS, check=False)
    except CommandError:
        return True
    return found.stdout.strip() in ("stopping", "offline", "unknown", "")
