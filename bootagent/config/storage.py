"""How the keys of sources, mounts and volumes fit together: the part of the rules that is about storage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import PurePosixPath
from typing import Any

from bootagent.config.quantities import size
from bootagent.config.schema import Found
from bootagent.config.services import user_of

Table = dict[str, Any]

GIB = 2**30
#: What no mount may hide, and of that, what none may be in.
_WHOLE = ("/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/var/lib/bootagent")
_TAKEN = (*_WHOLE, "/bin", "/lib", "/sbin", "/usr/bin", "/usr/lib", "/usr/sbin", "/var/lib/dpkg", "/opt/bootagent")
#: Which volume types take which parameter: EC2 API, CreateVolume.
_TAKES = {"iops": ("gp3", "io1", "io2"), "throughput": ("gp3",)}
#: A password, or a token in place of a name; "git@" of ssh is no secret.
_USERINFO = re.compile(r"^(https?://[^/@]+|[a-z+]+://[^/@]*:[^/@]*)@")


def place(path: str) -> PurePosixPath:
    """A path to compare with others."""
    return PurePosixPath(re.sub("/+", "/", path))  # POSIX lets two leading slashes mean something else


def overlap(one: str, two: str) -> bool:
    """Whether one directory is the other, or in it."""
    a, b = place(one), place(two)
    root = not a.name or not b.name  # which is told of by itself
    return not root and (a == b or a in b.parents or b in a.parents)


def is_within(inner: str, outer: str) -> bool:
    """Whether a directory is the other, or in it."""
    return place(outer) in (place(inner), *place(inner).parents)


def is_in_place(app: Table) -> bool:
    """Whether the app's releases are read where they are, so that there is nothing to stage."""
    source = app["source"]
    return (source["type"] in ("nfs", "image") and not source["copy"]) or (
        source["type"] == "ebs" and source["holds"] == "deploy_to"
    )


def check_source(app: Table) -> Iterator[Found]:
    """Yield (key path in the app, sentence) for what does not fit."""
    source, deploy_to = app["source"], app["deploy_to"]
    if source["type"] == "nfs":
        yield from _check_nfs(source, deploy_to)
    elif source["type"] == "ebs":
        yield from _check_ebs(source, deploy_to)
    elif source["type"] == "git" and _USERINFO.match(source["url"]):
        yield ("source", "url"), "has a password in it, which everyone who reads this file could use; use a key"
    elif source["type"] == "image" and not source["copy"] and "path" in source:
        yield ("source", "path"), "goes with copy; without it the services run in deploy_to itself"
    if is_in_place(app):
        for key in ("linked_files", "linked_dirs"):
            if app[key]:
                yield (key,), "cannot be: the release is read in place, and nothing is linked into it"
        if "prepare" in app["hooks"]:
            yield ("hooks", "prepare"), "cannot be: the release is read in place, and nothing is prepared in it"
        if source.get("fallback") == "image":
            sentence = 'cannot be, where the release is read in place; name a tree: { type = "image", path = … }'
            yield ("source", "fallback"), sentence


def _check_nfs(source: Table, deploy_to: str) -> Iterator[Found]:
    mountpoint = source["mountpoint"]
    if sentence := _no_place(mountpoint):
        yield ("source", "mountpoint"), sentence
    elif source["copy"] and overlap(mountpoint, deploy_to):
        yield ("source", "mountpoint"), f"{mountpoint!r} collides with deploy_to, which the copies go to"
    elif not source["copy"] and not is_within(deploy_to, mountpoint):
        yield ("deploy_to",), f"{deploy_to!r} is not below the mountpoint {mountpoint!r}; put it there, or set copy"
    if not source["copy"] and source["path"] != "current":
        yield ("source", "path"), "goes with copy; in place it is current in deploy_to"


def _check_ebs(source: Table, deploy_to: str) -> Iterator[Found]:
    if not source["snapshot"]:
        yield ("source", "snapshot"), "is empty: any snapshot would do"
    mountpoint = source.get("mountpoint")
    if source["holds"] == "release":
        if mountpoint:
            yield ("source", "mountpoint"), 'goes with holds = "deploy_to"; a release is mounted among the releases'
    elif sentence := _no_place(mountpoint or deploy_to):
        yield ("source", "mountpoint"), sentence
    elif mountpoint and source["bind"] and place(mountpoint) != place(deploy_to) and overlap(mountpoint, deploy_to):
        yield ("source", "bind"), f"{mountpoint!r} and {deploy_to!r} are one in the other; set bind = false"
    elif mountpoint and not source["bind"] and not is_within(deploy_to, mountpoint):
        yield ("deploy_to",), f"{deploy_to!r} is not below the mountpoint {mountpoint!r}, and bind is false"
    for path, sentence in _check_kind(source["volume"]):
        yield ("source", "volume", *path), sentence


