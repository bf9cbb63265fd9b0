"""One variable in a file, as chpst(8) reads it.

The first line counts, without the blanks and tabs at its end; a NUL in it stands for a newline. An empty file unsets
the variable, a file with nothing but a newline sets it to nothing.
"""

from __future__ import annotations

from bootagent.errors import BootagentError

#: The longest ``NAME=value`` a program can be given, its NUL included: MAX_ARG_STRLEN, execve(2).
MAX_BYTES = 128 * 1024
MAX_NAME_BYTES = 255


def decode(content: bytes) -> str | None:
    """The value a file gives its variable; None: it unsets it. Bytes that are no UTF-8 survive as surrogates."""
    if not content:
        return None
    line = content.partition(b"\n")[0].rstrip(b" \t")
    return line.replace(b"\0", b"\n").decode(errors="surrogateescape")


def encode(value: str | None) -> bytes:
    """The file of a value, or what unsets it. See :func:`value_problem` for what has none."""
    if value is None:
        return b""
    return value.replace("\n", "\0").encode(errors="surrogateescape") + b"\n"


def name_problem(name: str) -> str | None:
    """Why a file cannot bear the name of this variable, as a clause; None when it can."""
    if not name:
        return "it has no name"
    if name.startswith("."):
        return "chpst passes over names that begin with a dot"
    for char in "=/\0\n":
        if char in name:
            return f"a name cannot hold {char!r}"
    try:
        if len(name.encode(errors="surrogateescape")) > MAX_NAME_BYTES:
            return f"a name has at most {MAX_NAME_BYTES} bytes"
    except UnicodeEncodeError:
        return "its name is no text"
    return None


def value_problem(name: str, value: str) -> str | None:
    """Why a file cannot hold this value, as a clause that does not have it; None when it can."""
    if "\0" in value:
        return "its value holds a NUL, which no variable can"
    if value.endswith((" ", "\t")):
        return "its value ends in a blank or tab, which chpst cuts off"
    try:
        size = len(name.encode(errors="surrogateescape")) + len(value.encode(errors="surrogateescape")) + 2
    except UnicodeEncodeError:
        return "its value is no text"
    if size > MAX_BYTES:
        return f"it has {size} bytes, and no program can be given more than {MAX_BYTES}"
    return None


def require(name: str, value: str | None, where: str) -> None:
    """Raise BootagentError for a variable that no file can hold; ``where`` says whence it comes, "ssm:/web/" say."""
    problem = name_problem(name) or (None if value is None else value_problem(name, value))
    if problem:
        raise BootagentError(f"{name[:80]!r} of {where} cannot be a variable: {problem}")
