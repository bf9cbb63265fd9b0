"""Coordinates: ``{environment}``, ``{tag:Team}`` and the like, filled in from the instance.

Tag values are untrusted text, so what goes into a path or URL must be one plain word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bootagent.config.schema import suggestion

#: What a configuration may name besides tags.
NAMES = ("role", "environment", "region", "availability_zone", "account_id", "instance_id", "instance_type")

_FIELD = re.compile(r"\{\{|\}\}|\{([a-z_]+|tag:[^{}]+)\}")
_WORD = re.compile(r"(?!\.+$)[A-Za-z0-9._+=@:-]{1,128}")
_LINE = re.compile(r"[^\x00-\x1f\x7f]{0,256}")

Fields = Mapping[tuple[str, ...], bool]

#: Where in an app values are filled in, "*" standing for any key or index; True: into a path or URL.
FIELDS: Fields = {
    ("deploy_to",): True,
    ("source", "url"): True,
    ("source", "ref"): False,  # a branch may have slashes; git refuses what is no name of one
    ("source", "key"): True,
    ("source", "server"): True,
    ("source", "export"): True,
    ("source", "mountpoint"): True,
    ("source", "path"): True,
    ("source", "fallback", "path"): True,
    ("source", "snapshot", "*"): False,
    ("linked_files", "*", "from"): True,
    ("environment", "path"): True,
    ("environment", "url"): True,
    ("environment", "ref"): False,
    ("environment", "key"): True,
    ("environment", "layers", "*"): True,
    ("secrets", "*"): True,
    ("secrets", "*", "from"): True,
    ("services", "*", "secrets", "*"): True,
    ("services", "*", "secrets", "*", "from"): True,
    ("services", "*", "env", "*"): False,
    ("services", "*", "check", "http"): True,
    ("services", "*", "check", "tcp"): True,
}
#: The same in a role's data volume.
VOLUME_FIELDS: Fields = {
    ("mountpoint",): True,
    ("tags", "*"): False,
    ("snapshot", "*"): False,
}
#: The same in a role's traffic.
TRAFFIC_FIELDS: Fields = {
    ("elastic_ip", "allocation"): True,
    ("elastic_ip", "tags", "*"): False,
    ("target_groups", "*"): True,
    ("target_groups", "*", "group"): True,
    ("load_balancers", "*"): True,
}
#: The same in what the lifecycle hooks want.
LIFECYCLE_FIELDS: Fields = {("diagnosis",): True}

#: All of them, where they are in a configuration.
EVERYWHERE: tuple[tuple[str, ...], ...] = (
    *(("apps", "*", *path) for path in FIELDS),
    *(("roles", "*", "volumes", "*", *path) for path in VOLUME_FIELDS),
    *(("roles", "*", "traffic", *path) for path in TRAFFIC_FIELDS),
    *(("lifecycle", *path) for path in LIFECYCLE_FIELDS),
)


def names_in(text: str) -> list[str]:
    """The names a text interpolates, in order."""
    return [match[1] for match in _FIELD.finditer(text) if match[1]]


def texts(table: Mapping[str, Any], fields: Fields = FIELDS) -> list[tuple[tuple[str, ...], str]]:
    """Every text of a table in which values are filled in, with its path; of an app's, unless ``fields`` are others."""
    found = [one for pattern in fields for one in matching(table, pattern)]
    return [(path, text) for path, text in found if isinstance(text, str)]


def is_strict(path: tuple[str, ...], fields: Fields = FIELDS) -> bool:
    """Whether the text at a path of the table becomes part of a path or URL."""
    for pattern, strict in fields.items():
        if len(pattern) == len(path) and all(p in ("*", key) for p, key in zip(pattern, path, strict=True)):
            return strict
    raise KeyError(path)


def matching(value: Any, pattern: Sequence[str], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every value in a table at a place that ``pattern`` is of, with its path."""
    if not pattern:
        return [(path, value)]
    if isinstance(value, list):
        items = [(f"[{index}]", item) for index, item in enumerate(value)] if pattern[0] == "*" else []
    elif isinstance(value, dict):
        items = [(key, item) for key, item in value.items() if pattern[0] in ("*", key)]
    else:
        items = []
    return [found for key, item in items for found in matching(item, pattern[1:], (*path, key))]


def unknown(text: str, *, strict: bool) -> list[str]:
    """A sentence for each name in a text that nothing can fill; with ``strict``, for braces that name nothing too."""
    stray = strict and set(_FIELD.sub("", text)) & {"{", "}"}
    return [f"{text!r} has a brace that names nothing; write {{{{ or }}}} for a brace"] * bool(stray) + [
        f"{{{name}}} is not known{suggestion(name, NAMES)}; tags are written {{tag:KEY}}"
        for name in names_in(text)
        if not name.startswith("tag:") and name not in NAMES
    ]


def fill(text: str, values: Mapping[str, str], *, strict: bool) -> str:
    """Fill in a text. ``strict``: each value must be one plain word, since it becomes part of a path or URL.

    Raises ValueError with a sentence that names what is missing or does not fit.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        found = values.get(name)
        if not found:
            what = f"tag {name[4:]!r}" if name.startswith("tag:") else name
            raise ValueError(f"{{{name}}} has no value: the instance has no {what}")
        if not (_WORD if strict else _LINE).fullmatch(found):
            need = "one plain word (letters, digits and ._+=@:-)" if strict else "one line of text"
            raise ValueError(f"{{{name}}} is {found!r} on this instance, not {need}")
        return found

    return _FIELD.sub(value, text)
