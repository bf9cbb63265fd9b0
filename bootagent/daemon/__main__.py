"""The daemon's own process; see :func:`bootagent.daemon.launch.become`."""

import os
import sys

# Started without site-packages, for they cost memory: only this package can be imported, and the standard library.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120

from bootagent.daemon.resident import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
