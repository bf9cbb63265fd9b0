"""The tables of sources and volumes as frozen values."""

from __future__ import annotations

import math
from typing import Any

from bootagent.config.model import DataVolume, EbsSource, GitSource, ImageSource, NfsSource, S3Source, Source, Tags
from bootagent.config.quantities import seconds, size
from bootagent.config.storage import GIB
from bootagent.ebs.kind import VolumeKind

Table = dict[str, Any]


def source(table: Table, deploy_to: str) -> Source:
    """The source of an app from its table, which is complete and keeps the rules."""
    match table["type"]:
        case "s3":
            bucket, _, key = table["url"].removeprefix("s3://").partition("/")
            return S3Source(bucket, key, table.get("region"))
        case "nfs":
            return NfsSource(
                server=table["server"],
                export=table["export"],
                mountpoint=_directory(table["mountpoint"]),
                options=tuple(table["options"]),
                copy=table["copy"],
                path=table["path"],
                within=seconds(table["within"]),
            )
        case "ebs":
            mountpoint = _directory(table.get("mountpoint", deploy_to))
            return EbsSource(
                snapshot=_tags(table["snapshot"]),
                owner=table["owner"],
                holds=table["holds"],
                mountpoint=mountpoint,
                bind=table["bind"] and mountpoint != deploy_to,
                options=tuple(table["options"]),
                device=table["device"],
                volume=_kind(table["volume"]),
                within=seconds(table["within"]),
            )
        case "git":
            return GitSource(table["url"], table["ref"], table.get("key"), table["known_hosts"], table["submodules"])
        case _:
            return ImageSource(table.get("path"), table["copy"])


def fallback(value: str | Table | None) -> ImageSource | None:
    """What serves when nothing can be fetched."""
    if value is None:
        return None
    return ImageSource(None if isinstance(value, str) else value["path"])


def data_volume(name: str, table: Table) -> DataVolume:
    """A role's volume from its table."""
    return DataVolume(
        name=name,
        mountpoint=_directory(table["mountpoint"]),
        tags=_tags(table["tags"]),
        snapshot=_tags(table["snapshot"]),
        owner=table["owner"],
        filesystem=table["filesystem"],
        options=tuple(table["options"]),
        user=table.get("user"),
        group=table.get("group"),
        device=table["device"],
        volume=_kind(table["volume"]),
        delete_on_termination=table.get("delete_on_termination", not table["tags"]),
        within=seconds(table["within"]),
    )


def _directory(path: str) -> str:
    return "/" + "/".join(part for part in path.split("/") if part)


def _tags(table: dict[str, str]) -> Tags:
    return tuple(sorted(table.items()))


def _kind(table: Table) -> VolumeKind:
    return VolumeKind(
        type=table["type"],
        iops=table.get("iops"),
        throughput=table.get("throughput"),
        encrypted=table.get("encrypted"),
        kms_key=table.get("kms_key"),
        initialization_rate=table.get("initialization_rate"),
        size_gib=math.ceil(size(table["size"]) / GIB) if "size" in table else None,
    )
