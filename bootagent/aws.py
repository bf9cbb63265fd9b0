"""The only user of boto3: clients, their retries, and errors turned into sentences.

Clients honour the standard variables (``AWS_ENDPOINT_URL``, ``AWS_ENDPOINT_URL_S3``, ``AWS_REGION``, the usual
credential chain). Retries are botocore's *standard* mode: timeouts, 429, 5xx and the named throttles only.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bootagent.errors import AwsError, BootagentError

if TYPE_CHECKING:
    from mypy_boto3_autoscaling import AutoScalingClient
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_elb import ElasticLoadBalancingClient
    from mypy_boto3_elbv2 import ElasticLoadBalancingv2Client
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_ssm import SSMClient

CONNECT_SECONDS = 3.0
READ_SECONDS = 20.0
POOL_CONNECTIONS = 32
#: As many as GetParameters takes: AWS Systems Manager API Reference.
PARAMETERS_A_CALL = 10
#: For who has no time: one attempt, answered within this or not at all.
HURRIED_SECONDS = 5.0

_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden"}
_ABSENT = {"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "404", "NotFound"}


def s3(region: str | None) -> S3Client:
    """An S3 client for ``region``, made once a process and safe to share between threads."""
    return _client("s3", region)  # type: ignore[no-any-return]


def ec2(region: str | None, *, hurried: bool = False) -> EC2Client:
    """An EC2 client for ``region``, made once a process and safe to share between threads; ``hurried``: no retries."""
    return _client("ec2", region, hurried)  # type: ignore[no-any-return]


def ssm(region: str | None) -> SSMClient:
    """A Systems Manager client for ``region``, made once a process and safe to share between threads."""
    return _client("ssm", region)  # type: ignore[no-any-return]


def autoscaling(region: str | None) -> AutoScalingClient:
    """An Auto Scaling client for ``region``, made once a process and safe to share between threads."""
    return _client("autoscaling", region)  # type: ignore[no-any-return]


def elbv2(region: str | None, *, hurried: bool = False) -> ElasticLoadBalancingv2Client:
    """A client for target groups, made once a process and safe to share between threads; ``hurried``: no retries."""
    return _client("elbv2", region, hurried)  # type: ignore[no-any-return]


def elb(region: str | None, *, hurried: bool = False) -> ElasticLoadBalancingClient:
    """A client for classic load balancers, made once a process; ``hurried`` as :func:`elbv2` has it."""
    return _client("elb", region, hurried)  # type: ignore[no-any-return]


def parameter(name: str, region: str | None) -> str:
    """The value of a parameter of Parameter Store, decrypted. Raises AwsError; none of its sentences has the value."""
    with call(f"read parameter {name}", "ssm:GetParameter"):
        return ssm(region).get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]


def secretsmanager(region: str | None) -> SecretsManagerClient:
    """A Secrets Manager client for ``region``, made once a process and safe to share between threads."""
    return _client("secretsmanager", region)  # type: ignore[no-any-return]


def parameters(names: Sequence[str], region: str | None) -> dict[str, str]:
    """The values of many parameters by the names they were asked by, decrypted; ten a call, GetParameters.

    Raises AwsError, and BootagentError for those that do not exist. None of the sentences has a value.
    """
    found: dict[str, str] = {}
    for first in range(0, len(names), PARAMETERS_A_CALL):
        some = list(names[first : first + PARAMETERS_A_CALL])
        with _said(f"read parameters {', '.join(some)}", "ssm:GetParameters", hushed=True):
            for one in ssm(region).get_parameters(Names=some, WithDecryption=True)["Parameters"]:
                selector = one.get("Selector", "")
                found |= {f"{name}{selector}": one["Value"] for name in (one["Name"], one.get("ARN", one["Name"]))}
    if absent := [name for name in names if name not in found]:
        raise BootagentError(f"there is no parameter {', '.join(absent)}", remedy="correct the name, or put it there")
    return {name: found[name] for name in names}


def parameters_below(path: str, region: str | None) -> dict[str, str]:
    """The values of all parameters below a path by their full names, decrypted. Raises AwsError, without a value."""
    found: dict[str, str] = {}
    with _said(f"read the parameters below {path}", "ssm:GetParametersByPath", hushed=True):
        pages = ssm(region).get_paginator("get_parameters_by_path")
        for page in pages.paginate(Path=path, Recursive=True, WithDecryption=True):
            found |= {one["Name"]: one["Value"] for one in page["Parameters"]}
    return found


def secret(name: str, region: str | None) -> str:
    """The text of a secret of Secrets Manager. Raises AwsError, and BootagentError for one that is no text."""
    with _said(f"read secret {name}", "secretsmanager:GetSecretValue", hushed=True):
        answer = secretsmanager(region).get_secret_value(SecretId=name)
    if "SecretString" not in answer:
        raise BootagentError(f"secret {name} is binary, and a variable is text", remedy="store it as text")
    return answer["SecretString"]


@functools.cache
def _client(service: str, region: str | None, hurried: bool = False) -> Any:
    # Never credentials over IMDSv1, whatever the image's environment says.
    os.environ["AWS_EC2_METADATA_V1_DISABLED"] = "true"
    import boto3  # here: a quarter of a second that `check` or `status` need not pay
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=HURRIED_SECONDS if hurried else READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": 1 if hurried else 5},
        max_pool_connections=POOL_CONNECTIONS,
        # A simulator on a bare host and port has no virtual-hosted buckets.
        s3={"addressing_style": "path" if _endpoint(service) else "auto"},
    )
    with _said(f"make a client for {service}", None):
        return boto3.session.Session(region_name=region).client(service, config=config)  # type: ignore[call-overload]


def _endpoint(service: str) -> str | None:
    return os.environ.get(f"AWS_ENDPOINT_URL_{service.upper()}") or os.environ.get("AWS_ENDPOINT_URL")


def call(doing: str, iam_action: str) -> contextlib.AbstractContextManager[None]:
    """Turn what botocore raises inside the block into an AwsError.

    ``doing`` completes "cannot …", as in "read s3://deploys/web.json"; ``iam_action`` is what the call needs, as
    in "s3:GetObject".
    """
    return _said(doing, iam_action)


@contextlib.contextmanager
def _said(doing: str, iam_action: str | None, *, hushed: bool = False) -> Iterator[None]:
    """``hushed``: what an unreadable answer held is neither told nor kept, for there may be secrets in it."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        raise _explained(doing, iam_action, error.response) from error
    except (BotoCoreError, HTTPError, ResponseParserError) as error:
        name = type(error).__name__
        if hushed and isinstance(error, ResponseParserError):
            raise AwsError(f"cannot {doing}: the answer makes no sense", code=name, iam_action=iam_action) from None
        raise AwsError(
            f"cannot {doing}: {error}", code=name, iam_action=iam_action, remedy=_REMEDIES.get(name)
        ) from error


