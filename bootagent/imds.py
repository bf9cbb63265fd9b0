"""A client for the instance metadata service, version 2 only.

Source: "Use the Instance Metadata Service to access instance metadata", Amazon EC2 User Guide. A token is a PUT with
``X-aws-ec2-metadata-token-ttl-seconds``; 401 means the token is bad or has expired, 403 that the service is switched
off, 404 that the key is absent.
"""

from __future__ import annotations

import os
import random
import time

import requests

from bootagent.errors import MetadataError

IPV4_ENDPOINT = "http://169.254.169.254"
IPV6_ENDPOINT = "http://[fd00:ec2::254]"
TOKEN_TTL_SECONDS = 21600
CONNECT_SECONDS = 1.0
READ_SECONDS = 3.0
#: What the last attempt gets at least: on a busy machine even a prompt answer takes a moment.
LAST_SECONDS = 0.5
MAX_BODY_BYTES = 64 * 1024
_HOPS = "inside a container the hop limit may be too low: raise HttpPutResponseHopLimit to 2"


def endpoints() -> tuple[str, ...]:
    """Where the service may be: what the standard AWS variables say, else its IPv4 and IPv6 addresses."""
    named = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    if named:
        return (named.rstrip("/"),)
    if os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "").lower() == "ipv6":
        return (IPV6_ENDPOINT,)
    return IPV4_ENDPOINT, IPV6_ENDPOINT


def is_disabled() -> bool:
    """Whether ``AWS_EC2_METADATA_DISABLED`` says not to ask at all."""
    return os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"


class Metadata:
    """Reads keys below ``/latest/``. ``within``: seconds until any read gives up, counted from construction."""

    def __init__(self, within: float) -> None:
        self._deadline = time.monotonic() + within
        self._within = within
        self._endpoints = endpoints()
        self._token: str | None = None
        self._session = requests.Session()
        self._session.trust_env = False  # no proxies: they would see the token, and metadata is link-local

    def get(self, key: str) -> str | None:
        """The text at ``/latest/KEY``, e.g. ``meta-data/instance-id``; None when there is no such key.

        Tries again, with short waits, until the deadline. Raises MetadataError.
        """
        body = self.get_bytes(key)
        return None if body is None else body.decode(errors="replace")

    def get_bytes(self, key: str) -> bytes | None:
        """As :meth:`get`, undecoded."""
        pause = 0.1
        while True:
            try:
                return self._attempt(key)
            except (requests.RequestException, _TryAgainError) as error:
                # While no endpoint has answered, try the other address family next.
                if self._token is None:
                    self._endpoints = self._endpoints[1:] + self._endpoints[:1]
                left = self._deadline - time.monotonic()
                if left <= 0:
                    raise self._gave_up(key, error) from None
                time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
                pause = min(pause * 2, 5.0)

    def _attempt(self, key: str) -> bytes | None:
        if self._token is None:
            self._token = self._new_token()
        response = self._request("GET", f"/latest/{key}", {"X-aws-ec2-metadata-token": self._token})
        if response.status_code == 401:
            self._token = None
            raise _TryAgainError("the token was refused (401)")
        if response.status_code == 404:
            return None
        self._expect_ok(response)
        return response.content[:MAX_BODY_BYTES]

    def _new_token(self) -> str:
        header = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_SECONDS)}
        response = self._request("PUT", "/latest/api/token", header)
        if response.status_code in (400, 404, 405):
            raise MetadataError(
                f"{self._endpoints[0]} gives no IMDSv2 token ({response.status_code})",
                remedy="bootagent speaks IMDSv2 only; is this the instance metadata service?",
            )
        self._expect_ok(response)
        return response.text

    def _request(self, method: str, path: str, headers: dict[str, str]) -> requests.Response:
        left = max(LAST_SECONDS, self._deadline - time.monotonic())
        return self._session.request(
            method,
            self._endpoints[0] + path,
            headers=headers,
            timeout=(min(CONNECT_SECONDS, left), min(READ_SECONDS, left)),
            allow_redirects=False,
        )

    def _expect_ok(self, response: requests.Response) -> None:
        if response.status_code == 403:
            raise MetadataError(
                f"instance metadata is disabled ({self._endpoints[0]} answered 403)",
                remedy="enable it: aws ec2 modify-instance-metadata-options --http-endpoint enabled",
            )
        if response.status_code != 200:
            raise _TryAgainError(f"answered {response.status_code}")

    def _gave_up(self, key: str, error: Exception) -> MetadataError:
        where = " or ".join(sorted(self._endpoints))
        if isinstance(error, requests.ReadTimeout) and self._token is None:
            return MetadataError(f"no token from {where} within {self._within:g} s", remedy=_HOPS)
        if isinstance(error, requests.ConnectionError):
            why = "no route or no listener"
            return MetadataError(
                f"no instance metadata at {where} within {self._within:g} s: {why}",
                remedy=f"is this an EC2 instance? {_HOPS}",
            )
        return MetadataError(f"cannot read {key} from {where} within {self._within:g} s: {error}")


class _TryAgainError(Exception):
    """An answer that another try may better."""
