"""The steps that bring a volume and take it away."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection

from bootagent.config.model import App, Config, DataVolume, EbsSource
from bootagent.ebs.wanted import Wanted
from bootagent.errors import BootagentError
from bootagent.plan.lane import Moment
from bootagent.steps.attached_volume import AttachedVolume
from bootagent.steps.base import Step
from bootagent.steps.mounted_volume import MountedVolume
from bootagent.steps.retired_volumes import RetiredVolumes


def is_on_volumes(app: App) -> bool:
    """Whether each release of the app is on a volume of its own."""
    return isinstance(app.source, EbsSource) and app.source.holds == "release"


def is_snapshot(revision: str) -> bool:
    """Whether a release was made from one: other sources, and what stands in for one, give none."""
    return revision.startswith("snap-")


def restored(app: App, release: str, snapshot: str, moment: Moment, marker: str) -> list[Step]:
    """A release that is a volume, mounted among the releases; ``marker`` says that its hook has succeeded."""
    assert isinstance(app.source, EbsSource)
    place = f"{app.deploy_to}/releases/{release}"
    return [
        attached(app, app.source, release, snapshot, moment, marker),
        _mounted(record(app.name, release), place, app.source, bind=None),
    ]


def attached(
    app: App, source: EbsSource, release: str, snapshot: str, moment: Moment, marker: str | None = None
) -> Step:
    """The volume of a release, made from a snapshot. Raises BootagentError on a machine that does not know itself."""
    instance_id, zone = _here(f"app {app.name}", moment)
    wanted = Wanted(
        name=record(app.name, release),
        purpose=f"app {app.name}",
        instance_id=instance_id,
        region=moment.region,
        zone=zone,
        snapshot=snapshot,
        kind=source.volume,
        device=source.device,
        within=source.within,
        marker=marker,
    )
    return AttachedVolume(wanted)


def shown(app: App, source: EbsSource, release: str) -> Step:
    """The volume of a release in the place of the one before it, at deploy_to too."""
    return _mounted(record(app.name, release), source.mountpoint, source, app.deploy_to if source.bind else None)


def retired_volumes(app: str, moment: Moment, *, keep: Collection[str]) -> tuple[Step, ...]:
    """None of the app's volumes is left but those of the releases in ``keep``."""
    names = tuple(sorted(record(app, release) for release in keep))
    return (RetiredVolumes(record(app, ""), names, moment.instance_id, delete=True),)


def of_another_kind(app: App, names: Collection[str]) -> list[str]:
    """Which of an app's volumes are from when its source was another one: releases on volumes, or all of deploy_to."""
    if not isinstance(app.source, EbsSource):
        return sorted(names)
    return sorted(name for name in names if is_snapshot(name) != app.in_place)


def former(config: Config, moment: Moment) -> Step:
    """No data volume is mounted here but the role's: not those of another role, or with other tags."""
    keep = tuple(sorted(volume_record(config.role, volume) for volume in config.volumes))
    return RetiredVolumes("role.", keep, moment.instance_id, delete=False)


def data_volume(role: str, volume: DataVolume, snapshot: str | None, moment: Moment) -> tuple[Step, ...]:
    """A role's volume, found or made, and mounted."""
    instance_id, zone = _here(f"volume {volume.name}", moment)
    name = volume_record(role, volume)
    blank = not volume.snapshot and volume.volume.size_gib is not None
    wanted = Wanted(
        name=name,
        purpose=f"volume {role}/{volume.name}",
        instance_id=instance_id,
        region=moment.region,
        zone=zone,
        snapshot=snapshot,
        find=volume.tags,
        kind=volume.volume,
        device=volume.device,
        delete_on_termination=volume.delete_on_termination,
        create=blank or snapshot is not None,
        by_snapshot=False,
        within=volume.within,
    )
    mount = MountedVolume(
        record=name,
        mountpoint=volume.mountpoint,
        filesystem=volume.filesystem,
        options=volume.options,
        bind=None,
        format=blank,
        user=volume.user,
        group=volume.group,
        fstab=True,
        within=volume.within,
    )
    return AttachedVolume(wanted), mount


def record(app: str, release: str) -> str:
    """The name under which the instance remembers the volume of a release."""
    return f"app.{app}.{release}"


def volume_record(role: str, volume: DataVolume) -> str:
    """The name under which the instance remembers a role's volume; one with other tags is another volume."""
    tags = json.dumps(volume.tags).encode()
    return f"role.{role}.{volume.name}" + (f".{hashlib.sha256(tags).hexdigest()[:8]}" if volume.tags else "")


def _mounted(name: str, place: str, source: EbsSource, bind: str | None) -> Step:
    return MountedVolume(
        record=name,
        mountpoint=place,
        filesystem="xfs",
        options=source.options,
        bind=bind,
        format=False,
        user=None,
        group=None,
        fstab=True,
        within=source.within,
    )


def _here(what: str, moment: Moment) -> tuple[str, str]:
    if moment.instance_id is None or moment.zone is None:
        raise BootagentError(
            f"{what} needs a volume, and it is not known which instance this is, in which availability zone",
            remedy="allow instance metadata",
        )
    return moment.instance_id, moment.zone
