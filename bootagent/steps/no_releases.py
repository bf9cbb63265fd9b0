"""What this agent has released of an app, gone; what others have, left as it was."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bootagent import beneath, footprint
from bootagent.errors import BootagentError
from bootagent.machine import Machine, Note

#: What a killed run leaves of a release, or of the mirror.
_HALF_MADE = re.compile(r"\.([0-9]{14}|repo)\.(partial|removed)")
#: Its lines in revisions.log.
_OURS = re.compile(r"(Branch .* deployed as release [0-9]{14} by bootagent|bootagent rolled back to release [0-9]{14})")


@dataclass(frozen=True)
class NoReleases:
    """Of ``app`` none of the releases in ``names`` is left, nor the mirror they came from, nor what tells of them.

    Without ``names``, as of an app that is read in place, ``deploy_to`` is not touched: it may be on a dead server.
    ``current`` is where it was before the first of them, or nowhere. ``own`` are files and directories of the agent's
    own that go, too.
    """

    app: str
    deploy_to: str
    names: tuple[str, ...]
    own: tuple[str, ...]

    def __str__(self) -> str:
        return f"remove what bootagent has released of {self.app} ({', '.join(self.names) or 'nothing'})"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether it is gone."""
        with self._held(machine) as root:
            if root and (self._doomed(machine, root) or self._names_ours(root)):
                return False
            log, kept = self._log(root)
            return log == kept and not any(machine.real(path).exists() for path in self.own)

    def apply(self, machine: Machine) -> None:
        """Put current back first, then remove. Raises BootagentError where the way to ``deploy_to`` leads by a link."""
        removed: list[str] = []
        with self._held(machine) as root:
            if root:
                removed = self._doomed(machine, root)
                if self._names_ours(root):
                    self._put_current_back(machine, root)
                for path in removed:
                    beneath.remove_tree(machine, root, path)
                self._mend_log(root)
        for own in self.own:
            machine.remove_tree(machine.real(own))
        footprint.forget(machine, *(f"{self.deploy_to}/{path}" for path in ("current", "repo")))
        if removed:
            machine.tell(Note("removed", {"what": ", ".join(f"{self.deploy_to}/{path}" for path in removed)}))

    @contextlib.contextmanager
    def _held(self, machine: Machine) -> Iterator[Path | None]:
        """The directory, held open: whoever owns one above it may move it. None: it is not to be touched."""
        if not self.names or not machine.real(self.deploy_to).is_dir():
            yield None
            return
        with beneath.directory(machine.root, self.deploy_to.strip("/")) as held:
            yield Path(f"/proc/self/fd/{held}")

    def _doomed(self, machine: Machine, root: Path) -> list[str]:
        found = [name for name in beneath.subdirectories(root, "releases") if name in self.names or _is_half_made(name)]
        doomed = [f"releases/{name}" for name in found]
        if self._was_absent(machine, "repo"):
            doomed += [name for name in beneath.subdirectories(root, ".") if name == "repo" or _is_half_made(name)]
        return doomed

    def _was_absent(self, machine: Machine, path: str) -> bool:
        noted = footprint.before(machine, f"{self.deploy_to}/{path}")
        return noted is not None and noted.mode is None

    def _names_ours(self, root: Path) -> bool:
        target = beneath.read_link(root, "current")
        return target is not None and target.rstrip("/").rpartition("/")[2] in self.names

    def _put_current_back(self, machine: Machine, root: Path) -> None:
        noted = footprint.before(machine, f"{self.deploy_to}/current")
        ours = noted is not None and (noted.target or "").rstrip("/").rpartition("/")[2] in self.names
        if noted and noted.target is not None and not ours and (root / noted.target).exists():
            machine.link(root / "current", noted.target)
            os.chown(root / "current", noted.uid, noted.gid, follow_symlinks=False)
        else:
            (root / "current").unlink(missing_ok=True)

    def _log(self, root: Path | None) -> tuple[bytes, bytes]:
        """revisions.log as it is, and without our lines."""
        if root is None:
            return b"", b""
        try:
            text = beneath.read(root, "revisions.log")[0]
        except (OSError, BootagentError):
            return b"", b""
        lines = text.splitlines(keepends=True)
        return text, b"".join(line for line in lines if not _OURS.fullmatch(line.decode(errors="replace").rstrip("\n")))

    def _mend_log(self, root: Path) -> None:
        text, kept = self._log(root)
        if text == kept:
            return
        with beneath.directory(root) as held:
            log = os.open("revisions.log", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=held)
        with os.fdopen(log, "r+b") as file:  # in place: it keeps its owner
            file.write(kept)
            file.truncate()


def _is_half_made(name: str) -> bool:
    return _HALF_MADE.fullmatch(name) is not None