def _no_place(path: str) -> str | None:
    """Why nothing can be mounted at a path; None when it can."""
    if not place(path).name:
        return "is the root directory"
    for taken in _TAKEN:
        if is_within(taken, path) or (taken in _WHOLE and is_within(path, taken)):
            return f"{path!r} would hide {taken}, which the machine needs"
    return None


def _check_kind(volume: Table) -> Iterator[Found]:
    for key, types in _TAKES.items():
        if key in volume and volume["type"] not in types:
            yield (key,), f"is for {', '.join(types)}, not for {volume['type']}"
    if volume["type"] in ("io1", "io2") and "iops" not in volume:
        yield ("iops",), f"is missing: {volume['type']} wants a number"
    if "kms_key" in volume and volume.get("encrypted") is False:
        yield ("kms_key",), "is given, and encrypted is false"
    if "size" in volume and size(volume["size"]) < GIB:
        yield ("size",), f"{volume['size']!r} is less than 1GiB"


def check_role(role: Table, apps: Table) -> Iterator[Found]:
    """Yield (key path in the role, sentence) for volumes and mounts that do not fit together."""
    volumes: Table = role["volumes"]
    for name, volume in volumes.items():
        where = ("volumes", name)
        if sentence := _no_place(volume["mountpoint"]):
            yield (*where, "mountpoint"), sentence
        if not (volume["tags"] or volume["snapshot"] or "size" in volume["volume"]):
            yield where, "needs tags to find one by, a snapshot to make one from, or a size for a blank one"
        for path, sentence in _check_kind(volume["volume"]):
            yield (*where, "volume", *path), sentence
    for (one, first), (two, second) in combinations(volumes.items(), 2):
        if first["tags"] and first["tags"] == second["tags"]:
            yield ("volumes", two, "tags"), f"are those of volume {one!r}: both would be the same disk"
        if overlap(first["mountpoint"], second["mountpoint"]):
            sentence = f"{second['mountpoint']!r} collides with {first['mountpoint']!r} of volume {one!r}"
            yield ("volumes", two, "mountpoint"), sentence
    chosen = [name for name in (list(apps) if role["apps"] == "*" else role["apps"]) if name in apps]
    mounted = {name: point for name in chosen if (point := _mountpoint(apps[name]))}
    for name, volume in volumes.items():
        for app, point in mounted.items():
            if overlap(volume["mountpoint"], point):
                sentence = f"{volume['mountpoint']!r} collides with {point!r} of app {app!r}"
                yield ("volumes", name, "mountpoint"), sentence
    for app in chosen:
        for name, volume in volumes.items():
            if why := _in_the_way(volume["mountpoint"], app, apps[app]):
                yield ("volumes", name, "mountpoint"), f"{volume['mountpoint']!r} {why}"
        for other, point in mounted.items():
            if other != app and (why := _in_the_way(point, app, apps[app])):
                yield ("apps",), f"{other!r} mounts {point!r}, which {why}"
    for (one, first), (two, second) in combinations(mounted.items(), 2):
        if overlap(first, second) and not _same_mount(apps[one]["source"], apps[two]["source"]):
            yield ("apps",), f"{two!r} mounts {second!r}, which collides with {first!r} of {one!r}"


def _mountpoint(app: Table) -> str | None:
    source = app["source"]
    if source["type"] == "nfs" or (source["type"] == "ebs" and source["holds"] == "deploy_to"):
        return str(source.get("mountpoint") or app["deploy_to"])
    return None


def _in_the_way(point: str, name: str, app: Table) -> str | None:
    """Why nothing can be mounted at a place in an app's deploy_to, as a clause; None when it can, or lies elsewhere.

    Root mounts nowhere on the way to which another user could rename a directory: mounts.refuse_movable.
    """
    source, user = app["source"], user_of(app)
    on_volumes = source["type"] == "ebs" and source["holds"] == "release"
    held = f"{app['deploy_to']}/shared" if on_volumes else app["deploy_to"]  # else deploy_to and releases/ are root's
    if not is_within(point, held) or is_within(held, point):
        return None
    where = f"is in {place(held)}, where app {name!r}"
    if source["type"] == "ebs" and is_in_place(app) and not overlap(point, _mountpoint(app) or ""):
        return f"{where} has a volume of its own; mount it elsewhere"
    if is_in_place(app) or user == "root":
        return None
    return f"{where} lets {user!r} rename directories; mount it elsewhere, and link to it by hooks.prepare"


def _same_mount(one: Table, two: Table) -> bool:
    """Two apps may read from one NFS mount."""
    keys = ("type", "server", "export", "mountpoint", "options")
    return one["type"] == "nfs" and all(one.get(key) == two.get(key) for key in keys)
