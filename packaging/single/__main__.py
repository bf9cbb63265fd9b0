"""bootagent in a single file: unpacks itself once, and is from there on the bootagent it unpacked.

botocore reads its data from real files, and a module compiled once starts sooner. What is unpacked is imported from
only while nobody else could have written to it. Written so that an old Python, too, can read it and say what is needed.
"""

# ruff: noqa: PTH100, PTH103, PTH111, PTH117, PTH118, PTH120 - every command begins here, so it imports little

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys

DIGEST = "@DIGEST@"  # of the tree in this file
NEEDS = (3, 10)
SHARED = "/var/cache/bootagent"


def main() -> None:
    """Become the bootagent in this file; does not return."""
    if sys.version_info[:2] < NEEDS:
        sys.exit(f"bootagent needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]}")
    os.umask(0o022)
    archive = os.path.abspath(sys.argv[0])
    try:
        tree, lock = unpacked(archive)
    except OSError as error:
        hint = "" if os.geteuid() == 0 else "; XDG_CACHE_HOME may name a directory of your own"
        sys.exit(f"bootagent: cannot unpack itself: {error.filename}: {error.strerror}{hint}")
    except KeyboardInterrupt:
        sys.exit(130)
    os.set_inheritable(lock, True)  # kept for as long as the tree is in use
    if sys.argv[1:2] == ["install"]:
        words = [f"{tree}/bin/install", archive, *sys.argv[2:]]
    else:
        words = [f"{tree}/bin/bootagent", *sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, "-I", "-S", *words])


def unpacked(archive: str) -> tuple[str, int]:
    """The tree of this file, unpacked if it is not yet, and a descriptor that keeps it from being removed.

    Raises OSError when there is no place for it, or others could have written to it.
    """
    cache = os.path.realpath(own_cache())  # no link on the way may be turned once it was looked at
    lock = in_use(f"{cache}/{DIGEST}")
    if lock is not None:
        return f"{cache}/{DIGEST}", lock
    try:
        lock = in_use(f"{SHARED}/{DIGEST}")  # what root has unpacked will do
    except OSError:
        lock = None
    if lock is not None:
        return f"{SHARED}/{DIGEST}", lock
    import unpack

    os.makedirs(cache, mode=0o755, exist_ok=True)
    refuse_writable(cache)
    while lock is None:
        try:
            unpack.into(cache, DIGEST, archive)
        except unpack.DamagedError as error:
            sys.exit(f"bootagent: {archive} is damaged: {error}")
        lock = in_use(f"{cache}/{DIGEST}")  # None: removed at once, by another version that found nobody using it
    return f"{cache}/{DIGEST}", lock


def own_cache() -> str:
    """Where this user's trees are; root's is not for the environment to say."""
    if os.geteuid() == 0:
        return SHARED
    named = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(named if os.path.isabs(named) else os.path.expanduser("~/.cache"), "bootagent")


def in_use(tree: str) -> int | None:
    """A descriptor that holds on to the tree; None when there is none.

    Raises OSError when others could have written to it.
    """
    try:
        lock = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        same = os.path.samestat(os.fstat(lock), os.lstat(tree))
    except FileNotFoundError:
        same = False
    if not same:  # removed between the two
        os.close(lock)
        return None
    refuse_writable(tree)
    return lock


def refuse_writable(directory: str) -> None:
    """Raise OSError if anybody but root and this user could change what is below."""
    place = directory
    while True:
        found = os.lstat(place)
        others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        # In a sticky directory nobody can move what is another's.
        if found.st_uid not in (0, os.geteuid()) or (others and not found.st_mode & stat.S_ISVTX):
            raise OSError(errno.EPERM, "others could change what is in it; chown it to yourself, chmod go-w", place)
        if place == "/":
            return
        place = os.path.dirname(place)


if __name__ == "__main__":
    main()
