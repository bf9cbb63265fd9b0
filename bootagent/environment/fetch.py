"""Secrets from where they are kept: SSM Parameter Store and Secrets Manager.

Each origin is asked once, however many services want it. No value ends up in a sentence, nor in an error's cause.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from bootagent import aws
from bootagent.environment import values
from bootagent.environment.concealed import Concealed
from bootagent.environment.secrets import Secret
from bootagent.errors import AwsError, BootagentError
from bootagent.machine import Machine, Note

#: How long AWS is asked again when it is busy, or when the machine has no credentials or route yet, unless told.
PATIENCE_SECONDS = 30.0
PAUSE_SECONDS = 1.0
SSM, MANAGER = "ssm:", "secretsmanager:"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SELECTOR = re.compile(r":[0-9A-Za-z_.-]+$")

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """A secret that is wanted; ``name`` None: under its own name, or their own names."""

    name: str | None
    origin: str

    @property
    def is_path(self) -> bool:
        """Whether it stands for every parameter below a path."""
        return self.origin.startswith(SSM) and self.origin.endswith("/")

    @property
    def own_name(self) -> str | None:
        """The variable it becomes; None where that is to be seen when it is fetched."""
        if self.name or self.is_path:
            return self.name
        if self.origin.startswith(SSM):
            return parameter_variable(self.origin.removeprefix(SSM))
        return self.origin.partition("#")[2] or None


class Store:
    """What has been fetched: an origin's text, or the texts below a path by name. It does not show them."""

    def __init__(self) -> None:
        self.parameters: dict[str, Concealed] = {}
        self.paths: dict[str, dict[str, Concealed]] = {}
        self.secrets: dict[str, Concealed] = {}

    def __repr__(self) -> str:
        return "Store(…)"


def parameter_variable(name: str) -> str:
    """The variable a parameter becomes: the last part of its name, without a version or label."""
    return _SELECTOR.sub("", name.rpartition("/")[2])


def fetch(machine: Machine, asked: Iterable[Asked], region: str | None, within: float = PATIENCE_SECONDS) -> Store:
    """Ask for all of them. Raises AwsError, and BootagentError for a parameter that does not exist.

    For ``within`` seconds each is asked for again while AWS is busy, or cannot be reached yet.
    """
    origins = sorted({one.origin for one in asked})
    paths = [name.removeprefix(SSM) for name in origins if name.startswith(SSM) and name.endswith("/")]
    names = [name.removeprefix(SSM) for name in origins if name.startswith(SSM) and not name.endswith("/")]
    managed = sorted({name.removeprefix(MANAGER).partition("#")[0] for name in origins if name.startswith(MANAGER)})
    store = Store()
    for path in paths:
        found = _patiently(machine, within, partial(aws.parameters_below, path, region))
        store.paths[path] = _concealed(found)
    if names:
        store.parameters = _concealed(_patiently(machine, within, partial(aws.parameters, names, region)))
    for secret in managed:
        store.secrets[secret] = Concealed(_patiently(machine, within, partial(aws.secret, secret, region)))
    return store


def variables(store: Store, asked: Sequence[Asked]) -> dict[str, Secret]:
    """What a service gets of what was fetched; of two with one name, the later. Raises BootagentError, by name."""
    found: dict[str, Secret] = {}
    for one in asked:
        for name, secret in _variables(store, one).items():
            if not _VARIABLE.fullmatch(name):
                raise BootagentError(
                    f"{secret.origin} cannot be a variable: {name[:80]!r} is no name for one",
                    remedy='rename it, or give it a name in the configuration: { name = "…", from = "…" }',
                )
            values.require(name, secret.value.reveal(), secret.origin)
            found[name] = secret
    return found


def _variables(store: Store, asked: Asked) -> dict[str, Secret]:
    if asked.is_path:
        return _below_path(store, asked)
    if asked.origin.startswith(SSM):
        value = store.parameters[asked.origin.removeprefix(SSM)]
        return {asked.own_name or "": Secret(value, asked.origin)}
    secret, _, key = asked.origin.removeprefix(MANAGER).partition("#")
    text = store.secrets[secret]
    if asked.name and not key:  # a secret that is one text
        return {asked.name: Secret(text, asked.origin)}
    of_keys = _object(text, f"{MANAGER}{secret}", only=key or None)
    if not key:
        return {name: Secret(value, f"{asked.origin}#{name}") for name, value in of_keys.items()}
    if key not in of_keys:
        raise BootagentError(f"secret {secret} has no key {key!r}", remedy=f"correct {asked.origin}")
    return {asked.name or key: Secret(of_keys[key], asked.origin)}


def _below_path(store: Store, asked: Asked) -> dict[str, Secret]:
    if asked.name:
        raise BootagentError(
            f"{asked.origin} stands for many parameters, and cannot be the one variable {asked.name}",
            remedy="name a parameter without a slash at its end",
        )
    below = store.paths[asked.origin.removeprefix(SSM)]
    if not below:
        raise BootagentError(f"there is no parameter below {asked.origin}", remedy="correct it, or put one there")
    found: dict[str, Secret] = {}
    for full, value in below.items():
        name = parameter_variable(full)
        if name in found:
            raise BootagentError(f"{found[name].origin} and {SSM}{full} would both be the variable {name}")
        found[name] = Secret(value, f"{SSM}{full}")
    return found


def _object(text: Concealed, shown: str, *, only: str | None) -> dict[str, Concealed]:
    """The texts of a secret that is a JSON object; of ``only`` one when it is named, whatever the others are."""
    try:
        # Numbers as they are written: 1.10 is not 1.1.
        found: Any = json.loads(text.reveal(), parse_int=str, parse_float=str)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BootagentError(
            f"{shown} is no JSON object",
            remedy='give a secret that is one text a name in the configuration: { name = "…", from = "…" }',
        )
    chosen = found if only is None else {name: value for name, value in found.items() if name == only}
    if odd := [name for name, value in chosen.items() if not isinstance(value, str)]:
        raise BootagentError(f"{odd[0][:80]!r} of {shown} is neither text nor number")
    return {name: Concealed(value) for name, value in chosen.items()}


def _concealed(found: Mapping[str, str]) -> dict[str, Concealed]:
    return {name: Concealed(value) for name, value in sorted(found.items())}


def _patiently(machine: Machine, within: float, ask: Callable[[], T]) -> T:
    deadline, told = time.monotonic() + within, False
    while True:
        try:
            return ask()
        except AwsError as error:
            if not aws.may_pass(error) or time.monotonic() >= deadline:
                raise
            if aws.is_early(error):
                aws.forget_clients()
            if not told:
                machine.tell(Note("waiting for AWS to give secrets", {"why": error.sentence}))
                told = True
        time.sleep(PAUSE_SECONDS)
