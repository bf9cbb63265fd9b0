"""The unpacking process: an archive on standard input into the working directory, a fresh one.

Standard library only; ``program.py`` starts it in a bare interpreter, as the app's user, so that parsing what came from
the network needs no privilege and one core more can help. It prints ``{"files": N, "size": BYTES}`` and exits 0; or it
prints one sentence on standard error and exits with one of the codes below.
"""

from __future__ import annotations

import os
import sys

from bootagent.pull.tree import CutOff, Damaged, Refused, Tree

EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_DAMAGED = 3
EXIT_CUT_OFF = 4


def main(arguments: list[str]) -> int:
    """Unpack as told: ``tar`` or ``zip``, most bytes, most files, bytes to leave free."""
    kind, *numbers = arguments
    max_bytes, max_files, reserve = map(int, numbers)
    try:
        tree = Tree(max_bytes=max_bytes, max_files=max_files, reserve=reserve)
        if kind == "zip":
            from bootagent.pull.unzip import unzip  # here: `zipfile` takes longer to import than all the rest

            unzip(0, tree)
        else:
            from bootagent.pull.untar import untar

            untar(0, tree, max_trailing=max_bytes)
    except Refused as refused:
        return _ended(EXIT_REFUSED, str(refused))
    except CutOff as short:
        return _ended(EXIT_CUT_OFF, str(short))
    except Damaged as damaged:
        return _ended(EXIT_DAMAGED, str(damaged))
    except OSError as error:
        where = f" at {error.filename!r}" if error.filename is not None else ""
        return _ended(EXIT_FAILED, f"{error.strerror}{where}")
    os.write(1, b'{"files": %d, "size": %d}\n' % (tree.files, tree.size))
    return 0


def _ended(code: int, sentence: str) -> int:
    os.write(2, sentence.encode("utf-8", "backslashreplace") + b"\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
