"""A value that does not show itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

SHOWN = "(secret)"
#: What is shorter could be a word of any text; to hide it would tell more than it hides.
SHORTEST = 4


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


def redacted(text: str, hidden: Iterable[Concealed], *, cut: bool = False) -> str:
    """What a program printed without these secrets, and without their lines.

    ``cut``: it is the end of more, and may begin in the middle of one.
    """
    words = {one.reveal() for one in hidden}
    words |= {line.strip() for word in words for line in word.splitlines()}
    # As what it printed was read: machine.py.
    printed = {word.encode(errors="surrogateescape").decode(errors="replace") for word in words}
    for word in sorted((word for word in printed if len(word) >= SHORTEST), key=len, reverse=True):
        text = text.replace(word, SHOWN)
        rests = (word[begin:] for begin in range(1, len(word) - SHORTEST + 1)) if cut else ()
        rest = next((rest for rest in rests if text.startswith(rest)), "")
        text = SHOWN + text.removeprefix(rest) if rest else text
    return text
