"""A document and an instance's coordinates become one frozen :class:`Config`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bootagent.config import choice, coordinates, order, rules, schema, services, sources
from bootagent.config.choice import Choice
from bootagent.config.document import Document
from bootagent.config.model import App, Config, Limits, LinkedFile, Runit, Service, Telling
from bootagent.config.quantities import seconds, size
from bootagent.errors import ConfigError, Problem

Table = dict[str, Any]


def validate(document: Document) -> Document:
    """The same document with every default filled in.

    Raises ConfigError with every problem a document has, whatever the instance.
    """
    tables = document.tables
    found = list(schema.check(tables))
    if "roles" not in tables and not choice.need_no_role(tables.get("modes")):
        found.append((("roles",), "is missing: it says which apps an instance runs, [roles.NAME] with apps = [...]"))
    if not found:
        tables = schema.complete(tables)
        found = list(rules.check(tables))
    if found:
        raise ConfigError([document.problem(path, sentence) for path, sentence in found])
    return replace(document, tables=tables)


def metadata_within(document: Document) -> float:
    """How long to wait for metadata and tags, in seconds."""
    return seconds(document.tables["tags"]["within"])


def watch_interval(document: Document) -> float:
    """How often to look for a new release, in seconds; 0: never."""
    return seconds(document.tables["watch"]["interval"])


def telling(document: Document) -> Telling:
    """Who is told how a run ended, whatever the instance."""
    return services.telling(document.tables["tell"])


def default_tags(document: Document) -> Mapping[str, str]:
    """Values for tags the instance does not carry."""
    values: Mapping[str, str] = document.tables["tags"]["defaults"]
    return values


def required_tags(document: Document, tags: Mapping[str, str]) -> set[str]:
    """The tag keys that must be there, given those seen so far: what says what to run, then what is interpolated."""
    keys = document.tables["tags"]
    required = {*choice.needed(document, tags), *keys["required"]}
    chosen, role = choice.seen(document, tags)
    texts = [
        text
        for name in (chosen.apps if chosen else ())
        for path, text in coordinates.texts(_app_table(document, name))
        if chosen and not _is_left_out(chosen, name, path)
    ]
    if lifecycle := document.tables.get("lifecycle"):
        texts += [text for _, text in coordinates.texts(lifecycle, coordinates.LIFECYCLE_FIELDS)]
    if role:
        texts += [text for _, text in coordinates.texts(role.get("traffic", {}), coordinates.TRAFFIC_FIELDS)]
        for volume in role["volumes"].values():
            texts += [text for _, text in coordinates.texts(volume, coordinates.VOLUME_FIELDS)]
    for found in (name for text in texts for name in coordinates.names_in(text)):
        if found == "environment":
            required.add(keys["environment"])
        elif found.startswith("tag:"):
            required.add(found.removeprefix("tag:"))
    return required


def resolve(document: Document, facts: Mapping[str, str], tags: Mapping[str, str]) -> Config:
    """Choose what to run and fill it in. ``facts``: the coordinates other than role, environment and tags.

    Raises ConfigError for an unknown role, mode or service, and for values that do not fit.
    """
    keys = document.tables["tags"]
    chosen = choice.choose(document, tags)
    values = {**facts, "role": chosen.role, "environment": tags.get(keys["environment"], "")}
    values |= {f"tag:{key}": value for key, value in tags.items()}
    problems: list[Problem] = []

    def fill(path: tuple[str, ...], table: Table, fields: coordinates.Fields) -> Table:
        return _filled(document, path, table, fields, values, problems, chosen)

    filled = {name: fill(("apps", name), _app_table(document, name), coordinates.FIELDS) for name in chosen.apps}
    role: Table = {"volumes": {}, **(chosen.role_table or {}), "apps": list(chosen.apps)}
    role.pop("services", None)  # they may be of apps that the mode leaves out
    where = ("roles", chosen.role)
    role["volumes"] = {
        name: fill((*where, "volumes", name), table, coordinates.VOLUME_FIELDS)
        for name, table in role["volumes"].items()
    }
    if "traffic" in role:
        role["traffic"] = fill((*where, "traffic"), role["traffic"], coordinates.TRAFFIC_FIELDS)
    lifecycle = document.tables.get("lifecycle")
    if lifecycle is not None:
        lifecycle = fill(("lifecycle",), lifecycle, coordinates.LIFECYCLE_FIELDS)
    # The rules hold for what the values make of it, too: two directories may meet only on this instance.
    run = {name: _without_left_out(chosen, name, table) for name, table in filled.items()}
    found = [] if problems else list(rules.check({"apps": run, "roles": {chosen.role: role}}, filled=True))
    problems += [document.problem(path, sentence) for path, sentence in found]
    if problems:
        raise ConfigError(problems)
    return Config(
        role=chosen.role,
        environment=tags.get(keys["environment"]),
        apps=tuple(_app(name, table, chosen) for name, table in filled.items()),
        volumes=tuple(sources.data_volume(name, table) for name, table in role["volumes"].items()),
        runit=Runit(**document.tables["runit"]),
        mode=chosen.mode,
        traffic=services.traffic(role.get("traffic")),
        lifecycle=services.lifecycle(lifecycle),
        telling=telling(document),
    )


def _is_left_out(chosen: Choice, app: str, path: tuple[str, ...]) -> bool:
    """Whether a place in an app's table is of a service that does not run here: its tags may never come."""
    return path[0] == "services" and not chosen.runs(f"{app}.{path[1]}")


