"""What a configuration expects around an instance, made up in the simulated cloud: balancers, secrets, its group."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from bootagent.config.model import Config, Lifecycle, Secret, Traffic
from bootagent.errors import UsageError
from bootagent.sandbox.addresses import Addresses
from bootagent.sandbox.autoscaling import AutoScaling, Hook
from bootagent.sandbox.balancer_api import LoadBalancing
from bootagent.sandbox.balancer_model import HealthCheck
from bootagent.sandbox.cloud import Cloud

#: The value of a secret that nobody has given, and the name of a parameter below a path that nobody has filled.
MADE_UP = "simulated"
USUAL_PORT = 80
_SSM, _MANAGER = "ssm:", "secretsmanager:"


@contextlib.contextmanager
def surroundings(cloud: Cloud, config: Config, given: Mapping[str, str]) -> Iterator[AutoScaling | None]:
    """Have a cloud hold what ``config`` names; ``given`` are the values of secrets, by where they are kept.

    Where it names lifecycle hooks, a group has launched the instance, and waits: that group is what there is inside.

    Raises UsageError for a secret that is kept nowhere we know.
    """
    services = [service for app in config.apps for service in (*app.services, app.unnamed)]
    _keep_secrets(cloud, [secret for service in services for secret in service.secrets], given)
    with contextlib.ExitStack() as stack:
        if traffic := config.traffic:
            _balance(stack, cloud, traffic, _port(config))
            _address(stack, cloud, traffic)
        yield _launched(stack, cloud, config.lifecycle) if config.lifecycle else None


def _balance(stack: contextlib.ExitStack, cloud: Cloud, traffic: Traffic, port: int) -> None:
    if not traffic.target_groups and not traffic.load_balancers:
        return
    balancers = stack.enter_context(LoadBalancing(cloud))
    check = HealthCheck(path=None)  # which path a group asks for is not in the configuration
    for group in traffic.target_groups:
        arn = group.group if group.group.startswith("arn:") else None
        name = arn.split("/")[1] if arn else group.group
        balancers.add_group(name, group.port or port, check=check, arn=arn)
    for name in traffic.load_balancers:
        balancers.add_load_balancer(name, port, check=check)


def _address(stack: contextlib.ExitStack, cloud: Cloud, traffic: Traffic) -> None:
    if wanted := traffic.elastic_ip:
        stack.enter_context(Addresses(cloud)).allocate(dict(wanted.tags), allocation=wanted.allocation)


def _launched(stack: contextlib.ExitStack, cloud: Cloud, lifecycle: Lifecycle) -> AutoScaling:
    bucket = urlsplit(lifecycle.diagnosis or "").netloc
    if bucket and "{" not in bucket and bucket not in cloud.buckets():
        cloud.create_bucket(bucket)
    hooks = [Hook(lifecycle.launching, "launching")] if lifecycle.launching else []
    hooks += [Hook(lifecycle.terminating, "terminating")] if lifecycle.terminating else []
    group = stack.enter_context(AutoScaling(cloud, hooks=hooks))
    group.launch()
    return group


def _port(config: Config) -> int:
    """Where requests would go: the port of the first service that is checked by one."""
    for service in (service for app in config.apps for service in app.services):
        if service.check.http:
            found = urlsplit(service.check.http)
            return found.port or (443 if found.scheme == "https" else USUAL_PORT)
        if service.check.tcp:
            return int(service.check.tcp.rpartition(":")[2])
    return USUAL_PORT


def _keep_secrets(cloud: Cloud, wanted: list[Secret], given: Mapping[str, str]) -> None:
    parameters = {name.removeprefix(_SSM): value for name, value in given.items() if name.startswith(_SSM)}
    managed = {name.removeprefix(_MANAGER): value for name, value in given.items() if name.startswith(_MANAGER)}
    if odd := [name for name in given if not name.startswith((_SSM, _MANAGER))]:
        raise UsageError(f"--secret {odd[0]}: a secret is kept at ssm:NAME or secretsmanager:NAME")
    keys: dict[str, dict[str, str]] = {}
    for secret in wanted:
        kind, _, place = secret.origin.partition(":")
        name, _, key = place.partition("#")
        if kind == "ssm" and place.endswith("/"):
            if not any(one.startswith(place) for one in parameters):
                parameters[f"{place}{MADE_UP.upper()}"] = MADE_UP
        elif kind == "ssm":
            parameters.setdefault(place, MADE_UP)
        elif key or not secret.name:
            keys.setdefault(name, {}).update({key: MADE_UP} if key else {})
        else:
            managed.setdefault(name, MADE_UP)
    for name, values in keys.items():
        managed.setdefault(name, json.dumps(values))
    for name, value in parameters.items():
        cloud.api.ssm(cloud.region).put_parameter(Name=name, Value=value, Type="SecureString")
    for name, value in managed.items():
        cloud.api.secretsmanager(cloud.region).create_secret(Name=name, SecretString=value)
