"""The scratch directory that is the simulated machine's root, and its removal whatever it holds by then."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bootagent import mounts
from bootagent.errors import BootagentError, UsageError


@contextlib.contextmanager
def scratch_root(chosen: Path | None) -> Iterator[Path]:
    """A fresh root, or the empty or absent directory ``chosen``; nothing of it is left afterwards.

    Raises UsageError when ``chosen`` holds anything: it will all be deleted.
    """
    if chosen is None:
        root, ours = Path(tempfile.mkdtemp(prefix="bootagent-sandbox-")), True
    else:
        root, ours = chosen.absolute(), not chosen.exists()
        if not ours and (not root.is_dir() or any(root.iterdir())):
            raise UsageError(f"{root} is not an empty directory", remedy="name one that is, or none")
        root.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        root.chmod(0o755)  # the app's user must get in, as on any machine
    try:
        yield root
    finally:
        clear(root)
        if ours:
            root.rmdir()


def clear(root: Path) -> None:
    """Unmount what is mounted below ``root``, then delete everything in it.

    Raises BootagentError, with nothing deleted, when something cannot be unmounted: it may be someone's data.
    """
    for point in reversed(mounts_below(root)):
        done = subprocess.run(["umount", point], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BootagentError(f"{point} is still mounted, so {root} is not deleted: {done.stderr.strip()}")
    for directory, names, _ in os.walk(root):
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink() and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                path.chmod(0o700)  # mountpoints are mode 000
    for entry in root.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def mounts_below(root: Path) -> list[Path]:
    """The mount points below ``root``, in the order they were mounted, as this thread's namespace has them.

    A scratch root was empty, so all of them have come since. It may be a mount point itself, or be on a mount that
    hides others below the same path: those are somebody else's.
    """
    real = root.resolve()
    text = Path("/proc/thread-self/mountinfo").read_text(errors="surrogateescape")
    points = [Path(mount.point) for mount in mounts.parse(text)]
    holding = [index for index, point in enumerate(points) if point == real or point in real.parents]
    return [point for point in points[max(holding, default=-1) + 1 :] if real in point.parents]
