"""Whether a service works, seen from outside: HTTP, TCP, or a program's exit code."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from bootagent.errors import CommandError
from bootagent.machine import TAIL_BYTES, Identity, Machine

TRY_SECONDS = 5.0


def http_problem(url: str) -> str | None:
    """None when a GET answers below 400 without following redirects, else why not, as a clause."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TRY_SECONDS)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # The timeout is for each read; an answer that drips is ended by the timer.
    timer = threading.Timer(TRY_SECONDS, lambda: _hang_up(connection))
    timer.start()
    try:
        connection.request("GET", path, headers={"User-Agent": "bootagent"})
        status = connection.getresponse().status
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{url}: {error or type(error).__name__}"
    finally:
        timer.cancel()
        connection.close()
    return None if status < 400 else f"{url} answered {status}"


def _hang_up(connection: http.client.HTTPConnection) -> None:
    with contextlib.suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


def tcp_problem(address: str) -> str | None:
    """None when HOST:PORT accepts a connection, else why not, as a clause."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=TRY_SECONDS):
            return None
    except (OSError, ValueError) as error:
        return f"{address}: {error}"


def command_problem(
    machine: Machine, command: tuple[str, ...], *, identity: Identity | None, cwd: Path, env: Mapping[str, str]
) -> str | None:
    """None when a program exits 0, else why not, as a clause."""
    try:
        # The directory may be on a dead NFS server: who enters it must be a child that can be given up.
        machine.run(["env", f"--chdir={cwd}", "--", *command], timeout=TRY_SECONDS, identity=identity, env=env)
    except CommandError as error:
        lines = error.tail.strip().splitlines()
        if len(lines) == 1 and len(error.tail) >= TAIL_BYTES:
            lines = []  # its beginning is lost: it might begin with half a secret, which nobody would know for one
        return ": ".join([error.sentence, *lines[-1:]])
    return None
