"""Dumps of an environment: ``.env`` files and what ``heroku config`` prints, with ``--shell``, ``--json`` or neither.

Text is one assignment after the other, as a shell would read it: ``export`` before it and a comment after it are
allowed, ``'…'`` is taken as it is, ``"…"`` with its escapes, both over several lines, and what stands together belongs
together, as in ``'it'\\''s'``. A value that begins without a quote is taken as it is up to a blank and ``#``, or the
end of its line: its backslashes, too, for so do the readers of ``.env`` files. Nothing is ever expanded: a ``$`` is a
``$``. ``unset NAME``, or null in JSON, is a variable that is unset. Two values of one name are refused: one would be
lost.

A listing, as ``heroku config`` prints it for people, is ``NAME: value`` line by line, the values in one column. Each is
taken as it is, and one of several lines is refused: where it ends nobody can tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from bootagent.errors import BootagentError

Variables = Mapping[str, str | None]

_START = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*")
_UNSET = re.compile(r"unset[ \t]+([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*(?:#[^\n]*)?(?=\r?\n|\r?$)")
_BARE = re.compile(r"[^\n]*?(?=[ \t]+#|[ \t]*\r?(?:\n|$))")
_WORD = re.compile(r"[^\s'\"\\]+")
_LISTED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*):([ \t]*)(.*)")
_HEADER = "=== "
#: What stands before a sign that something other than a sign follows. Of anything else nobody knows that it is a name.
_NAMED = re.compile(r"[ \t]*([A-Za-z0-9_. -]{1,40}?)[ \t]*[=:](?=[^=\s])")
_REST = re.compile(r"[ \t]*(?:(?<=[ \t])#[^\n]*)?(?:\r?\n|\r?$)")
_SPACE = re.compile(r"(?:\s+|#[^\n]*)*")
#: What a shell can name; a reader of .env files may take more, and so does this one.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NO_UTF8 = re.compile(r"[\udc80-\udcff]")
_PLAIN = re.compile(r"[A-Za-z0-9_/:.,@%+-]+")
_KINDS = {bool: "true or false", dict: "a table", list: "a list"}
#: Those of a shell, and what .env files say a newline with.
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$", "`": "`"}


def parse(content: bytes, shown: str = "the dump") -> dict[str, str | None]:
    """The variables of a dump, which ``shown`` names. Raises BootagentError, which has names and no values."""
    text = content.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")
    try:
        if text.lstrip().startswith("{"):
            return _json(text)
        return _listing(text) if _is_listing(text) else _assignments(text)
    except BootagentError as error:
        raise BootagentError(f"{shown}: {error.sentence}", remedy=error.remedy) from None


def text(variables: Variables) -> str:
    """A dump that a shell reads, and :func:`parse`. Raises BootagentError for a name that is none in a shell."""
    lines = []
    for name, value in sorted(variables.items()):
        if not _NAME.fullmatch(name):
            raise BootagentError(
                f"{name[:80]!r} is no name for a shell", remedy="write it as JSON, which holds it: --json"
            )
        lines.append(f"unset {name}\n" if value is None else f"{name}={_quoted(value)}\n")
    return "".join(lines)


def to_json(variables: Variables) -> str:
    """A dump as JSON, for any name and value; of bytes that are no UTF-8 each is a surrogate of its own, escaped."""
    found = json.dumps(dict(sorted(variables.items())), indent=2, ensure_ascii=False)
    return _NO_UTF8.sub(lambda byte: f"\\u{ord(byte[0]):04x}", found) + "\n"


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    if "'" in value and not set('"\\$`!') & set(value):  # which more readers of .env files know than the other way
        return f'"{value}"'
    return "'" + value.replace("'", "'\\''") + "'"


def _json(text: str) -> dict[str, str | None]:
    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        twice = next((name for name, value in pairs if found[name] != value), None)
        if twice is not None:
            raise BootagentError(f"{twice[:80]!r} has two values", remedy="keep one")
        return found

    try:
        found: Any = json.loads(text, object_pairs_hook=table)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", "?")
        raise BootagentError(f"line {line}: it begins like JSON, and is none") from None
    for name, value in found.items():
        if value is not None and not isinstance(value, str):
            kind = _KINDS.get(type(value), "a number")
            raise BootagentError(f"the value of {name[:80]!r} is {kind}, not a text", remedy="put it in quotes")
    return dict(found)


def _is_listing(text: str) -> bool:
    first = text.lstrip().partition("\n")[0]
    listed = _LISTED.fullmatch(first.rstrip("\r"))
    return first.startswith(_HEADER) or (listed is not None and bool(listed[2]))


def _listing(text: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    columns: set[int] = set()
    gaps: set[int] = set()
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line.strip() or (line.startswith(_HEADER) and not found):
            continue
        listed = _LISTED.fullmatch(line)
        if listed and listed[3]:
            columns.add(listed.start(3))
            gaps.add(len(listed[2]))
        # A line of a longer value may look like one of its own, but hardly stand in the same column.
        if listed is None or (len(columns) > 1 and gaps != {1}):
            raise BootagentError(
                f"line {number} is no NAME: value like those before it, and may belong to the value of another",
                remedy="take what heroku config --shell or --json prints",
            )
        _add(found, listed[1], listed[3], number)
    return found


def _assignments(text: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    place = 0
    while (place := _skipped(text, place)) < len(text):
        line, value = _line(text, place), None
        if start := _UNSET.match(text, place):
            place = start.end()
        elif start := _START.match(text, place):
            value, place = _value(text, start.end(), start[1])
        else:
            named = _NAMED.match(text, place)
            what = f", {named[1]!r}," if named else ""
            raise BootagentError(
                f"line {line}{what} is no assignment NAME=value",
                remedy="put a value of several lines in quotes" if not named else None,
            )
        _add(found, start[1], value, line)
    return found


def _add(found: dict[str, str | None], name: str, value: str | None, line: int) -> None:
    if name in found and found[name] != value:
        raise BootagentError(f"line {line} gives {name} another value than a line before it", remedy="keep one")
    found[name] = value


def _skipped(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def _value(text: str, place: int, name: str) -> tuple[str, int]:
    """A value and where the next line begins."""
    if text[place : place + 1] not in ("'", '"') and not text.startswith("\\'", place):
        if text[place : place + 1] == "#" and text[place - 1] in " \t":
            return "", text.find("\n", place) if "\n" in text[place:] else len(text)
        bare = _BARE.match(text, place)
        assert bare is not None
        end = text.find("\n", bare.end())
        return bare[0], len(text) if end < 0 else end + 1
    parts: list[str] = []
    while place < len(text):
        if rest := _REST.match(text, place):
            return "".join(parts), rest.end()
        part, place = _part(text, place, name)
        parts.append(part)
    return "".join(parts), place


def _part(text: str, place: int, name: str) -> tuple[str, int]:
    """A piece of a value that stands together with others, and where it ends."""
    match text[place]:
        case "'":
            end = text.find("'", place + 1)
            if end < 0:
                raise _unclosed(text, place, name)
            return text[place + 1 : end], end + 1
        case '"':
            return _double_quoted(text, place, name)
        case "\\" if place + 1 < len(text) and text[place + 1] != "\n":
            return text[place + 1], place + 2
    word = _WORD.match(text, place)
    if word is None:
        raise BootagentError(f"line {_line(text, place)}: there is more after the value of {name}")
    return word[0], word.end()


def _double_quoted(text: str, place: int, name: str) -> tuple[str, int]:
    parts: list[str] = []
    here = place + 1
    while here < len(text):
        char = text[here]
        if char == '"':
            return "".join(parts), here + 1
        if char == "\\" and text[here + 1 : here + 2] in _ESCAPES:
            parts.append(_ESCAPES[text[here + 1]])
            here += 2
        else:
            parts.append(char)
            here += 1
    raise _unclosed(text, place, name)


def _unclosed(text: str, place: int, name: str) -> BootagentError:
    return BootagentError(f"line {_line(text, place)}: the quote in the value of {name} has no end")


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1
