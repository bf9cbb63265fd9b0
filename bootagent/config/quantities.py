"""Durations and sizes as a configuration writes them."""

from __future__ import annotations

import re

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def seconds(value: float | str) -> float:
    """A duration in seconds from a number of them or text such as ``"5m"``, whose form the schema has checked."""
    if not isinstance(value, str):
        return float(value)
    number, unit = _parted(value)
    return number * _UNITS[unit]


def size(value: int | str) -> int:
    """A size in bytes from a number of them or text such as ``"20GB"``, whose form the schema has checked."""
    if not isinstance(value, str):
        return value
    number, unit = _parted(value)
    return int(number * _BYTES[unit])


def _parted(value: str) -> tuple[float, str]:
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]+)", value)
    assert match, value  # the schema's pattern
    return float(match[1]), match[2]
