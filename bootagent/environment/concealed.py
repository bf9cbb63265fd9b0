"""A value that does not show itself."""

from __future__ import annotations

from typing import NoReturn

SHOWN = "(secret)"


class Concealed:
    """A secret text. Whatever prints, formats, logs or compares it sees nothing; only :meth:`reveal` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself, for where it is to be used."""
        return self._value

    def __repr__(self) -> str:
        return SHOWN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Concealed) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not to be copied away")
