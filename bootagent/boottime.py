"""What systemd says about this boot: when the kernel handed over, when the network was up, when the agent began.

Times are seconds on the monotonic clock, which starts with the kernel; org.freedesktop.systemd1(5).
"""

from __future__ import annotations

from dataclasses import dataclass

from bootagent.errors import CommandError
from bootagent.machine import Machine

NETWORK = "network-online.target"
AGENT = "bootagent.service"
ASK_SECONDS = 5.0
_MANAGER = ("Firmware", "Loader", "InitRD", "Userspace", "Finish")


@dataclass(frozen=True)
class Stage:
    """A part of the boot, in seconds since the kernel started; before that they are negative."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Marks:
    """Moments of a boot, in seconds since the kernel started; None: unknown, or not yet.

    ``firmware`` and ``loader`` are how long before the kernel they began.
    """

    firmware: float | None = None
    loader: float | None = None
    initrd: float | None = None
    userspace: float | None = None
    network: float | None = None
    agent: float | None = None
    finish: float | None = None


def ask(machine: Machine) -> Marks:
    """The moments systemd remembers; none where it is not the init."""
    if not machine.real("/run/systemd/system").is_dir():  # sd_booted(3)
        return Marks()
    manager = ",".join(f"{name}TimestampMonotonic" for name in _MANAGER)
    units = "Id,ActiveEnterTimestampMonotonic,ExecMainStartTimestampMonotonic"
    try:
        asked = machine.run(["systemctl", "show", f"--property={manager}"], timeout=ASK_SECONDS).stdout
        asked_units = machine.run(["systemctl", "show", f"--property={units}", NETWORK, AGENT], timeout=ASK_SECONDS)
    except CommandError:  # in a container, say, that has the directory and nobody behind it
        return Marks()
    return parse(asked, asked_units.stdout)


def parse(manager: str, units: str) -> Marks:
    """Read what ``systemctl show`` prints of the manager and of the units, one paragraph each."""
    boot = _properties(manager)
    known = {found.get("Id", ""): found for found in map(_properties, units.split("\n\n"))}
    return Marks(
        firmware=_seconds(boot, "FirmwareTimestampMonotonic"),
        loader=_seconds(boot, "LoaderTimestampMonotonic"),
        initrd=_seconds(boot, "InitRDTimestampMonotonic"),
        userspace=_seconds(boot, "UserspaceTimestampMonotonic"),
        network=_seconds(known.get(NETWORK, {}), "ActiveEnterTimestampMonotonic"),
        agent=_seconds(known.get(AGENT, {}), "ExecMainStartTimestampMonotonic"),
        finish=_seconds(boot, "FinishTimestampMonotonic"),
    )


def stages(marks: Marks, begun: float) -> list[Stage]:
    """The parts of the boot up to ``begun``, when the run began, without a gap; what is unknown is part of the next.

    A unit that was started again since has a later mark, which says nothing about the boot.
    """
    found = []
    if marks.firmware:
        found.append(Stage("firmware", -marks.firmware, -(marks.loader or 0.0)))
    if marks.loader:
        found.append(Stage("boot loader", -marks.loader, 0.0))
    here = 0.0
    for name, until in (
        ("kernel", marks.initrd),
        ("initrd" if marks.initrd else "kernel", marks.userspace),
        ("systemd, until the network is up", marks.network),
        ("systemd, until it is the agent's turn", marks.agent),
        (_last(marks, begun), begun),
    ):
        if until is not None and here <= until <= begun:
            found.append(Stage(name, here, until))
            here = until
    return found


def _last(marks: Marks, begun: float) -> str:
    if marks.agent is not None and marks.agent <= begun:
        return "the agent starts"
    return "systemd, until the agent's run" if marks.userspace else "kernel and init"


def _properties(text: str) -> dict[str, str]:
    return {key: value for key, equals, value in (line.partition("=") for line in text.splitlines()) if equals}


def _seconds(properties: dict[str, str], name: str) -> float | None:
    """Microseconds as seconds; 0 is systemd's word for never."""
    value = properties.get(name, "")
    return int(value) / 1e6 if value.isdecimal() and int(value) else None