def _without_left_out(chosen: Choice, app: str, table: Table) -> Table:
    services_here = {key: item for key, item in table["services"].items() if chosen.runs(f"{app}.{key}")}
    return {**table, "services": services_here}


def _app_table(document: Document, name: str) -> Table:
    table: Table = document.tables["apps"][name]
    return table


def _app(name: str, table: Table, chosen: Choice) -> App:
    user = services.user_of(table)
    group = table.get("group")
    deploy_to = "/" + table["deploy_to"].strip("/")
    hooks, limits = table["hooks"], table["limits"]

    def service(key: str, found: Table) -> Service:
        made = services.service(name, key, found, table, user, group)
        # What does not run here is not waited for: in production the database is elsewhere.
        return replace(made, after=tuple(other for other in made.after if chosen.runs(other)))

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
        hooks_within=seconds(hooks["within"]),
        release_services=table["release_services"],
        services=tuple(service(key, found) for key, found in table["services"].items()),
        unnamed=service("*", schema.complete({}, schema.root()["$defs"]["service"])),
        only=chosen.services_of(name),
        limits=Limits(
            unpacked=size(limits["unpacked"]),
            files=limits["files"],
            reserve=size(limits["reserve"]),
            within=seconds(limits["within"]),
        ),
        after=tuple(other for other in order.apps_before(name, table) if other in chosen.apps),
        environment=services.environment(table.get("environment")),
        stop=tuple(hooks["stop"]) if "stop" in hooks else None,
    )


def _filled(
    document: Document,
    where: tuple[str, ...],
    raw: Table,
    fields: coordinates.Fields,
    values: Mapping[str, str],
    problems: list[Problem],
    chosen: Choice,
) -> Table:
    """The table with every coordinate filled in; what cannot be is added to ``problems``."""
    table: Table = copy.deepcopy(raw)
    for path, text in coordinates.texts(table, fields):
        if where[0] == "apps" and _is_left_out(chosen, where[1], path):
            continue
        holder: Any = table
        for key in path[:-1]:
            holder = holder[_index(holder, key)]
        try:
            holder[_index(holder, path[-1])] = coordinates.fill(
                text, values, strict=coordinates.is_strict(path, fields)
            )
        except ValueError as error:
            problems.append(document.problem((*where, *path), str(error)))
    return table


def _index(holder: Any, key: str) -> Any:
    return int(key[1:-1]) if isinstance(holder, list) else key
