"""The daemon's own log: one line for each event, shaped as the runs' logs are."""

from __future__ import annotations

import sys
import time


class Log:
    """Writes to standard error: JSON, or with ``text`` for people."""

    def __init__(self, *, text: bool) -> None:
        self._text = text

    def __call__(self, event: str, *, level: str = "info", **fields: object) -> None:
        """One line."""
        if self._text:
            line = f"bootagent: {event}" + "".join(f", {name} {value}" for name, value in fields.items())
        else:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            told = {**fields, "event": event, "level": level, "timestamp": stamp}
            line = "{" + ", ".join(f"{quoted(name)}: {quoted(value)}" for name, value in told.items()) + "}"
        try:
            if sys.stderr:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
        except (OSError, ValueError):  # whoever read it has gone
            pass


def quoted(value: object) -> str:
    """A JSON number or string; RFC 8259. The json module would cost a twentieth of our memory."""
    if isinstance(value, int):
        return str(value)
    escaped = (c if " " <= c <= "~" and c not in '"\\' else _escaped(c) for c in str(value))
    return '"' + "".join(escaped) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"
