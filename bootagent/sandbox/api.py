"""The simulated AWS API: moto behind a loopback port, with every call counted and any call made to fail on request.

The only sandbox module that imports boto3 or moto.
"""

from __future__ import annotations

import io
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast
from xml.sax.saxutils import escape

from bootagent.errors import BootagentError

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_ssm import SSMClient

#: The access key of the sandbox itself, whose calls are not counted.
_OPERATOR = "AKIASANDBOXOPERATOR0"
#: Answers a call by its parameters, with a status and XML; None leaves it to moto.
Override = Callable[[Mapping[str, str]], tuple[int, bytes] | None]
_CREDENTIAL = re.compile(r"Credential=([^/,\s]+)/[0-9]+/[^/]+/([^/]+)/")


@dataclass(frozen=True)
class Call:
    """One API call somebody made, such as ``Call("ec2", "DescribeTags", "/")``."""

    service: str
    action: str
    path: str


#: Told of a call before it is done (False), and when it is done but not answered (True).
Listener = Callable[[Call, bool], None]


@dataclass
class _Failure:
    service: str
    action: str
    status: str
    code: str
    left: int

    def takes(self, call: Call) -> bool:
        return self.left > 0 and (self.service, self.action) == (call.service, call.action)


class AwsApi:
    """Every AWS service on one endpoint; a context manager. Its contents are per process: use one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[Call] = []
        self._failures: list[_Failure] = []
        self._overrides: dict[tuple[str, str], Override] = {}
        self._listener: Listener | None = None
        self._clients: dict[tuple[str, str], Any] = {}
        self._server: Any = None

    def __enter__(self) -> AwsApi:
        # Thousands of public images that no test asks for cost most of a second.
        os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
        try:
            from moto.moto_server.werkzeug_app import (
                DomainDispatcherApplication,
                MotoRequestHandler,
                create_backend_app,
            )
            from werkzeug.serving import make_server
        except ImportError as error:
            raise BootagentError(
                f"the simulated cloud needs {error.name}", remedy="pip install 'bootagent[sandbox]'"
            ) from error

        class Quiet(MotoRequestHandler):
            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                """Say nothing: the terminal belongs to the boot."""

        application = self._watched(DomainDispatcherApplication(create_backend_app))
        self._server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="aws", daemon=True
        ).start()
        self.reset()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """The value for ``AWS_ENDPOINT_URL``."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def reset(self) -> None:
        """Forget every bucket, instance, call and failure."""
        from moto.moto_api._internal.models import moto_api_backend

        moto_api_backend.reset()
        with self._lock:
            self._calls.clear()
            self._failures.clear()
            self._listener = None

    @property
    def calls(self) -> list[Call]:
        """The calls made so far by anyone but the sandbox itself."""
        with self._lock:
            return list(self._calls)

    def forget_calls(self) -> None:
        """Start counting afresh."""
        with self._lock:
            self._calls.clear()

    def fail(self, service: str, action: str, *, code: str, status: int = 503, times: int = 1) -> None:
        """Answer the next ``times`` calls of, say, ``("s3", "GetObject")`` with an error such as ``SlowDown``."""
        with self._lock:
            self._failures.append(_Failure(service, action, f"{status} Simulated", code, times))

    def listen(self, listener: Listener | None) -> None:
        """Have somebody told of every call but the sandbox's own: to stop who makes it, right before or after."""
        with self._lock:
            self._listener = listener

    def override(self, service: str, override: Override | None, *, part: str = "") -> None:
        """Let something else answer calls of a service of the query protocol, such as ``"ec2"``; None: no longer.

        ``part`` names which of its calls, where several each know some of them.
        """
        with self._lock:
            self._overrides.pop((service, part), None)
            if override:
                self._overrides[service, part] = override

    # --- the sandbox's own clients ---------------------------------------------------------------------------

    def s3(self, region: str) -> S3Client:
        """An S3 client whose calls are not counted."""
        return cast("S3Client", self._client("s3", region))

    def ec2(self, region: str) -> EC2Client:
        """An EC2 client whose calls are not counted."""
        return cast("EC2Client", self._client("ec2", region))

    def ssm(self, region: str) -> SSMClient:
        """A Systems Manager client whose calls are not counted."""
        return cast("SSMClient", self._client("ssm", region))

    def secretsmanager(self, region: str) -> SecretsManagerClient:
        """A Secrets Manager client whose calls are not counted."""
        return cast("SecretsManagerClient", self._client("secretsmanager", region))

    def _client(self, service: str, region: str) -> Any:
        if (service, region) not in self._clients:
            import boto3
            import botocore.session
            from botocore.config import Config

            # Whoever runs the sandbox on a laptop has profiles and proxies of their own; none of them is ours.
            nothing = (None, None, None, None)
            plain = botocore.session.Session(
                session_vars={"profile": nothing, "config_file": nothing, "credentials_file": nothing}
            )
            session = boto3.session.Session(
                botocore_session=plain,
                aws_access_key_id=_OPERATOR,
                aws_secret_access_key="sandbox",
                region_name=region,
            )
            config = Config(proxies={}, s3={"addressing_style": "path"})
            self._clients[service, region] = session.client(
                cast(Any, service), endpoint_url=self.endpoint, config=config
            )
        return self._clients[service, region]

    # --- watching --------------------------------------------------------------------------------------------

    def _watched(self, application: Any) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
        def answer(call: Call, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            with self._lock:
                overrides = [answer for (service, _), answer in self._overrides.items() if service == call.service]
            for override in overrides:
                if found := override(_fields(environ)):
                    return _reply(*found, start_response)
            return cast("Iterable[bytes]", application(environ, start_response))

        def watch(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            key, call = _identify(environ)
            if key == _OPERATOR:
                return answer(call, environ, start_response)
            with self._lock:
                self._calls.append(call)
                failure = next((failure for failure in self._failures if failure.takes(call)), None)
                if failure:
                    failure.left -= 1
                listener = self._listener or (lambda call, done: None)
            listener(call, False)
            if failure:
                return _refuse(failure, environ, start_response)
            answered = answer(call, environ, start_response)
            listener(call, True)
            return answered

        return watch


def _identify(environ: dict[str, Any]) -> tuple[str, Call]:
    path, query = str(environ.get("PATH_INFO", "/")), str(environ.get("QUERY_STRING", ""))
    found = _CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", ""))
    key, service = found.groups() if found else ("", "s3")  # as moto does: an unsigned request is S3's
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    if target:
        action = target.rpartition(".")[2]
    elif service == "s3":
        action = _s3_action(environ["REQUEST_METHOD"], path, query, environ)
    else:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        form = urllib.parse.parse_qs(body.decode(errors="replace"))
        action = form.get("Action", [environ["REQUEST_METHOD"]])[0]
    return key, Call(service, action, path)


def _fields(environ: dict[str, Any]) -> dict[str, str]:
    body = environ["wsgi.input"].getvalue()
    return dict(urllib.parse.parse_qsl(body.decode(errors="replace"), keep_blank_values=True))


def _reply(status: int, body: bytes, start_response: Any) -> list[bytes]:
    start_response(f"{status} Simulated", [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _s3_action(method: str, path: str, query: str, environ: dict[str, Any]) -> str:
    asked = urllib.parse.parse_qs(query, keep_blank_values=True)
    if path.strip("/").count("/") == 0:
        if method == "GET" and "list-type" in asked:
            return "ListObjectsV2"
        return {"HEAD": "HeadBucket", "PUT": "CreateBucket", "GET": "GetBucket"}.get(method, method)
    if "uploadId" in asked:
        return {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}[method]
    if "uploads" in asked:
        return "CreateMultipartUpload"
    if method == "PUT" and "HTTP_X_AMZ_COPY_SOURCE" in environ:
        return "CopyObject"
    return {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}.get(method, method)


def _refuse(failure: _Failure, environ: dict[str, Any], start_response: Any) -> list[bytes]:
    length = int(environ.get("CONTENT_LENGTH") or 0)
    environ["wsgi.input"].read(length)  # or the connection cannot be used again
    if environ.get("HTTP_X_AMZ_TARGET"):  # the JSON protocols: SSM, Secrets Manager
        answer = json.dumps({"__type": failure.code, "message": "simulated"}).encode()
        start_response(
            failure.status, [("Content-Type", "application/x-amz-json-1.1"), ("x-amzn-RequestId", "sandbox")]
        )
        return [answer]
    error = f"<Code>{escape(failure.code)}</Code><Message>simulated</Message>"
    if failure.service == "s3":
        text = f"<Error>{error}<RequestId>SANDBOX</RequestId></Error>"
    else:
        text = f"<Response><Errors><Error>{error}</Error></Errors><RequestID>sandbox</RequestID></Response>"
    body = b"" if environ["REQUEST_METHOD"] == "HEAD" else text.encode()
    headers = [("Content-Type", "text/xml"), ("Content-Length", str(len(body))), ("x-amz-request-id", "SANDBOX")]
    start_response(failure.status, headers)
    return [body]
