"""What instance metadata announces: a scale-in, a spot interruption, a risk, a maintenance.

Source: "Instance metadata categories", Amazon EC2 User Guide, and "Retrieve the target lifecycle state through
instance metadata", Amazon EC2 Auto Scaling User Guide. 404 means there is nothing. IMDSv2 only, as everywhere.
A client of its own, because the agent's brings an HTTP library with it, four times as large as the whole daemon.
"""

from __future__ import annotations

import os
import time

from bootagent.daemon.bare import socket

#: Where each notice is, below ``/latest/meta-data/``.
PATHS = {
    "lifecycle": "autoscaling/target-lifecycle-state",
    "spot": "spot/instance-action",
    "rebalance": "events/recommendations/rebalance",
    "maintenance": "events/maintenance/scheduled",
}
DEFAULT_ENDPOINT = "http://169.254.169.254"
IPV6_ENDPOINT = "http://[fd00:ec2::254]"
TOKEN_SECONDS = 21600
ANSWER_SECONDS = 2.0
MAX_BYTES = 64 * 1024


class NoMetadataError(Exception):
    """Instance metadata does not answer, or not as it should; another look may find it."""


def endpoint() -> str | None:
    """Where the service is: what the standard AWS variables say, else its usual address. None: not to be asked."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    if named := os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT"):
        return named
    mode = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "").lower()
    return IPV6_ENDPOINT if mode == "ipv6" else DEFAULT_ENDPOINT


def read(url: str, token: str, known: dict[str, str]) -> tuple[dict[str, str], str]:
    """The notices there are, by their names in :data:`PATHS`, and the token to use next time ("" for a new one).

    What cannot be read of them stays as it is in ``known``. Raises NoMetadataError when none can.
    """
    try:
        with _Connection(url) as connection:
            if token:
                try:
                    return _notices(connection, token, known), token
                except _TokenRefusedError:  # it has expired, or was given by an earlier boot
                    pass
            token = connection.token()
            return _notices(connection, token, known), token
    except (OSError, ValueError, OverflowError, _TokenRefusedError) as error:
        raise NoMetadataError(f"{url}: {error}") from None


def _notices(connection: _Connection, token: str, known: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    failures = 0
    for name, path in PATHS.items():
        try:
            status, body = connection.get(f"/latest/meta-data/{path}", token)
            if status == 401:
                raise _TokenRefusedError("refuses the token it gave (401)")
            if status not in (200, 404):
                raise ValueError(f"{path} answered {status}")
            if status == 200 and body.strip() not in ("", "[]"):
                found[name] = body.strip()
        except (OSError, ValueError):  # the others may well tell what this one does not
            connection.close()
            failures += 1
            if failures == len(PATHS):
                raise
            if name in known:
                found[name] = known[name]
    return found


class _TokenRefusedError(Exception):
    """The service wants a new token."""


class _Connection:
    """One connection to the service, for the few requests of a look."""

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.rstrip("/").partition("://")
        self._netloc, _, self._prefix = rest.partition("/")
        host, colon, port = self._netloc.rpartition(":")
        if scheme != "http" or not self._netloc:
            raise ValueError("is no http:// address")
        if not colon or port.endswith("]"):  # [fd00:ec2::254] has colons and no port
            host, port = self._netloc, "80"
        self._address = (host.strip("[]"), int(port))
        self._deadline = time.monotonic() + ANSWER_SECONDS
        self._socket: socket.socket | None = None
        self._buffer = b""

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *ending: object) -> None:
        self.close()

    def close(self) -> None:
        """The next request opens another."""
        if self._socket:
            self._socket.close()
        self._socket, self._buffer = None, b""

    def token(self) -> str:
        status, body = self._ask("PUT", "/latest/api/token", f"X-aws-ec2-metadata-token-ttl-seconds: {TOKEN_SECONDS}")
        if status != 200 or not body.strip().isascii() or not body.strip():
            raise ValueError(f"gives no token ({status})")
        return body.strip()

    def get(self, path: str, token: str) -> tuple[int, str]:
        return self._ask("GET", path, f"X-aws-ec2-metadata-token: {token}")

    def _ask(self, method: str, path: str, header: str) -> tuple[int, str]:
        if self._socket is None:
            # Not by name: the service has an address, and to resolve names takes a megabyte of libraries.
            family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.settimeout(self._left())
            self._socket.connect(self._address)
        prefix = f"/{self._prefix}" if self._prefix else ""
        length = "Content-Length: 0\r\n" if method == "PUT" else ""
        request = f"{method} {prefix}{path} HTTP/1.1\r\nHost: {self._netloc}\r\n{header}\r\n{length}\r\n"
        self._socket.settimeout(self._left())
        self._socket.sendall(request.encode("ascii"))
        return self._answer()

    def _answer(self) -> tuple[int, str]:
        """Status and body. RFC 9112: a body is as long as Content-Length says, or lasts until the end."""
        while b"\r\n\r\n" not in self._buffer:
            self._receive()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, *_ = f"{first} -".split(" ")
        fields = {name.strip().lower(): value.strip().lower() for name, _, value in (x.partition(":") for x in lines)}
        if not version.startswith("HTTP/1.") or "transfer-encoding" in fields:
            raise ValueError(f"does not answer as instance metadata does ({first[:60]!r})")
        if "content-length" in fields:
            length = int(fields["content-length"])
            while len(self._buffer) < length:
                self._receive()
            body, self._buffer = self._buffer[:length], self._buffer[length:]
        else:
            while self._receive(at_end=True):
                pass
            body, self._buffer = self._buffer, b""
        if version == "HTTP/1.0" or "close" in fields.get("connection", "") or "content-length" not in fields:
            self.close()
        return int(status), body.decode("ascii", "replace")

    def _receive(self, *, at_end: bool = False) -> bool:
        assert self._socket is not None
        self._socket.settimeout(self._left())
        data = self._socket.recv(16384)
        if not data and not at_end:
            raise ValueError("closed the connection in the middle of an answer")
        self._buffer += data
        if len(self._buffer) > MAX_BYTES:
            raise ValueError("answered too much")
        return bool(data)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left
