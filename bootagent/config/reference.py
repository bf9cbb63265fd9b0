"""Every key of a configuration with its default and its meaning, as the schema has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bootagent.config import schema

Schema = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """One key. ``path`` is as TOML writes it, NAME standing for any; ``default`` is empty when there is none."""

    path: str
    default: str
    meaning: str


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
        yield Key(path, "" if default is None or below else json.dumps(default, ensure_ascii=False), str(meaning))
    yield from below
