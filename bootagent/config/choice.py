"""What this instance runs: its mode and role, as the tags name them, become apps and services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bootagent.config.document import Document
from bootagent.config.schema import choices
from bootagent.errors import ConfigError

Table = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """The apps an instance runs, by name.

    ``role_table`` is None when the mode says what to run and no role is told. ``only`` are the services it is narrowed
    to, as ``APP.SERVICE``, or ``APP.*`` for all of an app's; None: all there are.
    """

    role: str
    role_table: Table | None
    mode: str | None
    apps: tuple[str, ...]
    only: tuple[str, ...] | None

    def services_of(self, app: str) -> tuple[str, ...] | None:
        """The services an app is narrowed to; None: all it has."""
        if self.only is None or f"{app}.*" in self.only:
            return None
        return tuple(name.partition(".")[2] for name in self.only if name.partition(".")[0] == app)

    def runs(self, service: str) -> bool:
        """Whether a service, as ``APP.SERVICE``, is among those chosen."""
        app, _, name = service.partition(".")
        narrowed = self.services_of(app)
        return app in self.apps and (narrowed is None or name in narrowed)


def needed(document: Document, tags: Mapping[str, str]) -> set[str]:
    """The tag keys that say what to run, given those seen so far."""
    keys, modes = document.tables["tags"], document.tables["modes"]
    if not modes:
        return {keys["role"]}
    mode = modes.get(tags.get(_mode_key(document), ""))
    needed = {_mode_key(document)}
    if mode is not None and "apps" not in mode:
        needed.add(keys["role"])
    if mode is not None and "narrowed_by" in mode:
        needed.add(mode["narrowed_by"])
    return needed


def seen(document: Document, tags: Mapping[str, str]) -> tuple[Choice | None, Table | None]:
    """What is chosen, and the role's table, as far as the tags seen so far tell."""
    role: Table | None = document.tables["roles"].get(tags.get(document.tables["tags"]["role"], ""))
    try:
        return choose(document, tags), role
    except ConfigError:  # something is still to come, or will be refused
        return None, role


def choose(document: Document, tags: Mapping[str, str]) -> Choice:
    """What the tags choose. Raises ConfigError, naming what there is, for a role, mode or service that is not there."""
    role_key, roles = document.tables["tags"]["role"], document.tables["roles"]
    mode, mode_table = _mode(document, tags)
    role = tags.get(role_key, "")
    if role not in roles and (role or "apps" not in mode_table):
        said = f"no role {role!r} (tag {role_key})" if role else f"no role: the instance has no tag {role_key}"
        raise ConfigError([document.problem(("roles",), said + choices(role, roles))])
    role_table = roles.get(role)
    apps = _names(document, mode_table["apps"] if "apps" in mode_table else role_table["apps"])
    only: list[str] | None = None
    if "apps" not in mode_table and "services" in role_table:
        only = [name if "." in name else f"{apps[0]}.{name}" for name in role_table["services"]]
    if key := mode_table.get("narrowed_by"):
        only = _narrowed(document, mode or "", key, tags.get(key, "").split(), apps, only)
        apps = [app for app in apps if any(name.partition(".")[0] == app for name in only)]
    return Choice(role or mode or "", role_table, mode, tuple(apps), None if only is None else tuple(only))


def need_no_role(modes: Any) -> bool:
    """Whether each mode of a configuration, as it is written, says itself what to run."""
    found = list(modes.values()) if isinstance(modes, dict) else []
    return bool(found) and all(isinstance(mode, dict) and "apps" in mode for mode in found)


def _mode_key(document: Document) -> str:
    keys = document.tables["tags"]
    key: str = keys.get("mode", keys["environment"])
    return key


def _mode(document: Document, tags: Mapping[str, str]) -> tuple[str | None, Table]:
    modes = document.tables["modes"]
    if not modes:
        return None, {}
    name = tags.get(_mode_key(document), "")
    if name not in modes:
        key = _mode_key(document)
        said = f"no mode {name!r} (tag {key})" if name else f"no mode: the instance has no tag {key}"
        raise ConfigError([document.problem(("modes",), said + choices(name, modes))])
    return name, modes[name]


def _narrowed(
    document: Document, mode: str, key: str, words: Sequence[str], apps: Sequence[str], allowed: Sequence[str] | None
) -> list[str]:
    """The services that the tag ``key`` names; ``allowed`` are the role's, None: all there are."""
    where = ("modes", mode, "narrowed_by")
    known = _known(document, apps) if allowed is None else list(allowed)
    if not words:
        raise ConfigError([document.problem(where, f"tag {key} names no service{choices('', known)}")])
    found: list[str] = []
    for word in words:
        owners = _owners(document, word, apps)
        named = [name for name in owners if allowed is None or name in allowed]
        if allowed is not None and word in apps:
            named = [name for name in allowed if name.partition(".")[0] == word]
        if len(named) > 1 and word not in apps:
            said = f"tag {key} names {word!r}, which several apps have: write {' or '.join(named)}"
            raise ConfigError([document.problem(where, said)])
        if not named:
            said = f"tag {key} names {word!r}, which is no service or app of this mode"
            raise ConfigError([document.problem(where, said + choices(word, known))])
        found += named
    return list(dict.fromkeys(found))


def _owners(document: Document, word: str, apps: Sequence[str]) -> list[str]:
    """What a word of the tag may mean, as ``APP.SERVICE``, or ``APP.*`` for all of an app's."""
    if word in apps:
        return [f"{word}.*"]
    tables, (app, dot, name) = document.tables["apps"], word.partition(".")
    if dot:
        # A release may bring services beside those configured. That is seen once it is there, and others refused then.
        return [word] if app in apps and name else []
    if len(apps) == 1 and not tables[apps[0]]["services"]:
        return [f"{apps[0]}.{word}"]
    return [f"{app}.{word}" for app in apps if word in tables[app]["services"]]


def _known(document: Document, apps: Sequence[str]) -> list[str]:
    return [*apps, *(f"{app}.{name}" for app in apps for name in document.tables["apps"][app]["services"])]


def _names(document: Document, apps: str | list[str]) -> list[str]:
    return list(document.tables["apps"]) if isinstance(apps, str) else apps
