"""The app of the test's machine: says its version, and finishes its work when it is told to stop.

Asked for /hoard, it takes more memory than it may have.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from types import FrameType

VERSION = Path("VERSION").read_text().strip()
HOARD = 200 * 2**20
started = time.clock_gettime(time.CLOCK_BOOTTIME)


def stop(number: int, frame: FrameType | None) -> None:
    # Work in flight takes a moment to finish; only a service stopped in order gets this far.
    time.sleep(0.5)
    with contextlib.suppress(OSError), Path("log/stopped").open("a") as log:  # a release may be read-only
        log.write(f"{VERSION}\n")
    raise SystemExit(0)


signal.signal(signal.SIGTERM, stop)
with socket.create_server(("", int(os.environ["PORT"])), reuse_port=True) as server:
    while True:
        connection, _ = server.accept()
        with connection:
            try:
                connection.settimeout(5)
                if b" /hoard " in connection.recv(4096):
                    hoard = b"x" * HOARD
                    print(f"has {len(hoard)} bytes")
                age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
                body = f"{VERSION} {os.environ['ENVIRONMENT']} {os.getpid()} {age:.2f}\n".encode()
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            except OSError:
                pass
