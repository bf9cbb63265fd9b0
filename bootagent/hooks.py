"""Hooks: one command of the app, run as its user in a release, with a minimal environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bootagent.errors import BootagentError
from bootagent.machine import Identity, Machine, writable_by_others


def run(
    machine: Machine,
    command: Sequence[str],
    release: Path,
    *,
    identity: Identity | None,
    env: Mapping[str, str],
    within: float,
) -> str:
    """Run a hook in the real directory ``release``; what it printed.

    Raises CommandError with the end of its output; BootagentError for a program of the image that others could change.
    """
    # Should this run be killed, the next must not find the hook still at work.
    argv = ["setpriv", "--pdeathsig", "KILL", "--", _program(machine, command[0], release), *command[1:]]
    return machine.run(argv, timeout=within, identity=identity, cwd=release, env=env).stdout


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
