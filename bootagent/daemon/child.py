"""A process of the daemon: a bootagent command, which tells through a pipe how far it is and how it ended.

Each line of the pipe is a word and the rest: ``status TEXT`` for people, and at the end ``outcome CODE TRANSIENT
WATCH``: the exit code, whether another try may end better (1 or 0), and how often the configuration wants to look for
a new release, in seconds (``-`` when it could not be read).
"""

from __future__ import annotations

import os

from bootagent.daemon.bare import signal

TYPE_CHECKING = False  # as typing has it, which is not small
if TYPE_CHECKING:
    from collections.abc import Sequence

READ_BYTES = 65536


class Child:
    """One command that was started. Raises OSError when it cannot be."""

    def __init__(self, why: str, argv: Sequence[str]) -> None:
        self.why = why
        self.status = ""
        #: Exit code, whether it is worth another try, and the watch's interval; what a killed child would have said.
        self.transient = True
        self.watch_seconds: float | None = None
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.pipe = reader
        #: Whether the pipe is still listened to.
        self.heard = True
        self._partial = b""
        os.set_inheritable(writer, True)
        try:
            # In a process group of its own: Ctrl-C is the daemon's, who passes it on.
            self.pid = os.posix_spawn(
                argv[0],
                [*argv, "--report-to", str(writer)],
                os.environ,
                setpgroup=0,
                setsigdef=[signal.SIGPIPE, signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD],
            )
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)

    def read(self) -> bool:
        """Take in what it has said; False once it can say no more."""
        while True:
            try:
                data = os.read(self.pipe, READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            *lines, self._partial = (self._partial + data).split(b"\n")
            for line in lines:
                self._hear(line.decode("utf-8", "replace"))

    def _hear(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "status":
            self.status = rest
        elif word == "outcome":
            try:
                _, transient, watch = rest.split(" ")
                self.transient = transient == "1"
                self.watch_seconds = None if watch == "-" else float(watch)
            except ValueError:  # cut short
                pass

    def ended(self) -> int | None:
        """Its exit code (negative: the signal that killed it), or None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        self.read()
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(status)

    def signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass
