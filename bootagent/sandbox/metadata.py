"""A real IMDSv2 server whose answers, and faults, can be changed while it runs.

Its owner changes it through the methods of :class:`MetadataServer`; any other process through plain HTTP, on the
same port, below ``/_sandbox`` (no token asked, loopback only):

======================================  ===========================================================================
``GET    /_sandbox``                    everything it would answer, and the faults, as JSON
``PUT    /_sandbox/tags/KEY``           set an instance tag; the body is the value
``DELETE /_sandbox/tags/KEY``           remove it
``PUT    /_sandbox/NAME``               set a notice, the body is its text; NAME is one of ``lifecycle`` (target
                                        lifecycle state), ``spot``, ``rebalance``, ``maintenance``, ``user-data``
``DELETE /_sandbox/NAME``               back to 404
``PUT    /_sandbox/faults/delay``       seconds to wait before each answer
``PUT    /_sandbox/faults/failures``    how many of the next requests get a 503
``PUT    /_sandbox/faults/disabled``    ``true``: answer 403, as when the service is switched off for the instance
``DELETE /_sandbox/tokens``             forget every token issued so far
======================================  ===========================================================================
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from bootagent.errors import BootagentError, UsageError

LIFECYCLE = "meta-data/autoscaling/target-lifecycle-state"
SPOT = "meta-data/spot/instance-action"
REBALANCE = "meta-data/events/recommendations/rebalance"
MAINTENANCE = "meta-data/events/maintenance/scheduled"
USER_DATA = "user-data"
_TAGS = "meta-data/tags/instance/"
_CREDENTIALS = "meta-data/iam/security-credentials/"
_NOTICES = {
    "lifecycle": LIFECYCLE,
    "spot": SPOT,
    "rebalance": REBALANCE,
    "maintenance": MAINTENANCE,
    "user-data": USER_DATA,
}

MAX_TOKEN_SECONDS = 21600
CREDENTIALS_LIVE = timedelta(hours=6)
_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
_TAG_KEY = re.compile(r"[0-9a-zA-Z\-_+=,.@:]{1,255}")
_VERSION = re.compile(r"latest|1\.0|\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class SimulatedInstance:
    """What the metadata service says about the instance it runs on."""

    instance_id: str = "i-0123456789abcdef0"
    ami_id: str = "ami-0123456789abcdef0"
    instance_type: str = "t3.small"
    region: str = "eu-west-1"
    zone: str = "eu-west-1a"
    local_ipv4: str = "10.0.0.15"
    mac: str = "0a:00:00:00:00:0f"
    account_id: str = "123456789012"
    role: str = "sandbox-instance"

    @property
    def local_hostname(self) -> str:
        """The private DNS name EC2 would give it."""
        return f"ip-{self.local_ipv4.replace('.', '-')}.{self.region}.compute.internal"

    def identity_document(self) -> str:
        """The instance identity document, shaped as EC2's."""
        return json.dumps(
            {
                "accountId": self.account_id,
                "architecture": "x86_64",
                "availabilityZone": self.zone,
                "billingProducts": None,
                "devpayProductCodes": None,
                "marketplaceProductCodes": None,
                "imageId": self.ami_id,
                "instanceId": self.instance_id,
                "instanceType": self.instance_type,
                "kernelId": None,
                "pendingTime": _stamp(datetime.now(timezone.utc)),
                "privateIp": self.local_ipv4,
                "ramdiskId": None,
                "region": self.region,
                "version": "2017-09-30",
            },
            indent=2,
        )

    def entries(self) -> dict[str, str]:
        """The fixed part of the metadata tree."""
        return {
            "meta-data/ami-id": self.ami_id,
            "meta-data/hostname": self.local_hostname,
            "meta-data/instance-id": self.instance_id,
            "meta-data/instance-type": self.instance_type,
            "meta-data/local-hostname": self.local_hostname,
            "meta-data/local-ipv4": self.local_ipv4,
            "meta-data/mac": self.mac,
            "meta-data/placement/availability-zone": self.zone,
            "meta-data/placement/region": self.region,
            "meta-data/services/domain": "amazonaws.com",
            "dynamic/instance-identity/document": self.identity_document(),
        }


@dataclass
class Faults:
    """What is wrong with the service at the moment."""

    delay: float = 0.0
    failures: int = 0
    disabled: bool = False


