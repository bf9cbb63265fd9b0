"""The script root's runsv runs for a service: it waits for what must be there, drops to the user, and starts his runsv.

    #!/bin/sh
    until …; do sleep 0.5; done             for each mountpoint, and for the secrets
    while …; do sleep 0.5; done             for its turn, but not for ever
    echo … >/sys/fs/cgroup/…                the control group
    exec env -i … chpst -e … -u … runsv …

An environment that the release or Parameter Store has a say in must not be root's for a moment: with LD_PRELOAD or
PATH in it, root would run whatever they name. So there is one chpst, which reads one directory, drops to the user, and
only then looks for a program. Where there are secrets, they and the rest, which goes over them, are first put together
in one: that is what nested calls of ``chpst -e`` would come to.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from bootagent.machine import MINIMAL_ENVIRONMENT, Identity, Machine
from bootagent.services import boot_order, cgroups
from bootagent.services.servicefiles import Confinement

#: Where the firmware of a Nitro instance shows its id; others show nothing of the kind. An image made of an instance
#: carries its services along: they must not start as those of the old instance before the new one knows its tags.
HARDWARE_ID = "/sys/class/dmi/id/board_asset_tag"
_INSTANCE_ID = re.compile(r"i-[0-9a-f]+")
#: Where an environment with secrets is put together: a tmpfs.
TOGETHER = "/run/bootagent/env"


@dataclass(frozen=True)
class RunScript:
    """What it says. ``directory`` is root's service directory, with ``env/`` in it; ``secrets`` lie elsewhere.

    ``confinement`` is what the service asks for later, when it is no longer root's.
    """

    name: str
    directory: str
    identity: Identity | None
    needs: tuple[str, ...]
    secrets: str | None
    cgroup: cgroups.Limits | None
    confinement: Confinement

    def text(self, machine: Machine) -> bytes:
        """The script."""
        return "\n".join(
            [
                "#!/bin/sh",
                f"# Made by bootagent for {self.name}; changes are overwritten.",
                f"export PATH={MINIMAL_ENVIRONMENT['PATH']}",
                *_only_here(machine),
                *self._waits(machine),
                *boot_order.lines(machine, self.name, self.directory),
                *(cgroups.lines(machine, self.name, self.cgroup) if self.cgroup else ()),
                *self.confinement.raising(),
                *self._together(machine),
                self._start(machine),
                "",
            ]
        ).encode()

    def _waits(self, machine: Machine) -> list[str]:
        waits = []
        for point in self.needs:
            # The table is asked, not the mountpoint: a dead server would hang whoever does.
            shown = shlex.quote(f" {_as_in_table(str(machine.real(point)))} ")
            waits.append(f"until grep -qsF {shown} /proc/self/mounts; do sleep 0.5; done")
        if self.secrets:
            waits.append(f"until [ -d {shlex.quote(str(machine.real(self.secrets)))} ]; do sleep 0.5; done")
        return waits

    def _together(self, machine: Machine) -> list[str]:
        if not self.secrets:
            return []
        layers = (str(machine.real(self.secrets)), f"{self.directory}/env")
        target = shlex.quote(self._environment(machine))
        copies = " && ".join(f"cp -R {shlex.quote(layer)}/. {target}" for layer in layers)
        return [f"(umask 077 && rm -rf {target} && mkdir -p {target} && {copies}) || exit 111"]

    def _environment(self, machine: Machine) -> str:
        return str(together(machine, self.name)) if self.secrets else f"{self.directory}/env"

    def _start(self, machine: Machine) -> str:
        words = ["chpst", "-e", self._environment(machine)]
        if self.identity:
            ids = (self.identity.uid, self.identity.gid, *self.identity.groups)
            words += ["-u", ":" + ":".join(map(str, ids))]
        inner = shlex.quote(f"{self.directory}/service")
        # Its place is asked for here: the service's own PATH may lead anywhere, or nowhere.
        return f'exec env -i PATH="$PATH" {shlex.join(words)} "$(command -v runsv)" {inner}'


def together(machine: Machine, name: str) -> Path:
    """Where the environment of a service with secrets is put together; root's, as they are."""
    return machine.real(TOGETHER) / name


def _only_here(machine: Machine) -> list[str]:
    """In an image made of this instance, what is to run is for the agent to say first."""
    instance = hardware_id(machine)
    if not instance:
        return []
    return [
        "# In an image made of this instance, what is to run is for the agent to say first.",
        f"read -r here <{shlex.quote(str(machine.real(HARDWARE_ID)))}",
        f'[ "$here" = {instance} ] || exec sleep infinity',
    ]


def _as_in_table(path: str) -> str:
    """A path as /proc/self/mounts has it: fstab(5)."""
    return "".join(f"\\{ord(char):03o}" if char in " \t\n\\" else char for char in path)


def hardware_id(machine: Machine) -> str | None:
    """The instance id as the firmware has it; None where it has none."""
    try:
        found = machine.real(HARDWARE_ID).read_text(errors="replace").strip()
    except OSError:
        return None
    return found if _INSTANCE_ID.fullmatch(found) else None
