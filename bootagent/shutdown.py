"""Whether the machine itself is going down, and when."""

from __future__ import annotations

from datetime import datetime, timezone

from bootagent.errors import CommandError
from bootagent.machine import Machine

ASK_SECONDS = 10.0
#: How long before the instant of a notice all is to be over; how much there is at most ("Spot Instance interruption
#: notices", Amazon EC2 User Guide: two minutes); and what is taken when the clock says that it has passed.
MARGIN_SECONDS, NOTICE_SECONDS, LATE_SECONDS = 5.0, 120.0, 15.0


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


def seconds_until(notice: str, now: datetime | None = None) -> float:
    """How long a stop may take before the instant that a notice tells, as in ``2026-11-21T08:22:00Z``.

    The clock may be wrong, so it is never more than a notice gives. One that cannot be read is taken for a new one.
    """
    now = now or datetime.now(timezone.utc)
    try:
        left = (datetime.fromisoformat(notice.replace("Z", "+00:00")) - now).total_seconds()
    except (ValueError, TypeError):  # TypeError: without a time zone
        left = NOTICE_SECONDS
    return max(LATE_SECONDS, min(left, NOTICE_SECONDS) - MARGIN_SECONDS)