@dataclass(frozen=True)
class Reply:
    """One HTTP answer."""

    status: HTTPStatus
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class MetadataServer:
    """An instance metadata service on a loopback port; a context manager.

    ``on_tag`` is told of every change of a tag (key, and the value or None), so that the EC2 API can follow.
    ``host`` may be ``::1``. ``tags_enabled`` is the instance's option "allow tags in instance metadata".
    """

    def __init__(
        self,
        instance: SimulatedInstance | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        on_tag: Callable[[str, str | None], None] = lambda key, value: None,
    ) -> None:
        self.instance = instance or SimulatedInstance()
        self.faults = Faults()
        self.tags_enabled = True
        self.requests: list[str] = []
        self._host = host
        self._port = port
        self._on_tag = on_tag
        self._lock = threading.Lock()
        self._tokens: dict[str, float] = {}
        self._timers: list[threading.Timer] = []
        self._halted = threading.Event()
        self._server: _Server | None = None
        self._entries: dict[str, bytes] = {key: text.encode() for key, text in self.instance.entries().items()}
        for key, value in (tags or {}).items():
            self._entries[_TAGS + self._checked(key)] = value.encode()

    # --- running ---------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """The value for ``AWS_EC2_METADATA_SERVICE_ENDPOINT``."""
        return f"http://[{self._host}]:{self._port}" if ":" in self._host else f"http://{self._host}:{self._port}"

    def start(self) -> None:
        """Listen; after a :meth:`stop`, on the same port again."""
        self._halted.clear()
        self._server = _Server((self._host, self._port), self)
        self._port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="metadata", daemon=True
        ).start()

    def stop(self) -> None:
        """Stop listening: from here on, connections are refused."""
        if self._server:
            self._halted.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> MetadataServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for timer in self._timers:
            timer.cancel()
        self.stop()

    # --- changing what it says -------------------------------------------------------------------------------

    @property
    def tags(self) -> dict[str, str]:
        """The instance's tags now."""
        with self._lock:
            return {
                key.removeprefix(_TAGS): value.decode() for key, value in self._entries.items() if key.startswith(_TAGS)
            }

    def set_tag(self, key: str, value: str, *, after: float = 0.0) -> None:
        """Set a tag, ``after`` seconds from now when given: autoscaling's tags can be late.

        Raises UsageError for a key that EC2 does not take while tags are allowed in instance metadata.
        """
        self._checked(key)
        if after > 0:
            timer = threading.Timer(after, self.set_tag, (key, value))
            timer.daemon = True
            self._timers.append(timer)
            timer.start()
            return
        self.put(_TAGS + key, value)
        self._on_tag(key, value)

    def remove_tag(self, key: str) -> None:
        """Remove a tag, if it is there."""
        self.remove(_TAGS + key)
        self._on_tag(key, None)

    def put(self, path: str, text: str | bytes) -> None:
        """Set the answer for a path below ``/latest/``, such as :data:`LIFECYCLE` or :data:`USER_DATA`."""
        with self._lock:
            self._entries[path] = text if isinstance(text, bytes) else text.encode()

    def remove(self, path: str) -> None:
        """Answer 404 for a path below ``/latest/`` from now on."""
        with self._lock:
            self._entries.pop(path, None)

    def drop_tokens(self) -> None:
        """Forget every token issued so far: their holders get a 401."""
        with self._lock:
            self._tokens.clear()

    def _checked(self, key: str) -> str:
        if self.tags_enabled and (not _TAG_KEY.fullmatch(key) or key in (".", "..", "_index")):
            raise UsageError(
                f"EC2 refuses the tag key {key!r} on an instance whose metadata shows tags",
                remedy="use letters, digits and -_+=,.@: only",
            )
        return key

    # --- answering -------------------------------------------------------------------------------------------

    def answer(self, method: str, target: str, headers: Message, body: bytes) -> Reply:
        """The answer to one request, faults included."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(target).path)
        if path == "/_sandbox" or path.startswith("/_sandbox/"):
            return self._control(method, path.removeprefix("/_sandbox").strip("/"), body)
        with self._lock:
            self.requests.append(f"{method} {path}")
            delay = self.faults.delay
            failing = self.faults.failures > 0
            if failing:
                self.faults.failures -= 1
        self._halted.wait(delay)
        if failing:
            return Reply(HTTPStatus.SERVICE_UNAVAILABLE)
        if self.faults.disabled:
            return Reply(HTTPStatus.FORBIDDEN)
        version, _, rest = path.strip("/").partition("/")
        if rest == "api/token" and version == "latest":
            return self._issue(method, headers)
        if method != "GET":
            return Reply(HTTPStatus.METHOD_NOT_ALLOWED)
        left = self._token_seconds(headers.get("X-aws-ec2-metadata-token", ""))
        if left <= 0:
            return Reply(HTTPStatus.UNAUTHORIZED)
        found = self._look_up(rest) if _VERSION.fullmatch(version) else None
        if found is None:
            return Reply(HTTPStatus.NOT_FOUND)
        return Reply(HTTPStatus.OK, found, {_TTL_HEADER: str(int(left))})

    def _issue(self, method: str, headers: Message) -> Reply:
        if method != "PUT":
            return Reply(HTTPStatus.METHOD_NOT_ALLOWED)
        if "X-Forwarded-For" in headers:
            return Reply(HTTPStatus.FORBIDDEN)
        asked = headers.get(_TTL_HEADER, "")
        if not re.fullmatch(r"[0-9]{1,5}", asked) or not 1 <= int(asked) <= MAX_TOKEN_SECONDS:
            return Reply(HTTPStatus.BAD_REQUEST)
        token = secrets.token_urlsafe(40) + "=="
        with self._lock:
            self._tokens[token] = time.monotonic() + int(asked)
        return Reply(HTTPStatus.OK, token.encode(), {_TTL_HEADER: asked})

    def _token_seconds(self, token: str) -> float:
        with self._lock:
            return self._tokens.get(token, 0.0) - time.monotonic()

    def _look_up(self, path: str) -> bytes | None:
        entries = self._tree()
        path = path.strip("/")
        if path in entries:
            return entries[path]
        below = path + "/" if path else ""
        names = {key.removeprefix(below) for key in entries if key.startswith(below)}
        children = {name.partition("/")[0] + ("/" if "/" in name else "") for name in names}
        return "\n".join(sorted(children)).encode() if children else None

    def _tree(self) -> dict[str, bytes]:
        with self._lock:
            entries = dict(self._entries)
        if not self.tags_enabled:
            entries = {key: value for key, value in entries.items() if not key.startswith(_TAGS)}
        if self.instance.role:
            entries[_CREDENTIALS + self.instance.role] = self._credentials().encode()
        return entries

    def _credentials(self) -> str:
        now = datetime.now(timezone.utc)
        return json.dumps(
            {
                "Code": "Success",
                "LastUpdated": _stamp(now),
                "Type": "AWS-HMAC",
                "AccessKeyId": "ASIASANDBOX000000000",
                "SecretAccessKey": "sandbox",
                "Token": "sandbox",
                "Expiration": _stamp(now + CREDENTIALS_LIVE),
            },
            indent=2,
        )

    # --- the control endpoint --------------------------------------------------------------------------------

    def _control(self, method: str, path: str, body: bytes) -> Reply:
        if method == "GET" and not path:
            return Reply(HTTPStatus.OK, json.dumps(self._everything(), indent=2).encode() + b"\n")
        try:
            known = self._change(method, path, body)
        except (BootagentError, ValueError) as error:
            return Reply(HTTPStatus.BAD_REQUEST, f"{error}\n".encode())
        return Reply(HTTPStatus.NO_CONTENT) if known else Reply(HTTPStatus.NOT_FOUND, b"no such control\n")

    def _change(self, method: str, path: str, body: bytes) -> bool:
        kind, _, name = path.partition("/")
        text = body.decode().strip()
        if method == "PUT" and kind == "tags" and name:
            self.set_tag(name, body.decode())
        elif method == "DELETE" and kind == "tags" and name:
            self.remove_tag(name)
        elif method == "PUT" and path in _NOTICES:
            self.put(_NOTICES[path], body)
        elif method == "DELETE" and path in _NOTICES:
            self.remove(_NOTICES[path])
        elif method == "DELETE" and path == "tokens":
            self.drop_tokens()
        elif method == "PUT" and path == "faults/delay":
            self.faults.delay = float(text)
        elif method == "PUT" and path == "faults/failures":
            self.faults.failures = int(text)
        elif method == "PUT" and path == "faults/disabled":
            self.faults.disabled = text == "true"
        else:
            return False
        return True

    def _everything(self) -> dict[str, Any]:
        entries = {key: value.decode(errors="replace") for key, value in self._tree().items()}
        return {"entries": dict(sorted(entries.items())), "faults": vars(self.faults)}


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class _Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], metadata: MetadataServer) -> None:
        self.metadata = metadata
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is its own affair, and the terminal belongs to the boot."""


class _Handler(BaseHTTPRequestHandler):
    server_version = "EC2ws"
    sys_version = ""
    server: _Server

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        reply = self.server.metadata.answer(self.command, self.path, self.headers, self.rfile.read(length))
        body = reply.body
        if reply.status >= HTTPStatus.BAD_REQUEST and not body:
            body = f"{reply.status.value} - {reply.status.phrase}\n".encode()
        with contextlib.suppress(ConnectionError):
            self.send_response(reply.status)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal belongs to the boot."""
