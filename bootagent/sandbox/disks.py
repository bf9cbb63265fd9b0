"""The disks of the simulated cloud: volumes whose content is real, and that really come to a machine.

    with Disks(cloud, LoopHost(root), directory) as disks:
        snapshot = disks.snapshot_of(Path("app"), tags={"App": "web"})

From then on the cloud's API answers for volumes and snapshots through :class:`~bootagent.sandbox.ebs_api.EbsApi`.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType

from bootagent.errors import BootagentError
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.ebs import Ebs
from bootagent.sandbox.ebs_api import EbsApi
from bootagent.sandbox.ebs_model import ACCOUNT, GIB, Faults, Snapshot, Timing, Volume
from bootagent.sandbox.loop_host import Host, LoopHost

MIB = 1024**2
_MAKERS = {"xfs": ("mkfs.xfs", "-q"), "ext4": ("mkfs.ext4", "-q")}
_PROGRAM_SECONDS = 120.0


class Disks(AbstractContextManager["Disks"]):
    """EBS for a running cloud, with the cloud's instance on ``host``; ``directory`` holds the contents.

    At the end its loop hosts are closed, too, and what has failed in the background is raised.
    """

    def __init__(self, cloud: Cloud, host: Host, directory: Path) -> None:
        self._cloud = cloud
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        zones = tuple(f"{cloud.region}{letter}" for letter in "abc")
        self._ebs = Ebs(directory, zones)
        self.add_machine(cloud, host)

    def __enter__(self) -> Disks:
        self._ebs.changes.agenda.start()
        self._cloud.api.override("ec2", EbsApi(self._ebs))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cloud.api.override("ec2", None)
        self._ebs.changes.agenda.close()
        for instance in self._ebs.instances.values():
            if isinstance(instance.host, LoopHost):
                instance.host.close()
        if self._ebs.changes.agenda.problems and error is None:
            raise self._ebs.changes.agenda.problems[0]

    # --- setting it up ---------------------------------------------------------------------------------------

    @property
    def timing(self) -> Timing:
        """How long changes take; to be set."""
        return self._ebs.timing

    @property
    def faults(self) -> Faults:
        """What is wrong; to be set."""
        return self._ebs.faults

    def add_machine(self, cloud: Cloud, host: Host) -> None:
        """Another instance, of a cloud ``beside`` the first, that shares the volumes."""
        self._ebs.add_instance(cloud.instance.instance_id, cloud.instance.zone, host)

    def terminate_instance(self, cloud: Cloud | None = None) -> None:
        """Terminate the instance of a cloud, the first by default.

        Its volumes leave it, and are deleted where DeleteOnTermination says so; that takes a moment, and processes
        on a loop host that still use them hold it up.
        """
        cloud = cloud or self._cloud
        instance_id = cloud.instance.instance_id
        host = self._ebs.instances[instance_id].host
        if isinstance(host, LoopHost):
            host.halt()
        cloud.api.ec2(cloud.region).terminate_instances(InstanceIds=[instance_id])

    # --- snapshots -------------------------------------------------------------------------------------------

    def snapshot_of(
        self,
        directory: Path,
        *,
        tags: Mapping[str, str],
        filesystem: str = "xfs",
        size_mib: int = 1024,
        description: str = "",
        owner: str = ACCOUNT,
        started: datetime | None = None,
    ) -> str:
        """A completed snapshot whose filesystem, xfs or ext4, holds a copy of a directory, ownership kept; its id.

        The volume's size is ``size_mib`` (xfs needs 300), rounded up to whole GiB as EBS has it; the filesystem
        does not fill it then. For root alone.
        """
        size = -(-size_mib * MIB // GIB)
        snapshot = self._ebs.new_snapshot("vol-ffffffff", size, description, tags)
        with snapshot.file.open("wb") as file:
            file.truncate(size_mib * MIB)
        _run(*_MAKERS[filesystem], str(snapshot.file))
        _fill(snapshot.file, directory)
        with snapshot.file.open("r+b") as file:
            file.truncate(size * GIB)
        snapshot.owner = owner
        snapshot.started = started or snapshot.started
        self._ebs.changes.finish_snapshot(snapshot, "completed")
        self._ebs.add_snapshot(snapshot)
        return snapshot.id

    def complete(self, snapshot_id: str, *, state: str = "completed") -> None:
        """Let a snapshot that is held pending be completed, or turn ``error``."""
        self._ebs.changes.finish_snapshot(self._ebs.snapshots[snapshot_id], state)

    def hold(self, snapshot_id: str, user: str = "ami-0123456789abcdef0") -> None:
        """Let a snapshot be in use by an image: it cannot be deleted."""
        self._ebs.snapshots[snapshot_id].used_by = user

    def release(self, snapshot_id: str) -> None:
        """Let a snapshot that was in use be in use no more."""
        self._ebs.snapshots[snapshot_id].used_by = None

    # --- what there is ---------------------------------------------------------------------------------------

    @property
    def volumes(self) -> dict[str, Volume]:
        """The volumes there are, without the roots of instances."""
        with self._ebs.lock:
            return {
                found.id: replace(
                    found, tags=dict(found.tags), attachment=replace(found.attachment) if found.attachment else None
                )
                for found in self._ebs.volumes.values()
                if not found.is_root
            }

    @property
    def snapshots(self) -> dict[str, Snapshot]:
        """The snapshots there are."""
        with self._ebs.lock:
            return {found.id: replace(found, tags=dict(found.tags)) for found in self._ebs.snapshots.values()}

    @property
    def forced(self) -> list[str]:
        """The volumes that somebody detached with Force."""
        return list(self._ebs.forced)


def _fill(image: Path, source: Path) -> None:
    """Copy a directory into the filesystem of an image."""
    with tempfile.TemporaryDirectory(prefix="bootagent-fill-") as point:
        _run("mount", "-o", "loop", "--", str(image), point)
        try:
            _run("cp", "-a", "--", f"{source}/.", point)
        finally:
            _run("umount", "--", point)


def _run(*argv: str) -> None:
    if shutil.which(argv[0]) is None:
        raise BootagentError(f"the simulated disks need {argv[0]}", remedy="install xfsprogs and e2fsprogs")
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PROGRAM_SECONDS, check=False
    )
    if done.returncode != 0:
        raise BootagentError(f"{' '.join(argv)} failed: {done.stderr.strip()}")
