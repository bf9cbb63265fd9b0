"""The command that starts the unpacking process.

It must start fast, and end up as a user who may be able to read neither our files nor our interpreter. So its few
modules travel as source text on the command line of a bare interpreter (``-I``: no environment, no user site; ``-S``:
no site), which changes to that user once everything is loaded and before the first byte is read.
"""

from __future__ import annotations

import functools
import pkgutil
import sys

from bootagent.machine import Identity

_PACKAGE = "bootagent.pull"
#: Puts each source in place as the module it is, then runs the last one as the program.
_LOADER = """\
import sys
for name, source in {sources!r}:
    module = type(sys)(name)
    sys.modules[name] = module
    exec(compile(source, "<" + name + ">", "exec"), module.__dict__)
sys.exit(module.main(sys.argv[1:]))
"""


def unpacker(kind: str, *, max_bytes: int, max_files: int, reserve: int, identity: Identity | None = None) -> list[str]:
    """The command that unpacks a ``tar`` or ``zip`` archive from its standard input into its working directory.

    It is to be started as we are, and becomes ``identity`` by itself.
    """
    numbers = [max_bytes, max_files, reserve]
    if identity:
        numbers += [identity.uid, identity.gid, *identity.groups]
    return [sys.executable, "-I", "-S", "-c", _program(kind), kind, *map(str, numbers)]


@functools.cache
def _program(kind: str) -> str:
    modules = ("tree", "unzip" if kind == "zip" else "untar", "unpack")
    return _LOADER.format(sources=[(f"{_PACKAGE}.{name}", _source(name)) for name in modules])


def _source(name: str) -> str:
    data = pkgutil.get_data(_PACKAGE, f"{name}.py")
    if data is None:  # pragma: no cover - a loader without data, which neither a directory nor a zip archive has
        raise RuntimeError(f"the source of {_PACKAGE}.{name} is missing from this installation")
    return data.decode()
