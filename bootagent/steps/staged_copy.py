"""A release directory copied from another one: of the image, or on a mount."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from bootagent import beneath
from bootagent.errors import BootagentError, CommandError, MachineError, plain
from bootagent.machine import Machine, Note

#: What a server or a disk is to blame for, and not whoever made the tree.
_PASSING = re.compile(r"Stale file handle|Input/output error|No space left|Disk quota|No such file|timed out")


@dataclass(frozen=True)
class StagedCopy:
    """``release`` holds a copy of the directory ``origin``, all of it but .git: the directory gets its name last.

    The app's user copies, so that he has to be able to read it, and owns the copy. ``within`` is in seconds.
    """

    release: str
    origin: str
    within: float
    user: str
    group: str | None

    def __str__(self) -> str:
        return f"copy {self.origin} to {self.release}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether the release has its name."""
        return machine.real(self.release).is_dir()

    def apply(self, machine: Machine) -> None:
        """Copy into a fresh directory beside it, then rename. A failed try leaves nothing.

        Raises MachineError when the origin does not answer, is not there or is empty, BootagentError when some of it
        cannot be read.
        """
        release = machine.real(self.release)
        root, releases = release.parent.parent, release.parent.name
        owner = machine.identity(self.user, self.group)
        partial = f"{releases}/.{release.name}.partial"
        beneath.remove_tree(machine, root, partial)
        with beneath.directory(root, partial, create=True, owner=owner):
            pass
        machine.tell(Note("copying", {"from": self.origin}))
        try:
            argv = copy_argv(str(machine.real(self.origin)), str(root / partial))
            try:
                machine.run(argv, timeout=self.within, identity=owner, shown=f"the copy of {self.origin}")
            except CommandError as error:
                raise self._explained(error) from None
            with beneath.directory(root, partial) as descriptor:
                empty = not any(os.scandir(descriptor))
            if empty:  # a mountpoint without its mount, as like as not
                raise MachineError(f"{self.origin} is empty", remedy="see that it is mounted and holds a release")
        except BaseException:
            beneath.remove_tree(machine, root, partial)
            raise
        beneath.rename(root, releases, f".{release.name}.partial", release.name)

    def _explained(self, error: CommandError) -> BootagentError:
        lines = [line.strip() for line in plain(error.tail).splitlines() if line.strip()]
        if "took longer than" in error.sentence:
            return MachineError(
                f"{self.origin} could not be copied within {self.within:g} s",
                remedy="see that what holds it answers, or give it more time",
            )
        if not lines:
            return MachineError(f"{self.origin} could not be copied: {error.sentence}", remedy=error.remedy)
        said = re.sub(r"^(cp|find|env): ", "", lines[0])
        more = f" and {len(lines) - 1} more complaints" if len(lines) > 1 else ""
        sentence = f"{self.origin} could not be copied: {said}{more}"
        if "Permission denied" in error.tail:
            return BootagentError(sentence, remedy=f"let {self.user} read all of it")
        return MachineError(sentence) if _PASSING.search(error.tail) else BootagentError(sentence)


def copy_argv(origin: str, target: str) -> list[str]:
    """The command line that copies what a directory holds, without .git at its top, into another one.

    From inside ``origin``: should it be a link that is changed meanwhile, the copy is still of one directory.
    """
    copy = ["cp", "--archive", "--reflink=auto", "--no-preserve=ownership", f"--target-directory={target}"]
    tied = ["setpriv", "--pdeathsig", "KILL", "--"]  # should this run be killed, the next must not find it at work
    find = ["find", ".", "-mindepth", "1", "-maxdepth", "1", "!", "-name", ".git"]
    return [*tied, "env", f"--chdir={origin}", *find, "-exec", *copy, "--", "{}", "+"]
