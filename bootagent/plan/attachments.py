"""Mounts and data volumes: what must be there before the sources can be asked and anything may start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from bootagent.config.model import Config, DataVolume, NfsSource
from bootagent.plan import volumes
from bootagent.plan.lane import Moment
from bootagent.steps.base import Step
from bootagent.steps.mounted_nfs import MountedNfs


@dataclass(frozen=True)
class Attachment:
    """One mount, or one volume with its mount; ``apps`` are those that read their releases from it.

    ``name`` is for people. Without apps it is the whole role's: nothing may start before it is there.
    """

    name: str
    apps: tuple[str, ...]
    steps: tuple[Step, ...]


def attachments(config: Config, snapshots: Mapping[str, str | None], moment: Moment) -> tuple[Attachment, ...]:
    """The role's data volumes, and the mounts of its apps; ``snapshots`` are what new volumes would be made from."""
    role = [_data_volume(config, volume, snapshots.get(volume.name), moment) for volume in config.volumes]
    return (*role, *_nfs_mounts(config))


def _data_volume(config: Config, volume: DataVolume, snapshot: str | None, moment: Moment) -> Attachment:
    return Attachment(f"volume {volume.name}", (), volumes.data_volume(config.role, volume, snapshot, moment))


def _nfs_mounts(config: Config) -> Iterator[Attachment]:
    """One for all apps that read from a mount, which gets the time of the most patient of them."""
    shared: dict[MountedNfs, list[tuple[str, float]]] = {}
    for app in config.apps:
        if isinstance(source := app.source, NfsSource):
            mount = MountedNfs(source.server, source.export, source.mountpoint, source.options, within=0.0)
            shared.setdefault(mount, []).append((app.name, source.within))
    for mount, users in shared.items():
        apps = tuple(app for app, _ in users)
        yield Attachment(" ".join(apps), apps, (replace(mount, within=max(within for _, within in users)),))
