"""The processes a bundle flows through: an optional decompressor, then the unpacker, both as the app's user."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from bootagent.errors import BundleError, CommandError
from bootagent.machine import Identity, Machine
from bootagent.pull.unpack import EXIT_CUT_OFF, EXIT_DAMAGED, EXIT_REFUSED

#: Bytes a pipe may hold (Linux's default is 64 KiB, /proc/sys/fs/pipe-max-size bounds it): fewer switches.
PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ, of Linux; mypy knows it from 3.10 on only there


class Unreadable(Exception):
    """The processes ended before their input did; :meth:`Pipeline.finish` knows why."""


class Pipeline:
    """Feeds an archive to the processes that unpack it into a directory.

    ``command`` decompresses as ``identity``, ``program`` (of ``program.py``) unpacks. ``archive``, when given, is a
    seekable descriptor to unpack from instead of what is written. ``name`` is the bundle's for the errors, ``deadline``
    is in seconds on the monotonic clock. Leaving the context ends whatever still runs.
    """

    def __init__(
        self,
        machine: Machine,
        into: Path,
        *,
        command: tuple[str, ...] | None,
        program: list[str],
        identity: Identity | None,
        name: str,
        deadline: float,
        archive: int | None = None,
    ) -> None:
        self._machine = machine
        self._into = into
        self._command = command
        self._program = program
        self._identity = identity
        self._name = name
        self._deadline = deadline
        self._archive = archive
        self._input = -1
        self._decompressor: subprocess.Popen[bytes] | None = None
        self._unpacker: subprocess.Popen[bytes] | None = None
        self._said = [os.fdopen(os.memfd_create(label), "w+b") for label in ("report", "unpacker", "decompressor")]

    def __enter__(self) -> Pipeline:
        try:
            if self._archive is None:
                stdin, self._input = _pipe()
                self._start_unpacker(stdin)
                if self._command:
                    self._start_decompressor(self._command)
                os.set_blocking(self._input, False)  # so that a stuck disk cannot outlast the deadline
            else:
                self._start_unpacker(os.dup(self._archive))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_input()
        for process in (self._decompressor, self._unpacker):
            if process and process.poll() is None:
                process.kill()
        for process in (self._decompressor, self._unpacker):
            if process:
                with contextlib.suppress(subprocess.TimeoutExpired):  # in an uninterruptible wait for a dead disk
                    process.wait(5)
        for file in self._said:
            file.close()

    def write(self, data: memoryview) -> None:
        """Hand on the next bytes. Raises Unreadable when nobody takes them, BundleError when the deadline passes."""
        poll = select.poll()
        poll.register(self._input, select.POLLOUT)
        while data:
            try:
                data = data[os.write(self._input, data) :]
            except BlockingIOError:
                if not poll.poll(self._left() * 1000):
                    raise self._late() from None
            except BrokenPipeError:
                raise Unreadable from None

    def finish(self) -> tuple[int, int]:
        """Say that there is no more and wait; returns how many members and bytes were unpacked.

        Raises BundleError with what the unpacker refused, or what is wrong with the archive.
        """
        self._close_input()
        unpacker = self._wait(self._unpacker)
        decompressor = self._wait(self._decompressor) if self._decompressor else 0
        report, complaint, trouble = (_content(file) for file in self._said)
        if unpacker == EXIT_REFUSED:
            raise BundleError(f"{self._name} is refused: {complaint}", remedy="publish a bundle without it")
        if decompressor != 0 and unpacker in (0, EXIT_CUT_OFF):  # otherwise it only had nobody to write to
            tool = self._command[0] if self._command else ""
            raise BundleError(f"{self._name} is damaged: {trouble or f'{tool} failed ({decompressor})'}")
        if unpacker in (EXIT_DAMAGED, EXIT_CUT_OFF):
            raise BundleError(f"{self._name} cannot be unpacked: {complaint}", remedy="publish it again")
        if unpacker != 0:
            raise BundleError(f"{self._name} could not be unpacked into {self._into}: {complaint or f'({unpacker})'}")
        found: Any = json.loads(report)
        return found["files"], found["size"]

    def refused(self) -> bool:
        """Whether the unpacker ended for a reason that has nothing to do with the bytes being damaged."""
        return self._wait(self._unpacker) not in (0, EXIT_DAMAGED, EXIT_CUT_OFF)

    def _start_unpacker(self, stdin: int) -> None:
        try:
            self._unpacker = self._machine.start(
                self._program,
                stdin=stdin,
                stdout=self._said[0],
                stderr=self._said[1],
                cwd=self._into,
            )
        except CommandError as error:  # without its sentence, which shows the whole program
            raise BundleError(f"cannot start {self._program[0]} in {self._into}: {error.__cause__}") from None
        finally:
            os.close(stdin)

    def _start_decompressor(self, command: tuple[str, ...]) -> None:
        output = self._input
        stdin, self._input = _pipe()
        try:
            self._decompressor = self._machine.start(
                command, stdin=stdin, stdout=output, stderr=self._said[2], identity=self._identity
            )
        finally:
            os.close(stdin)
            os.close(output)

    def _close_input(self) -> None:
        if self._input >= 0:
            os.close(self._input)
            self._input = -1

    def _wait(self, process: subprocess.Popen[bytes] | None) -> int:
        assert process is not None
        try:
            return process.wait(self._left())
        except subprocess.TimeoutExpired:
            raise self._late() from None

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _late(self) -> BundleError:
        return BundleError(f"{self._name} was not unpacked into {self._into} in time", remedy="is the disk too slow?")


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    with contextlib.suppress(OSError):  # an unprivileged user has a quota of pipe memory, pipe(7)
        fcntl.fcntl(writer, _F_SETPIPE_SZ, PIPE_BYTES)
    return reader, writer


def _content(file: Any) -> str:
    """The last line a process wrote: a traceback has its sentence there too."""
    file.seek(0)
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
