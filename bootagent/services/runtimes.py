"""Version managers of language runtimes: asdf and mise, by their shims.

A shim is a program of the name of the real one, in DATA/shims, that chooses a version by the files ``.tool-versions``
(mise also: ``mise.toml``) of the working directory and those above it. asdf's are scripts that run ``asdf exec``, so
that asdf itself must be on the PATH: since 0.16 it is one binary, put anywhere, and before that DATA/bin/asdf. mise's
are links to its binary. See asdf-vm.com/manage/configuration and mise.jdx.dev/dev-tools/shims.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bootagent import beneath
from bootagent.errors import BootagentError, CommandError, MachineError
from bootagent.machine import MINIMAL_ENVIRONMENT, Identity, Machine, login_environment, writable_by_others

Kind = Literal["auto", "asdf", "mise", "none"]
LOOK_SECONDS = 20.0
#: What both managers read.
VERSIONS = ".tool-versions"
#: The directories of a manager's data with what is run by way of a shim.
_LED_TO = ("shims", "bin", "installs", "plugins")


@dataclass(frozen=True)
class _Manager:
    """``variable`` names its data directory, which is ``own`` in the user's home, or one of ``shared``."""

    name: str
    variable: str
    own: str
    shared: tuple[str, ...]
    files: tuple[str, ...]


_MANAGERS = (
    _Manager(
        name="asdf",
        variable="ASDF_DATA_DIR",
        own=".asdf",
        shared=("/opt/asdf", "/usr/local/asdf", "/usr/local/share/asdf"),
        files=(VERSIONS,),
    ),
    _Manager(
        name="mise",
        variable="MISE_DATA_DIR",
        own=".local/share/mise",
        shared=("/usr/local/share/mise", "/opt/mise"),
        files=(VERSIONS, "mise.toml", ".mise.toml"),
    ),
)


@dataclass(frozen=True)
class Shims:
    """What a service's environment needs to find its runtime: directories that go first in PATH, and variables."""

    path: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]

    def over(self, environment: Mapping[str, str | None]) -> dict[str, str]:
        """The variables to set in an environment; what it says itself of the manager stays."""
        said = {name: environment.get(name) or value for name, value in self.variables}
        return {**said, "PATH": ":".join((*self.path, environment.get("PATH") or MINIMAL_ENVIRONMENT["PATH"]))}


def find(
    machine: Machine, kind: Kind, places: tuple[Path, ...], *, identity: Identity | None, env: Mapping[str, str | None]
) -> Shims | None:
    """The shims for a service that finds its ``.tool-versions`` in one of ``places``; None: it needs none.

    ``env`` may say where a manager keeps its data. Raises MachineError when the manager asked for is not there, or
    is not for root to run, and MachineError when the places do not answer.
    """
    for manager in _MANAGERS:
        if kind not in ("auto", manager.name):
            continue
        looked = _data_directories(machine, manager, identity, env)
        data = next((place for place in looked if _has_shims(place)), None)
        if data is None:
            if kind == manager.name:
                raise MachineError(
                    f"runtime is {kind!r}, and there is no shims/ in {', '.join(map(str, looked))}",
                    remedy=f"install {kind} in the image, or say {manager.variable} in env",
                )
        elif kind == manager.name or _is_used(machine, manager, places, identity):
            _check_trust(manager, data, identity)
            return _shims(manager, data, places)
    return None


def _data_directories(
    machine: Machine, manager: _Manager, identity: Identity | None, env: Mapping[str, str | None]
) -> list[Path]:
    if said := env.get(manager.variable):
        return [Path(said)]
    home = Path(login_environment(identity)["HOME"])  # as the service itself has it
    return [home / manager.own, *(machine.real(place) for place in manager.shared)]


def _has_shims(data: Path) -> bool:
    with contextlib.suppress(OSError, BootagentError), beneath.directory(data, "shims"):
        return True
    return False


def _is_used(machine: Machine, manager: _Manager, places: tuple[Path, ...], identity: Identity | None) -> bool:
    """Asked by a child, as the user: what is looked into may be on a dead NFS server, and is not ours."""
    try:
        return any(
            machine.run(["test", "-e", place / file], timeout=LOOK_SECONDS, identity=identity, check=False).returncode
            == 0
            for place in places
            for file in manager.files
        )
    except CommandError as error:
        raise MachineError(f"cannot look for {manager.files[0]}: {error.sentence}") from error


def _check_trust(manager: _Manager, data: Path, identity: Identity | None) -> None:
    """Only root's own programs are run as root: each shim, what stands beside it, and what that leads to."""
    if identity is not None or os.geteuid() != 0:
        return
    tops = [data / name for name in _LED_TO if (data / name).exists()]
    program = data / "bin" / manager.name
    for path in (*tops, *sorted((data / "shims").iterdir()), *([program] if program.exists() else ())):
        if why := _why_not(path):
            raise MachineError(
                f"a service of root cannot use the shims in {data}: {why}",
                remedy='give it a user, say runtime = "none", or chown them to root',
            )


def _why_not(path: Path) -> str | None:
    try:
        return writable_by_others(path)
    except OSError as error:  # a link that leads nowhere: who makes what it names is not known
        return f"{path}: {error.strerror}"


def _shims(manager: _Manager, data: Path, places: tuple[Path, ...]) -> Shims:
    variables = [(manager.variable, str(data))]
    if manager.name == "mise":
        # It refuses a mise.toml nobody has vouched for. Whoever runs the release's programs can as well read that.
        variables.append(("MISE_TRUSTED_CONFIG_PATHS", ":".join(map(str, places))))
    path = [data / "shims"]
    if (data / "bin" / manager.name).exists():
        path.append(data / "bin")
    return Shims(tuple(map(str, path)), tuple(variables))
