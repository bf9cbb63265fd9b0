"""Where disks are put into a machine that is on, and taken out again: PCIe slots, worked through qemu's monitor.

The monitor speaks QMP (QEMU Machine Protocol): one JSON object per line, answers and events mixed.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

#: How many disks a machine takes besides the one it boots from.
SLOTS = 6
#: How long qemu and the guest's kernel may take to put a disk in, or to give it back.
_SECONDS = 120.0
#: The first slot's address on the root bus: behind all other devices, so that the root disk stays the first NVMe disk.
_FIRST_ADDRESS = 0x10


class Slots:
    """A machine's slots, and the disks in them, which stay while the machine is off.

    Implements the simulated cloud's idea of a host. Each disk is a raw file that the guest sees as an NVMe disk whose
    serial number is the volume's id without its hyphen, as on EC2; the name it gets there is the kernel's business.
    ``monitor`` is the socket of qemu's monitor; ``is_on`` tells whether there is a qemu that serves it.
    """

    def __init__(self, monitor: Path, is_on: Callable[[], bool]) -> None:
        self._monitor = monitor
        self._is_on = is_on
        self._files: dict[str, Path] = {}
        self._taken: dict[str, int] = {}
        self._lock = threading.RLock()

    @property
    def volumes(self) -> list[str]:
        """The ids of the volumes that are in."""
        return sorted(self._files)

    def plug(self, volume_id: str, file: Path, device: str) -> None:
        """Put a disk in. ``device`` is the name EC2 was asked for, which no NVMe disk shows."""
        with self._lock:
            if volume_id in self._files:
                raise ValueError(f"{volume_id} is in already")
            free = [slot for slot in range(SLOTS) if slot not in self._taken.values()]
            if not free:
                raise ValueError(f"all {SLOTS} slots hold disks: {', '.join(self.volumes)}")
            self._files[volume_id], self._taken[volume_id] = file, free[0]
            if monitor := self._opened():
                with monitor:
                    monitor.run("blockdev-add", _node(volume_id, file))
                    monitor.run("device_add", _device(volume_id, free[0]))

    def unplug(self, volume_id: str) -> None:
        """Ask the guest to give a disk back, and wait until it has. Its kernel lets go of mounted ones, too."""
        with self._lock:
            if (monitor := self._opened()) is not None:
                with monitor:
                    monitor.run("device_del", {"id": volume_id})
                    monitor.wait("DEVICE_DELETED", device=volume_id)
                    monitor.run("blockdev-del", {"node-name": volume_id})
            del self._files[volume_id], self._taken[volume_id]

    def resized(self, volume_id: str) -> None:
        """Nothing: qemu's NVMe disks do not grow while they are in. The guest sees it from its next boot on."""

    @contextlib.contextmanager
    def switched(self) -> Iterator[list[str]]:
        """qemu's arguments for the slots and what is in them; nothing is put in or taken out until it has started."""
        with self._lock:
            words = ["-qmp", f"unix:{self._monitor},server=on,wait=off"]
            for slot in range(SLOTS):
                address = f"addr={_FIRST_ADDRESS + slot:#x}"
                words += ["-device", f"pcie-root-port,id={_bus(slot)},chassis={slot + 1},{address}"]
            for volume_id, file in self._files.items():
                words += ["-blockdev", json.dumps(_node(volume_id, file))]
                words += ["-device", json.dumps(_device(volume_id, self._taken[volume_id]))]
            yield words

    def _opened(self) -> _Monitor | None:
        """The monitor, waited for if qemu has only just started; None while the machine is off."""
        deadline = time.monotonic() + _SECONDS
        while self._is_on():
            try:
                return _Monitor(self._monitor, self._is_on)
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)
        return None


class _Monitor:
    """A connection to qemu's monitor; when the machine goes off meanwhile, everything asked for counts as done."""

    def __init__(self, path: Path, is_on: Callable[[], bool]) -> None:
        self._is_on = is_on
        self._socket = socket.socket(socket.AF_UNIX)
        self._events: list[dict[str, Any]] = []
        try:
            self._socket.settimeout(_SECONDS)
            self._socket.connect(str(path))
            self._lines = self._socket.makefile("rb")
            self._lines.readline()  # the greeting
            self.run("qmp_capabilities", {})
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> _Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lines.close()
        self._socket.close()

    def run(self, command: str, arguments: dict[str, Any]) -> None:
        """Run a command to its end. Raises ValueError with qemu's reason."""
        asked = json.dumps({"execute": command, "arguments": arguments})
        with contextlib.suppress(BrokenPipeError):
            self._socket.sendall(asked.encode() + b"\n")
        while (said := self._read()) is not None:
            if "error" in said:
                raise ValueError(f"{command} {arguments}: {said['error']['desc']}")
            if "return" in said:
                return
            self._events.append(said)

    def wait(self, event: str, **data: str) -> None:
        """Wait for an event with these data. Raises TimeoutError."""
        deadline = time.monotonic() + _SECONDS
        while not any(_is(said, event, data) for said in self._events):
            said = self._read()
            if said is None:
                return
            self._events.append(said)
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {event} {data} within {_SECONDS:g} s")

    def _read(self) -> dict[str, Any] | None:
        try:
            line = self._lines.readline()
        except ConnectionResetError:
            line = b""
        if line:
            said: dict[str, Any] = json.loads(line)
            return said
        return None


def _is(said: dict[str, Any], event: str, data: dict[str, str]) -> bool:
    return said.get("event") == event and data.items() <= said.get("data", {}).items()


def _bus(slot: int) -> str:
    return f"slot{slot}"


def _node(volume_id: str, file: Path) -> dict[str, Any]:
    # As for the root disk: the host's disk is not what is tested.
    place = {"driver": "file", "filename": str(file), "cache": {"no-flush": True}, "discard": "unmap"}
    return {"driver": "raw", "node-name": volume_id, "file": place, "discard": "unmap"}


def _device(volume_id: str, slot: int) -> dict[str, Any]:
    serial = volume_id.replace("-", "", 1)
    return {"driver": "nvme", "id": volume_id, "drive": volume_id, "serial": serial, "bus": _bus(slot)}
