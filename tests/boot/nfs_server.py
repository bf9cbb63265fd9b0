"""A real NFS server in user space, nfs-ganesha, on a loopback port of the host; the guest reaches it at 10.0.2.2."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

#: The host's loopback, as the guest's network shows it.
ADDRESS = "10.0.2.2"
_READY = "NFS SERVER INITIALIZED"
_START_SECONDS = 60.0
#: A short grace lets a server that comes back serve soon; a lease of some length bears with an emulated client.
#: Attributes are not kept, because the tests change the files on the host, and the server does not hear of it.
_CONFIG = """\
NFS_CORE_PARAM {{
    NFS_Port = {port}; Bind_addr = 127.0.0.1; NFS_Protocols = 4;
    Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false;
}}
NFSV4 {{
    Minor_Versions = 1, 2; Only_Numeric_Owners = true; Grace_Period = 5; Lease_Lifetime = 30;
    RecoveryBackend = fs; RecoveryRoot = {recovery};
}}
LOG {{ Default_Log_Level = EVENT; }}
"""
_EXPORT = """\
EXPORT {{
    Export_Id = {number}; Path = {directory}; Pseudo = {path}; Access_Type = {access}; Squash = Root_Squash;
    SecType = sys; Protocols = 4; Transports = TCP; Attr_Expiration_Time = 0; FSAL {{ Name = VFS; }}
}}
"""


@dataclass(frozen=True)
class Export:
    """A directory that clients mount as ``path``, read-only unless said; their root is nobody in it."""

    path: str
    directory: Path
    writable: bool = False


class NfsServer:
    """An NFS 4.1 and 4.2 server; a context manager. ``directory`` is for what it keeps itself, and its log.

    Stopped and started again it has the same port; its clients' mounts go on.
    """

    def __init__(self, directory: Path, exports: Sequence[Export]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._directory = directory
        self._exports = exports
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> NfsServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it serves."""
        assert self._process is None, "it runs"
        recovery, config, log = (self._directory / name for name in ("recovery", "ganesha.conf", "ganesha.log"))
        recovery.mkdir(parents=True, exist_ok=True)
        config.write_text(self._config(recovery))
        log.unlink(missing_ok=True)
        argv = ["setpriv", "--pdeathsig", "KILL", "ganesha.nfsd", "-F", "-f", str(config), "-L", str(log)]
        self._process = subprocess.Popen(
            [*argv, "-p", str(self._directory / "ganesha.pid")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Of the host's bus only one of several could have the name that it asks for.
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"},
        )
        deadline = time.monotonic() + _START_SECONDS
        while _READY not in (said := log.read_text() if log.exists() else ""):
            assert self._process.poll() is None, f"the NFS server ended:\n{said}"
            assert time.monotonic() < deadline, f"the NFS server does not serve:\n{said}"
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill it, as a server that loses its power: whoever is served waits."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _config(self, recovery: Path) -> str:
        exports = [
            _EXPORT.format(
                number=number, directory=export.directory, path=export.path, access="RW" if export.writable else "RO"
            )
            for number, export in enumerate(self._exports, 1)
        ]
        return "".join([_CONFIG.format(port=self.port, recovery=recovery), *exports])
