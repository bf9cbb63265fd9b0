"""What systemd says about a boot, as ``systemctl show`` prints it, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootagent import boottime
from bootagent.boottime import Marks, Stage
from bootagent.machine import Machine

#: As printed on a machine with UEFI firmware and systemd in its initrd.
MANAGER = """\
FirmwareTimestampMonotonic=2400000
LoaderTimestampMonotonic=900000
InitRDTimestampMonotonic=2100000
UserspaceTimestampMonotonic=4600000
FinishTimestampMonotonic=10400000
"""
UNITS = """\
Id=network-online.target
ActiveEnterTimestampMonotonic=8900000

ExecMainStartTimestampMonotonic=9300000
Id=bootagent.service
ActiveEnterTimestampMonotonic=9700000
"""
FULL = Marks(firmware=2.4, loader=0.9, initrd=2.1, userspace=4.6, network=8.9, agent=9.3, finish=10.4)


def test_what_systemctl_prints_is_read() -> None:
    assert boottime.parse(MANAGER, UNITS) == FULL


def test_nought_is_never_and_what_is_missing_unknown() -> None:
    assert (
        boottime.parse("FirmwareTimestampMonotonic=0\nFinishTimestampMonotonic=\n", "Id=bootagent.service\n") == Marks()
    )


@pytest.mark.parametrize(
    ("marks", "begun", "stages"),
    [
        (
            FULL,
            9.8,
            [
                Stage("firmware", -2.4, -0.9),
                Stage("boot loader", -0.9, 0.0),
                Stage("kernel", 0.0, 2.1),
                Stage("initrd", 2.1, 4.6),
                Stage("systemd, until the network is up", 4.6, 8.9),
                Stage("systemd, until it is the agent's turn", 8.9, 9.3),
                Stage("the agent starts", 9.3, 9.8),
            ],
        ),
        # A cloud's usual machine: no such firmware, no systemd in the initrd.
        (
            Marks(userspace=3.0, network=6.0, agent=6.5),
            7.0,
            [
                Stage("kernel", 0.0, 3.0),
                Stage("systemd, until the network is up", 3.0, 6.0),
                Stage("systemd, until it is the agent's turn", 6.0, 6.5),
                Stage("the agent starts", 6.5, 7.0),
            ],
        ),
        # The agent was restarted since, and the network came late: their marks are not this boot's way.
        (
            Marks(userspace=3.0, network=500.0, agent=600.0),
            7.0,
            [Stage("kernel", 0.0, 3.0), Stage("systemd, until the agent's run", 3.0, 7.0)],
        ),
        (Marks(), 7.0, [Stage("kernel and init", 0.0, 7.0)]),
    ],
)
def test_stages_lead_from_the_kernel_to_the_run_without_a_gap(marks: Marks, begun: float, stages: list[Stage]) -> None:
    assert boottime.stages(marks, begun) == stages


def test_nobody_is_asked_where_systemd_is_not_the_init(tmp_path: Path) -> None:
    assert boottime.ask(Machine(tmp_path)) == Marks()


@pytest.mark.spawns
@pytest.mark.parametrize(("ending", "marks"), [("exit 0", FULL), ("exit 1", Marks())])
def test_systemd_is_asked_where_it_is_and_its_failure_is_nobodys(
    ending: str, marks: Marks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (tmp_path / "manager").write_text(MANAGER)
    (tmp_path / "units").write_text(UNITS)
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        '#!/bin/sh\n[ "$1" = show ] || exit 2\n'
        f'case "$*" in *" network-online.target bootagent.service") cat {tmp_path}/units ;;\n'
        f"*) cat {tmp_path}/manager ;; esac\n{ending}\n"
    )
    systemctl.chmod(0o755)
    monkeypatch.setattr("bootagent.machine.MINIMAL_ENVIRONMENT", {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert boottime.ask(Machine(tmp_path)) == marks
