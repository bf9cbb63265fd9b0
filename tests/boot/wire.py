"""The wire between a machine and S3: it can be cut, and it has a speed."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType

_CHUNK = 16 * 1024


class Wire:
    """A loopback port whose connections are passed on to another one; a context manager.

    ``bytes_per_second`` limits what comes back on each connection; None: as fast as it goes. While it is down,
    connections are refused.
    """

    def __init__(self, target: int, bytes_per_second: float | None = None) -> None:
        self.bytes_per_second = bytes_per_second
        self.port = 0
        self._target = target
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Wire:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.down()

    def up(self) -> None:
        """Listen; after a :meth:`down`, on the same port again."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen()
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name="wire", daemon=True).start()

    def down(self) -> None:
        """Refuse connections, and break off those there are."""
        if self._listener:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._lock:
            left = list(self._open)
        for connection in left:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            ends = threading.Barrier(2)
            for source, sink, speed in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pass, args=(source, sink, speed, ends), name="wire", daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, paced: bool, ends: threading.Barrier) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                sink.sendall(data)
                if paced and self.bytes_per_second:
                    time.sleep(len(data) / self.bytes_per_second)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        if ends.wait() == 0:  # both directions are done
            for connection in (source, sink):
                connection.close()
            with self._lock:
                self._open -= {source, sink}
