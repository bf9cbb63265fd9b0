"""The image source: a tree that was baked into the image."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from bootagent.config.model import ImageSource
from bootagent.errors import BootagentError
from bootagent.machine import Machine

#: The revision of what is in the image and stays there: there is only one.
IN_PLACE = "image:in-place"
MAX_BYTES = 4096
MAX_PACKED_BYTES = 16 * 1024 * 1024
_SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9._/@+=:-]{1,128}")


def resolve(machine: Machine, source: ImageSource) -> tuple[str, str, str]:
    """The id, the label and the path of the baked tree that ``source`` names.

    It is known by its REVISION file, or the commit its git work tree is at, or its inode and time.

    No more is read: the disk of a fresh instance is loaded from S3 as it is read. A tree that changes without any of
    these is taken for the same. Raises BootagentError when it is not there.
    """
    if source.path is None:
        raise BootagentError("the image's source names no tree", remedy="set source.path")
    path, real = source.path, machine.real(source.path)
    try:
        found = real.stat()
    except OSError as error:
        raise BootagentError(
            f"the image has no {path}: {error.strerror}", remedy="bake it into the image, or correct source.path"
        ) from None
    if not real.is_dir():
        raise BootagentError(f"{path} is not a directory", remedy="name the directory that is to become a release")
    label = _revision(real) or _commit(real)
    # Of a directory that was never touched since the image was made, every instance says the same.
    identity = label or f"{found.st_ino}:{found.st_mtime_ns}"
    return f"image:{identity}", label or f"image-{found.st_mtime_ns}", path


def in_place(machine: Machine, deploy_to: str) -> None:
    """See that what runs in the image itself is there. Raises BootagentError when it is not."""
    if not machine.real(deploy_to).is_dir():
        raise BootagentError(
            f"the image has no directory {deploy_to}", remedy="make it in the image, or correct deploy_to"
        )


def _revision(tree: Path) -> str | None:
    """The one word of the REVISION file, as Capistrano and bootagent write it."""
    word = (_read(tree / "REVISION", MAX_BYTES) or "").strip()
    return word if _WORD.fullmatch(word) else None


def _commit(tree: Path) -> str | None:
    """The commit that HEAD stands for: gitrepository-layout(5). Read by hand: git would mind whose tree it is."""
    git = tree / ".git"
    if pointer := _read(git, MAX_BYTES):  # of a submodule or another work tree
        git = tree / pointer.removeprefix("gitdir:").strip()
    head = (_read(git / "HEAD", MAX_BYTES) or "").strip()
    if _SHA.fullmatch(head):
        return head
    name = head.removeprefix("ref:").strip()
    if not name.startswith("refs/") or ".." in name:
        return None
    common = git / (_read(git / "commondir", MAX_BYTES) or ".").strip()
    sha = (_read(common / name, MAX_BYTES) or "").strip()
    if _SHA.fullmatch(sha):
        return sha
    packed = re.search(rf"^(\S+) {re.escape(name)}$", _read(common / "packed-refs", MAX_PACKED_BYTES) or "", re.M)
    return packed[1] if packed and _SHA.fullmatch(packed[1]) else None


def _read(path: Path, most: int) -> str | None:
    """The beginning of a regular file; None when there is none."""
    try:
        # O_NONBLOCK: whoever opens a FIFO would else wait for its writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            return file.read(most).decode(errors="replace")
    except OSError:
        return None
