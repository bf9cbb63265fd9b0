"""Every key of a configuration with its default and its meaning, as the schema has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bootagent.config import coordinates, schema

Schema = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """One key. ``path`` is as TOML writes it, NAME standing for any; ``default`` is empty when there is none.

    ``filled_in``: in its texts, or some of them, ``{environment}`` and the like are filled in.
    """

    path: str
    default: str
    meaning: str
    filled_in: bool


def all_keys() -> list[Key]:
    """All keys, in the order of the schema."""
    return list(_below("", schema.root()))


def _below(path: str, table: Schema) -> Iterator[Key]:
    for one in table.get("oneOf", ()):  # such as the types of a source
        found = schema.followed(one)
        kind = found.get("properties", {}).get("type", {}).get("const")
        if kind:
            yield from _below(f"{path}({kind})", found)
    for name, raw in table.get("properties", {}).items():
        if "const" not in raw:
            yield from _one(f"{path}.{name}".lstrip("."), raw)
    others = table.get("additionalProperties")
    if isinstance(others, dict):
        found = schema.followed(others)
        if found.get("type") == "object" or "oneOf" in found:
            yield from _below(f"{path}.NAME", found)


def _one(path: str, raw: Schema) -> Iterator[Key]:
    found = schema.followed(raw)
    meaning = raw.get("description", found.get("description", ""))
    below = list(_below(path, found))
    if meaning or not below:
        default = raw.get("default", found.get("default"))
        shown = "" if default is None or below else json.dumps(default, ensure_ascii=False)
        yield Key(path, shown, str(meaning), _is_filled_in(path, leaf=not below))
    yield from below


def _is_filled_in(path: str, *, leaf: bool) -> bool:
    """Whether values are filled in here, or somewhere below where no key of its own tells it."""
    place = ["*" if part == "NAME" else part.partition("(")[0] for part in path.split(".")]
    return any(list(one[: len(place)]) == place and (leaf or len(one) == len(place)) for one in coordinates.EVERYWHERE)
