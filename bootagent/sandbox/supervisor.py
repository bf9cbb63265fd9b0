"""A real runsvdir for the simulated machine, of which nothing stays behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import bootagent
from bootagent.errors import BootagentError, CommandError
from bootagent.machine import MINIMAL_ENVIRONMENT
from bootagent.sandbox.init import STOP_SECONDS, TERM_SECONDS

#: For a Python of ours to find this very package: an editable install loses to a directory of the same name, such as
#: a checkout, in the working directory.
PYTHONPATH = str(Path(bootagent.__file__).parent.parent)

_PROGRAMS = ("runsvdir", "runsv", "svlogd", "sv")


class Supervisor:
    """runsvdir on one directory of services, under a stand-in for init; a context manager.

    What runsvdir complains of is appended to ``log``.
    """

    def __init__(self, directory: Path, *, log: Path) -> None:
        self._directory = directory
        self._log = log
        self._init: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; raises BootagentError when runit is not installed."""
        missing = [name for name in _PROGRAMS if not shutil.which(name, path=MINIMAL_ENVIRONMENT["PATH"])]
        if missing:
            raise BootagentError(f"{', '.join(missing)} not found", remedy="install runit")
        self._directory.mkdir(parents=True, exist_ok=True)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._init = subprocess.Popen(
                [sys.executable, "-m", "bootagent.sandbox.init", self._directory],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**MINIMAL_ENVIRONMENT, "PYTHONPATH": PYTHONPATH},
                start_new_session=True,
            )

    def stop(self) -> None:
        """Stop every service and the supervisor; on return none of their processes is left.

        Raises CommandError when even a KILL did not end them.
        """
        if self._init is None:
            return
        init, self._init = self._init, None
        assert init.stdin is not None
        init.stdin.close()
        try:
            init.wait(STOP_SECONDS + TERM_SECONDS + 10)
        except subprocess.TimeoutExpired:
            raise CommandError(f"the services of {self._directory} outlive a KILL") from None

    @property
    def pid(self) -> int:
        """The process all services descend from."""
        assert self._init is not None
        return self._init.pid

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
