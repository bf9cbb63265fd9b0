"""The unpacking process: an archive on standard input into the working directory, a fresh one.

Standard library only; ``program.py`` starts it in a bare interpreter. It becomes the app's user before it reads
anything, so that parsing what came from the network needs no privilege, and it is a process of its own because decoding
and unpacking would hold one interpreter in turns. It prints ``{"files": N, "size": BYTES}`` and exits 0; or it prints
one sentence on standard error and exits with one of the codes below.
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
    """Unpack as told: ``tar`` or ``zip``, the most bytes and files, bytes to leave free; then who to be."""
    kind, *words = arguments
    max_bytes, max_files, reserve, *ids = map(int, words)
    try:
        # Each only when wanted: `zipfile` takes longer to import than all the rest. And now: later may be too late.
        if kind == "zip":
            from bootagent.pull.unzip import unzip
        else:
            from bootagent.pull.untar import untar
        if ids:
            _become(*ids)
        tree = Tree(max_bytes=max_bytes, max_files=max_files, reserve=reserve)
        if kind == "zip":
            unzip(0, tree)
        else:
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


def _become(uid: int, gid: int, *groups: int) -> None:
    """Give up what we are for good, the groups first: setuid(2) takes away the right to change them."""
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _ended(code: int, sentence: str) -> int:
    os.write(2, sentence.encode("utf-8", "backslashreplace") + b"\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
