"""Mounts and data volumes: what must be there before the sources can be asked and anything may start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    mounts: dict[Step, list[str]] = {}
    for app in config.apps:
        if isinstance(app.source, NfsSource):
            mounts.setdefault(_nfs(app.source), []).append(app.name)
    return (*role, *(Attachment(" ".join(apps), tuple(apps), (step,)) for step, apps in mounts.items()))


def _data_volume(config: Config, volume: DataVolume, snapshot: str | None, moment: Moment) -> Attachment:
    return Attachment(f"volume {volume.name}", (), volumes.data_volume(config.role, volume, snapshot, moment))


def _nfs(source: NfsSource) -> Step:
    return MountedNfs(source.server, source.export, source.mountpoint, source.options, source.within)
