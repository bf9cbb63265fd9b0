"""The command that starts the unpacking process.

It must run as a user who may read neither our files nor our zip archive, and start fast. So its few modules travel as
source text on the command line of a bare interpreter (``-I``: no environment, no user site; ``-S``: no site).
"""

from __future__ import annotations

import functools
import pkgutil
import sys

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


def unpacker(kind: str, *, max_bytes: int, max_files: int, reserve: int) -> list[str]:
    """The command that unpacks a ``tar`` or ``zip`` archive from its standard input into its working directory."""
    return [
        sys.executable, "-I", "-S", "-c", _program(kind), kind, str(max_bytes), str(max_files), str(reserve),
    ]  # fmt: skip


@functools.cache
def _program(kind: str) -> str:
    modules = ("tree", "unzip" if kind == "zip" else "untar", "unpack")
    return _LOADER.format(sources=[(f"{_PACKAGE}.{name}", _source(name)) for name in modules])


def _source(name: str) -> str:
    data = pkgutil.get_data(_PACKAGE, f"{name}.py")
    if data is None:  # pragma: no cover - a loader without data, which neither a directory nor a zip archive has
        raise RuntimeError(f"the source of {_PACKAGE}.{name} is missing from this installation")
    return data.decode()