_EARLY = {
    "NoCredentialsError",
    "CredentialRetrievalError",
    "MetadataRetrievalError",
    "EndpointConnectionError",
    "ConnectTimeoutError",
}

#: What AWS says when it is asked too often, or has trouble of its own: EC2 API Reference, "Error codes";
#: InternalServerError is that of Systems Manager, InternalServiceError that of Secrets Manager (their API references).
_PASSING = {
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "EC2ThrottledException",
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "InternalServiceError",
    "ServiceUnavailable",
    "Unavailable",
    "RequestTimeout",
    "ReadTimeoutError",
    "ConnectionClosedError",
    "DependencyThrottle",
    "HealthUnavailable",
    *_EARLY,
}

_REMEDIES = {
    "NoCredentialsError": "give the instance an IAM role, or set the AWS credential variables",
    "NoRegionError": "set AWS_REGION",
    "EndpointConnectionError": "check the route to AWS: NAT, VPC endpoint, security group",
    "ConnectTimeoutError": "check the route to AWS: NAT, VPC endpoint, security group",
}


def _explained(doing: str, iam_action: str | None, response: Any) -> AwsError:
    code = str(response.get("Error", {}).get("Code", "Unknown"))
    message = str(response.get("Error", {}).get("Message", "")).rstrip(".")
    request_id = response.get("ResponseMetadata", {}).get("RequestId") or None
    remedy = None
    if code in _DENIED and "kms:Decrypt" in message:  # of the key that the secret is kept under
        iam_action = "kms:Decrypt"
    if code in _DENIED and iam_action:
        remedy = f"allow {iam_action} to the instance's role"
    elif code in _ABSENT and iam_action and iam_action.startswith("s3:Get"):
        # S3 answers 404 only to those who may list; a missing key looks like a denial to everyone else.
        remedy = "check the bucket and the key, or publish first"
    said = f"{code}: {message}" if message and message != code else code
    return AwsError(
        f"cannot {doing}: {said}" + (f" [request {request_id}]" if request_id else ""),
        code=code,
        request_id=request_id,
        iam_action=iam_action,
        remedy=remedy,
    )


def is_early(error: AwsError) -> bool:
    """Whether the reason may be that the machine has only just started: no credentials yet, no route yet."""
    return error.code in _EARLY


def may_pass(error: AwsError) -> bool:
    """Whether the same call may do better later: throttled, trouble inside AWS or on the way there."""
    return error.code in _PASSING


def forget_clients() -> None:
    """Make new clients from now on: one made before the credentials arrived never sees them."""
    _client.cache_clear()


def is_absent(error: AwsError) -> bool:
    """Whether AWS said that the thing asked for does not exist."""
    return error.code in _ABSENT
