"""A commit as one compressed tar archive: the same bytes every time, and looked at as it passes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import posixpath
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO

from bootagent.errors import BootagentError, UsageError
from bootagent.machine import Machine, Transfer
from bootagent.publish.tree import ToolError, Tree, isolated, search_path

#: Programs that compress standard input to standard output, reproducibly.
#: zstd: many workers give the same bytes whatever their number, but others than none do (facebook/zstd #2238), so the
#: number is fixed and never taken from the machine. Level 10 costs a third of level 15's time for 2% more bytes, and
#: its window of 4 MiB is well within what every decoder allows by default.
#: gzip: -n keeps name and time out of the header.
COMPRESSORS: dict[str, tuple[str, ...]] = {
    "zst": ("zstd", "--quiet", "--stdout", "-10", "-T4"),
    "gz": ("gzip", "--stdout", "-n", "-9"),
}
CHUNK = 1024 * 1024

#: How what is not a file's content, but stands for it, begins: see the git-lfs specification, and git-crypt's source.
_STAND_INS = {b"version https://git-lfs.github.com/spec/v1\n": "git-lfs", b"\0GITCRYPT\0": "git-crypt"}

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Bundle:
    """A compressed archive on disk.

    ``size`` and ``unpacked_size`` are in bytes, the latter the sum of its regular files; ``files`` counts the members
    of every kind, directories and links too. pax headers are no members.
    """

    path: Path
    sha256: str
    size: int
    files: int
    unpacked_size: int


def pack(machine: Machine, tree: Tree, compression: str, directory: Path) -> Bundle:
    """Archive ``tree`` into a file in ``directory``, compressed as ``COMPRESSORS`` says.

    ``export-ignore`` and ``export-subst`` of the commit's own ``.gitattributes`` are honoured, as in git-archive(1).
    Every time stamp is the commit's. Raises UsageError when no instance could use the result: it is empty, or holds a
    submodule, a stand-in for content kept elsewhere, or a link that leads out of the release. Raises CommandError
    when git or the compressor fails.
    """
    path = directory / f"bundle.tar.{compression}"
    # tar.umask: by default a group may write, and with "user" it is the umask of whoever publishes.
    argv: list[str | Path] = ["git", "-C", tree.store, "-c", "tar.umask=0022", "archive", "--format=tar", tree.commit]
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(path.open("xb"))
        git_says, compressor_says = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        git = stack.enter_context(_ended(machine.start(argv, stdout=PIPE, stderr=git_says, env=isolated(tree.store))))
        compressor = stack.enter_context(
            _ended(
                machine.start(
                    COMPRESSORS[compression],
                    stdin=PIPE,
                    stdout=output,
                    stderr=compressor_says,
                    env={"PATH": search_path()},
                )
            )
        )
        assert git.stdout and compressor.stdin  # both are PIPE
        label = f"archive {tree.commit[:12]}"
        passing = _Passing(git.stdout, compressor.stdin, lambda done: machine.tell(Transfer(label, done, None)))
        try:
            files, unpacked_size = _look_through(passing, tree)
            compressor.stdin.close()
        except BrokenPipeError:
            raise ToolError(COMPRESSORS[compression][0], compressor.wait(), compressor_says) from None
        except tarfile.TarError as error:
            git.stdout.close()  # it ends, whatever else it had to say
            if code := git.wait():
                raise ToolError("git archive", code, git_says) from error
            raise BootagentError(f"git archive made an archive that cannot be read: {error}") from error
        if code := git.wait():
            raise ToolError("git archive", code, git_says)
        if code := compressor.wait():
            raise ToolError(COMPRESSORS[compression][0], code, compressor_says)
    if not files:
        raise UsageError(
            f"commit {tree.commit[:12]} holds no file to publish", remedy="see export-ignore in .gitattributes"
        )
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return Bundle(path, digest.hexdigest(), path.stat().st_size, files, unpacked_size)


def _look_through(stream: _Passing, tree: Tree) -> tuple[int, int]:
    """Count the members and the bytes of the regular files of a tar stream, to its end."""
    files = unpacked_size = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK) as archive:
            while member := archive.next():
                files += 1
                content = archive.extractfile(member) if member.isreg() else None
                _require_usable(member, content.read(64) if content else b"", tree)
                unpacked_size += member.size if member.isreg() else 0
                archive.members.clear()  # type: ignore[attr-defined]  # else it remembers every one it has passed
    except tarfile.ReadError:
        if files:
            raise
        # Without a member; git's exit code says whether it failed or there is none.
    while stream.read(CHUNK):
        pass
    return files, unpacked_size


def _require_usable(member: tarfile.TarInfo, start: bytes, tree: Tree) -> None:
    """Raise UsageError for what no instance could use; ``start`` is how the content of a regular file begins."""
    for mark, tool in _STAND_INS.items():
        if start.startswith(mark):
            raise UsageError(
                f"{member.name} is in the commit as what {tool} puts in place of its content",
                remedy="a bundle holds what is committed: keep what it needs plainly in git, or out of it",
            )
    if _CONTROL.search(member.name + member.linkname):
        raise UsageError(
            f"{member.name!r} has a control character in its name, and an instance would refuse it",
            remedy="rename it, or leave it out with export-ignore in .gitattributes",
        )
    if member.issym() and leads_out(member.name, member.linkname):
        raise UsageError(
            f"{member.name} is a link to {member.linkname}, outside the release, and an instance would refuse it",
            remedy="list it under linked_files or linked_dirs, or leave it out with export-ignore in .gitattributes",
        )
    if member.name in tree.submodules:
        raise UsageError(
            f"{member.name} is a submodule, which an archive of the commit leaves empty",
            remedy="commit its files instead, or leave it out with export-ignore in .gitattributes",
        )


def leads_out(name: str, target: str) -> bool:
    """Whether the symbolic link ``name`` of an archive, pointing at ``target``, leads out of what is unpacked.

    By the words alone: a link that leads out only by way of another one is for the unpacker to find.
    """
    reached = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    return target.startswith("/") or reached == ".." or reached.startswith("../")


class _Passing(io.RawIOBase):
    """Whoever reads from this, reads ``source``; all of it also goes on to ``sink``."""

    def __init__(self, source: IO[bytes], sink: IO[bytes], tell: Callable[[int], None]) -> None:
        self._source = source
        self._sink = sink
        self._tell = tell
        self._done = 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes of the source; none at its end. Raises BrokenPipeError when the sink takes no more."""
        chunk = self._source.read(size)
        self._sink.write(chunk)
        self._done += len(chunk)
        self._tell(self._done)
        return chunk


@contextlib.contextmanager
def _ended(process: Popen[bytes]) -> Iterator[Popen[bytes]]:
    """The process is gone after the block, however that is left."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        with contextlib.suppress(BrokenPipeError):  # what was still to be written is of no use
            process.__exit__(None, None, None)
        process.wait()
