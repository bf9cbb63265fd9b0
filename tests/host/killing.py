"""Runs of the agent that are killed on the way, at any one of the things they do."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from bootagent.sandbox.cloud import Cloud
from tests.conftest import agent_argv

#: Runs the command line, and kills itself (SIGKILL) at the Nth thing it is about to do.
DRIVER = """
import os, signal, sys
from bootagent import cli, journal, machine
from bootagent.ebs import patience
left = int(sys.argv.pop(1))
def counted(owner, name):
    real = getattr(owner, name)
    def count(self, *words, **fields):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *words, **fields)
    setattr(owner, name, count)
counted(journal.Journal, "record")
counted(machine.Machine, "run")
counted(machine.Machine, "write")
counted(machine.Machine, "delete")
counted(patience.Patience, "call")
sys.exit(cli.main())
"""


def killed_at(cloud: Cloud, root: Path, number: int, command: str = "reconfigure") -> bool:
    """Run a command on a machine's root until it is about to do its Nth thing; False when it came to its end before."""
    argv = [sys.executable, "-c", DRIVER, str(number), *agent_argv(root, command)[3:]]
    done = subprocess.run(argv, env=cloud.process_environment(), capture_output=True, check=False, timeout=120)
    return done.returncode == -signal.SIGKILL
