"""Hooks: one command of the app, run as its user in a release, which finds in its environment what services find."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootagent.environment import directories, secrets
from bootagent.environment.concealed import Concealed, redacted
from bootagent.environment.directories import Tree
from bootagent.errors import BootagentError, CommandError
from bootagent.machine import TAIL_BYTES, Identity, Machine, writable_by_others


@dataclass(frozen=True)
class Given:
    """Where a hook's environment is: what all services of ``app`` have of its ``tree``, and the app's own ``secrets``.

    ``secrets`` is a directory, as :func:`bootagent.environment.secrets.place` has it. None: there are none.
    """

    app: str
    tree: Tree | None
    secrets: str | None


@dataclass(frozen=True)
class Variables:
    """What a hook is given: those of the tree, None for one that it is not to have, and secrets over them."""

    plain: Mapping[str, str | None]
    hidden: Mapping[str, Concealed]


NOTHING = Variables({}, {})


def variables(machine: Machine, given: Given) -> Variables:
    """The variables a hook is to find. Raises BootagentError for a tree that is none, MachineError without secrets."""
    tree = directories.read(machine, given.tree, given.app, None) if given.tree else ()
    return Variables(directories.merged(tree), secrets.require(machine, given.secrets) if given.secrets else {})


def run(
    machine: Machine,
    command: Sequence[str],
    release: Path,
    *,
    identity: Identity | None,
    given: Variables,
    env: Mapping[str, str],
    within: float,
) -> str:
    """Run a hook in the real directory ``release``; what it printed, without the secrets. ``env`` goes over the rest.

    Raises CommandError with the end of its output; BootagentError for a program of the image that others could change.
    """
    hidden = list(given.hidden.values())
    # Should this run be killed, the next must not find the hook still at work.
    argv = ["setpriv", "--pdeathsig", "KILL", "--", _program(machine, command[0], release), *command[1:]]
    found = {**given.plain, **{name: value.reveal() for name, value in given.hidden.items()}, **env}
    try:
        shown = shlex.join(command)
        printed = machine.run(argv, timeout=within, identity=identity, cwd=release, env=found, shown=shown).stdout
    except CommandError as error:
        error.tail = _redacted(error.tail, hidden)
        raise
    return _redacted(printed, hidden)


def _redacted(printed: str, hidden: Sequence[Concealed]) -> str:
    return redacted(printed, hidden, cut=len(printed) >= TAIL_BYTES)


def _program(machine: Machine, named: str, release: Path) -> str:
    """What the first word names: a program of the image, which nobody else may write, or the release's own."""
    if not named.startswith("/"):
        return str(release / named) if "/" in named else named
    real = machine.real(named)
    if not real.exists():
        return named
    if why := writable_by_others(real):
        raise BootagentError(f"hook {named} is refused: {why}", remedy="chown root, chmod go-w")
    return str(real)
