"""A document and an instance's coordinates become one frozen :class:`Config`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from bootagent.config import coordinates, rules, schema, sources
from bootagent.config.document import Document
from bootagent.config.model import App, Check, Config, Limits, LinkedFile, Runit, Service
from bootagent.config.quantities import seconds, size
from bootagent.errors import ConfigError, Problem

Table = dict[str, Any]


def validate(document: Document) -> Document:
    """The same document with every default filled in.

    Raises ConfigError with every problem a document has, whatever the instance.
    """
    tables = document.tables
    if not (found := list(schema.check(tables))):
        tables = schema.complete(tables)
        found = list(rules.check(tables))
    if found:
        raise ConfigError([document.problem(path, sentence) for path, sentence in found])
    return dataclasses.replace(document, tables=tables)


def metadata_within(document: Document) -> float:
    """How long to wait for metadata and tags, in seconds."""
    return seconds(document.tables["tags"]["within"])


def watch_interval(document: Document) -> float:
    """How often to look for a new release, in seconds; 0: never."""
    return seconds(document.tables["watch"]["interval"])


def default_tags(document: Document) -> Mapping[str, str]:
    """Values for tags the instance does not carry."""
    values: Mapping[str, str] = document.tables["tags"]["defaults"]
    return values


def required_tags(document: Document, tags: Mapping[str, str]) -> set[str]:
    """The tag keys that must be there, given those seen so far: the role first, then what its apps interpolate."""
    keys = document.tables["tags"]
    required = {keys["role"], *keys["required"]}
    role = document.tables["roles"].get(tags.get(keys["role"], ""))
    if role:
        texts = [
            text for name in _app_names(document, role) for _, text in coordinates.texts(_app_table(document, name))
        ]
        for volume in role["volumes"].values():
            texts += [text for _, text in coordinates.texts(volume, coordinates.VOLUME_FIELDS)]
        for found in (name for text in texts for name in coordinates.names_in(text)):
            if found == "environment":
                required.add(keys["environment"])
            elif found.startswith("tag:"):
                required.add(found.removeprefix("tag:"))
    return required


def resolve(document: Document, facts: Mapping[str, str], tags: Mapping[str, str]) -> Config:
    """Choose the role and fill in its apps. ``facts``: the coordinates other than role, environment and tags.

    Raises ConfigError for an unknown role and for values that do not fit.
    """
    keys = document.tables["tags"]
    role_name = tags[keys["role"]]
    role = document.tables["roles"].get(role_name)
    if role is None:
        hint = schema.suggestion(role_name, document.tables["roles"])
        raise ConfigError([document.problem(("roles",), f"no role {role_name!r} (tag {keys['role']}){hint}")])
    values = {**facts, "role": role_name, "environment": tags.get(keys["environment"], "")}
    values |= {f"tag:{key}": value for key, value in tags.items()}
    wanted: list[str] | None = role.get("services")
    problems: list[Problem] = []

    def fill(path: tuple[str, ...], table: Table, fields: coordinates.Fields) -> Table:
        return _filled(document, path, table, fields, values, problems)

    filled = {
        name: fill(("apps", name), _app_table(document, name), coordinates.FIELDS)
        for name in _app_names(document, role)
    }
    volumes = {
        name: fill(("roles", role_name, "volumes", name), table, coordinates.VOLUME_FIELDS)
        for name, table in role["volumes"].items()
    }
    role = {**role, "volumes": volumes}
    # The rules hold for what the values make of it, too: two directories may meet only on this instance.
    found = [] if problems else list(rules.check({"apps": filled, "roles": {role_name: role}}, filled=True))
    problems += [document.problem(path, sentence) for path, sentence in found]
    if problems:
        raise ConfigError(problems)
    apps = tuple(_app(name, table, wanted) for name, table in filled.items())
    return Config(
        role=role_name,
        environment=tags.get(keys["environment"]),
        apps=apps,
        volumes=tuple(sources.data_volume(name, table) for name, table in volumes.items()),
        runit=Runit(**document.tables["runit"]),
    )


def _app_table(document: Document, name: str) -> Table:
    table: Table = document.tables["apps"][name]
    return table


def _app_names(document: Document, role: Table) -> list[str]:
    return list(document.tables["apps"]) if role["apps"] == "*" else role["apps"]


def _app(name: str, table: Table, wanted: list[str] | None) -> App:
    users = {service["user"] for service in table["services"].values() if "user" in service}
    user = table.get("user") or (users.pop() if len(users) == 1 else "nobody")
    group = table.get("group")
    deploy_to = "/" + table["deploy_to"].strip("/")
    hooks, limits = table["hooks"], table["limits"]
    return App(
        name=name,
        deploy_to=deploy_to,
        user=user,
        group=group,
        source=sources.source(table["source"], deploy_to),
        fallback=sources.fallback(table["source"].get("fallback")),
        linked_files=tuple(
            LinkedFile(item, None) if isinstance(item, str) else LinkedFile(item["path"], item["from"])
            for item in table["linked_files"]
        ),
        linked_dirs=tuple(table["linked_dirs"]),
        keep_releases=table["keep_releases"],
        prepare=tuple(hooks["prepare"]) if "prepare" in hooks else None,
        prepare_within=seconds(hooks["within"]),
        release_services=table["release_services"],
        services=tuple(_service(name, key, service, user, group) for key, service in table["services"].items()),
        unnamed=_service(name, "*", schema.complete({}, schema.root()["$defs"]["service"]), user, group),
        only=_narrowed(name, wanted),
        limits=Limits(
            unpacked=size(limits["unpacked"]),
            files=limits["files"],
            reserve=size(limits["reserve"]),
            within=seconds(limits["within"]),
        ),
    )


def _narrowed(app: str, wanted: list[str] | None) -> tuple[str, ...] | None:
    if wanted is None:
        return None
    pairs = [item.rpartition(".") for item in wanted]
    return tuple(service for owner, _, service in pairs if owner in ("", app))


def _service(app: str, name: str, table: Table, user: str, group: str | None) -> Service:
    check = table["check"]
    own_user = table.get("user", user)
    return Service(
        name=name,
        command=tuple(table["command"]) if "command" in table else None,
        user=own_user,
        group=table.get("group", group if own_user == user else None),
        env=tuple(sorted(table["env"].items())),
        log=table.get("log", f"/var/log/bootagent/{app}.{name}"),
        stable_for=seconds(table["stable_for"]),
        stop_within=seconds(table["stop_within"]),
        check=Check(
            http=check.get("http"),
            tcp=check.get("tcp"),
            command=tuple(check["command"]) if "command" in check else None,
            within=seconds(check["within"]),
        ),
    )


def _filled(
    document: Document,
    where: tuple[str, ...],
    raw: Table,
    fields: coordinates.Fields,
    values: Mapping[str, str],
    problems: list[Problem],
) -> Table:
    """The table with every coordinate filled in; what cannot be is added to ``problems``."""
    table: Table = copy.deepcopy(raw)
    for path, text in coordinates.texts(table, fields):
        holder: Any = table
        for key in path[:-1]:
            holder = holder[int(key[1:-1])] if isinstance(holder, list) else holder[key]
        try:
            holder[path[-1]] = coordinates.fill(text, values, strict=coordinates.is_strict(path, fields))
        except ValueError as error:
            problems.append(document.problem((*where, *path), str(error)))
    return table
