"""What the service manager is told: sd_notify(3), with no library. Without one, nothing."""

from __future__ import annotations

import os
import time

from bootagent.daemon.bare import socket

STATUS_CHARACTERS = 400
SEND_SECONDS = 1.0


class ServiceManager:
    """systemd, when it started us and wants to hear: ``$NOTIFY_SOCKET``, ``$WATCHDOG_USEC``.

    The variables are taken out of the environment: what the daemon starts does not speak for it.
    """

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        meant = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        #: Seconds between two signs of life, half of what the manager allows; None when it wants none.
        wanted = microseconds.isdigit() and int(microseconds) > 0 and meant
        self.watchdog_seconds = int(microseconds) / 2e6 if wanted else None
        self._alive_due = 0.0
        self._status = ""

    def ready(self) -> None:
        """We are up: signals are heeded and notices watched."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        line = " ".join(text.split())[:STATUS_CHARACTERS]
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def alive(self) -> float | None:
        """Give a sign of life when it is time; returns the seconds until the next, None when none is wanted."""
        if self.watchdog_seconds is None:
            return None
        now = time.monotonic()
        if now >= self._alive_due:
            self._alive_due = now + self.watchdog_seconds
            self._send("WATCHDOG=1")
        return self._alive_due - now

    def stopping(self) -> None:
        """We are about to leave."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sender.settimeout(SEND_SECONDS)  # a manager that does not listen must not stop us
            sender.connect(address)
            sender.send(text.encode())
        except OSError:
            pass
        finally:
            sender.close()
