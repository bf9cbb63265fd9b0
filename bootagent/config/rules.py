"""What the schema cannot say: how the keys of a configuration fit together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from bootagent.config import coordinates, order, storage
from bootagent.config.quantities import seconds
from bootagent.config.schema import Found, choices
from bootagent.config.storage import place

Table = dict[str, Any]

#: No hook keeps an instance waiting for longer: Amazon EC2 Auto Scaling, "Lifecycle hooks", its limits.
LAUNCH_SECONDS = 48 * 3600
#: Where no time at all would leave nothing that could ever be done; "*" stands for any key.
_DEADLINES = (
    ("apps", "*", "hooks", "within"),
    ("apps", "*", "limits", "within"),
    ("apps", "*", "source", "within"),
    ("roles", "*", "volumes", "*", "within"),
    ("roles", "*", "traffic", "within"),
)

#: Looking for a new release costs a process and a read of the source.
WATCH_SECONDS = 10


def check(tables: Table, *, filled: bool = False) -> Iterator[Found]:
    """Yield (key path, sentence) for everything that does not fit.

    The tables are complete; ``filled``: coordinates are filled in, and what braces are left are just braces.
    """
    apps: Table = tables["apps"]
    interval = tables.get("watch", {}).get("interval", 0)
    if 0 < seconds(interval) < WATCH_SECONDS:
        yield ("watch", "interval"), f"{interval!r} is less than {WATCH_SECONDS} s; 0 is never"
    yield from order.check_modes(tables.get("modes", {}), apps)
    if not filled:  # what does not run here may well be named
        yield from order.check_after(apps)
    if "lifecycle" in tables and not filled:
        for path, sentence in _check_lifecycle(tables["lifecycle"]):
            yield ("lifecycle", *path), sentence
    yield from _check_deadlines(tables)
    for name, app in apps.items():
        if not filled:
            for path, sentence in _check_names(app, coordinates.FIELDS):
                yield ("apps", name, *path), sentence
        for path, sentence in (*_check_app(app, filled=filled), *storage.check_source(app)):
            yield ("apps", name, *path), sentence
    for (one, first), (two, second) in combinations(apps.items(), 2):
        a, b = place(first["deploy_to"]), place(second["deploy_to"])
        if a == b or a in b.parents or b in a.parents:
            yield ("apps", two, "deploy_to"), f"{str(b)!r} collides with {str(a)!r} of app {one!r}"
    for name, role in tables["roles"].items():
        for path, sentence in (*_check_role(role, apps), *storage.check_role(role, apps)):
            yield ("roles", name, *path), sentence
        if "traffic" in role:
            for path, sentence in _check_traffic(role["traffic"], filled=filled):
                yield ("roles", name, "traffic", *path), sentence
        for volume, table in role["volumes"].items() if not filled else ():
            for path, sentence in _check_names(table, coordinates.VOLUME_FIELDS):
                yield ("roles", name, "volumes", volume, *path), sentence


def _check_lifecycle(lifecycle: Table) -> Iterator[Found]:
    yield from _check_names(lifecycle, coordinates.LIFECYCLE_FIELDS)
    sustained, most = lifecycle["sustained"], lifecycle["give_up_after"]
    if seconds(sustained) >= seconds(most):
        yield ("sustained",), f"{sustained!r} is not less than give_up_after, {most!r}: no launch would be continued"
    if seconds(most) > LAUNCH_SECONDS:
        yield ("give_up_after",), f"{most!r} is longer than any hook waits, which is 48h"
    if "launching" in lifecycle and lifecycle["launching"] == lifecycle.get("terminating"):
        yield ("terminating",), f"{lifecycle['launching']!r} is the hook at launch: one hook is not both"


def _check_deadlines(tables: Table) -> Iterator[Found]:
    for pattern in _DEADLINES:
        for path, value in coordinates.matching(tables, pattern):
            if not seconds(value):
                yield path, f"{value!r} leaves no time at all"


def _check_traffic(traffic: Table, *, filled: bool) -> Iterator[Found]:
    if not filled:
        yield from _check_names(traffic, coordinates.TRAFFIC_FIELDS)
    if "elastic_ip" in traffic:
        ip = traffic["elastic_ip"]
        if ("allocation" in ip) == bool(ip.get("tags")):
            yield ("elastic_ip",), "needs an allocation id, or the tags of a pool: one of the two"
    groups = [{"group": one} if isinstance(one, str) else one for one in traffic["target_groups"]]
    for index, one in enumerate(groups):
        if one in groups[:index]:
            yield ("target_groups", f"[{index}]"), f"{one['group']!r} is named twice"


def _check_names(table: Table, fields: coordinates.Fields) -> Iterator[Found]:
    for path, text in coordinates.texts(table, fields):
        for sentence in coordinates.unknown(text, strict=coordinates.is_strict(path, fields)):
            yield path, sentence


def _can_be_asked(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _check_role(role: Table, apps: Table) -> Iterator[Found]:
    chosen = list(apps) if role["apps"] == "*" else role["apps"]
    for index, app in enumerate(chosen):
        if app not in apps:
            yield ("apps", f"[{index}]"), f"{app!r} is no app{choices(app, apps)}"
        elif app in chosen[:index]:
            yield ("apps", f"[{index}]"), f"{app!r} is named twice"
    for index, service in enumerate(role.get("services", [])):
        app, dot, _ = service.partition(".")
        if not dot and len(chosen) > 1:
            yield ("services", f"[{index}]"), f"{service!r} of which app? Write APP.{service}: the role has several"
        elif dot and app not in chosen:
            yield ("services", f"[{index}]"), f"{app!r} is no app of this role{choices(app, chosen)}"


def _check_app(app: Table, *, filled: bool) -> Iterator[Found]:
    if not place(app["deploy_to"]).name:
        yield ("deploy_to",), "is the root directory"
    linked = [(("linked_dirs", f"[{i}]"), path) for i, path in enumerate(app["linked_dirs"])]
    linked += [
        (("linked_files", f"[{i}]"), item if isinstance(item, str) else item["path"])
        for i, item in enumerate(app["linked_files"])
    ]
    for (_, first), (where, second) in combinations(linked, 2):
        a, b = PurePosixPath(first), PurePosixPath(second)
        if a == b or a in b.parents or b in a.parents:
            yield where, f"{second!r} collides with {first!r}"
    for name, service in app["services"].items():
        for path, sentence in _check_service(service, filled=filled):
            yield ("services", name, *path), sentence


def _check_service(service: Table, *, filled: bool) -> Iterator[Found]:
    check = service["check"]
    kinds = [kind for kind in ("http", "tcp", "command") if kind in check]
    if len(kinds) > 1:
        yield ("check",), f"has {' and '.join(kinds)}; keep one"
    open_url = not filled and coordinates.names_in(check.get("http", ""))  # looked at again once it is filled in
    if "http" in check and not open_url and not _can_be_asked(check["http"]):
        yield ("check", "http"), f"{check['http']!r} has no host, or a port that is none"
    if "tcp" in check and not 0 < int(check["tcp"].rpartition(":")[2]) < 65536:
        yield ("check", "tcp"), f"{check['tcp']!r} has no port between 1 and 65535"
    if "stop" in service and "command" not in service:
        yield ("stop",), "goes with a command; the service directory of a release says it in control/t"
    for key in ("directory", "wrapper"):
        if key in service and "command" not in service:
            yield (key,), "goes with a command; the service directory of a release says it in run"
    for key, value in service["env"].items():
        if value != value.rstrip(" \t") or "\0" in value:
            # chpst(8) trims what trails and cannot carry a NUL.
            yield ("env", key), "ends in blanks or holds a NUL; chpst cannot carry that"
