"""Check a document against ``schema.json``: the part of JSON Schema that file uses, with sentences for people.

Beside each ``pattern`` the file has a word of its own, ``form``: what a value is to be, as an object of "is not".
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

Schema = dict[str, Any]
Found = tuple[tuple[str, ...], str]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
_CALLED = {
    "object": "a table",
    "array": "a list",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


@functools.cache
def text() -> str:
    """The JSON Schema (draft 2020-12) of the configuration, as published to editors."""
    return resources.files("bootagent").joinpath("schema.json").read_text(encoding="utf-8")


@functools.cache
def root() -> Schema:
    """The schema, parsed."""
    schema: Schema = json.loads(text())
    return schema


def complete(value: Any, schema: Schema | None = None) -> Any:
    """A valid value with the schema's defaults filled in."""
    schema = followed(root() if schema is None else schema)
    if "oneOf" in schema:
        fitting = [branch for branch in map(followed, schema["oneOf"]) if not list(check(value, branch))]
        return complete(value, fitting[0])
    if isinstance(value, list):
        return [complete(item, schema["items"]) for item in value]
    if not isinstance(value, dict):
        return value
    known: Schema = schema.get("properties", {})
    others: Schema = schema.get("additionalProperties") or {}
    filled = {key: complete(item, known.get(key, others)) for key, item in value.items()}
    missing = {key: item["default"] for key, item in known.items() if key not in value and "default" in item}
    return filled | {key: complete(item, known[key]) for key, item in missing.items()}


def check(value: Any, schema: Schema | None = None, path: tuple[str, ...] = ()) -> Iterator[Found]:
    """Yield (key path, sentence) for everything in ``value`` that the schema does not allow."""
    schema = followed(root() if schema is None else schema)
    if "oneOf" in schema:
        yield from _check_one_of(value, schema["oneOf"], path)
        return
    if "const" in schema:
        if value != schema["const"]:
            yield path, f"{value!r} is not {schema['const']!r}"
        return
    kind = schema.get("type")
    if kind and not _is(value, kind):
        yield path, f"{_shown(value)} is not {_CALLED.get(kind, f'a {kind}')}"
    elif isinstance(value, dict):
        yield from _check_table(value, schema, path)
    elif isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield path, "is empty"
        for index, item in enumerate(value):
            yield from check(item, schema.get("items", {}), (*path, f"[{index}]"))
    else:
        yield from _check_scalar(value, schema, path)


def _check_table(value: dict[str, Any], schema: Schema, path: tuple[str, ...]) -> Iterator[Found]:
    known: Schema = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    for key in schema.get("required", []):
        if key not in value:
            yield (*path, key), "is missing"
    for key, item in value.items():
        where = (*path, key)
        if key in known:
            yield from check(item, known[key], where)
        elif others is False:
            yield where, f"is not a known key{suggestion(key, known)}"
        else:
            for _, sentence in check(key, schema.get("propertyNames", {}), ()):
                yield where, f"is no good name: {sentence}"
            if isinstance(others, dict):
                yield from check(item, others, where)


def _check_scalar(value: Any, schema: Schema, path: tuple[str, ...]) -> Iterator[Found]:
    if "enum" in schema and value not in schema["enum"]:
        yield path, f"{_shown(value)} is not one of {', '.join(map(repr, schema['enum']))}"
    if "minimum" in schema and not value >= schema["minimum"]:  # so put, because of nan
        yield path, f"{value} is less than {schema['minimum']}"
    if "maximum" in schema and not value <= schema["maximum"]:
        yield path, f"{value} is more than {schema['maximum']}"
    if "pattern" in schema and not _matches(schema["pattern"], value):
        yield path, f"{_shown(value)} is not {schema['form']}"


def _check_one_of(value: Any, branches: Sequence[Schema], path: tuple[str, ...]) -> Iterator[Found]:
    branches = [followed(branch) for branch in branches]
    fitting = [branch for branch in branches if _is(value, branch["type"])]
    tagged = [branch for branch in fitting if "type" in branch.get("properties", {})]
    if tagged:  # tables told apart by their "type"
        kinds = [branch["properties"]["type"]["const"] for branch in tagged]
        if "type" not in value:
            yield (*path, "type"), f"is missing; one of {', '.join(map(repr, kinds))}"
            return
        fitting = [branch for branch, kind in zip(tagged, kinds, strict=True) if kind == value["type"]]
        if not fitting:
            yield (*path, "type"), f"{value['type']!r} is not one of {', '.join(map(repr, kinds))}"
            return
    if not fitting:
        called = " or ".join(dict.fromkeys(_CALLED.get(branch["type"], f"a {branch['type']}") for branch in branches))
        yield path, f"{_shown(value)} is not {called}"
        return
    if "enum" in fitting[0] and value not in fitting[0]["enum"]:
        others = [_CALLED[branch["type"]] for branch in branches if branch is not fitting[0]]
        yield path, f"{_shown(value)} is neither {' nor '.join([*map(json.dumps, fitting[0]['enum']), *others])}"
        return
    yield from check(value, fitting[0], path)


def _matches(pattern: str, value: str) -> bool:
    """Its regular expressions are ECMA-262's, whose ``$`` is the very end; Python's lets a newline follow."""
    return re.search(pattern.replace("$", r"\Z"), value) is not None


def followed(schema: Schema) -> Schema:
    """The same with what it refers to in its place."""
    while "$ref" in schema:
        target: Schema = root()["$defs"][schema["$ref"].rpartition("/")[2]]
        # A key's own description explains the key; the definition's explains the form.
        schema = {**{key: item for key, item in schema.items() if key not in ("$ref", "description")}, **target}
    return schema


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _shown(value: Any) -> str:
    words = json.dumps(value, default=str, ensure_ascii=False)
    return words if len(words) <= 60 else f"{words[:57]}..."


def suggestion(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """``; did you mean X?`` for a near miss, otherwise the list of what there is."""
    return _near(word, known) or _listed(known)


def choices(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """As :func:`suggestion`, and the list in any case: for names that the configuration gives."""
    near = _near(word, known)
    return near + (_listed(known).removeprefix(";") if near else _listed(known))


def _near(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _listed(known: Sequence[str] | dict[str, Any]) -> str:
    return f"; known: {', '.join(sorted(known))}" if known else ""
