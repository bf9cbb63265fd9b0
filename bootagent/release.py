"""Facts of Capistrano's layout: ``releases/YYYYMMDDHHMMSS`` (UTC), ``shared/``, ``current``, ``revisions.log``."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from bootagent import beneath
from bootagent.errors import BootagentError
from bootagent.machine import Machine

_FORMAT = "%Y%m%d%H%M%S"
_NAME = re.compile(r"[0-9]{14}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Layout:
    """What ``deploy_to`` holds: release names in order, and the one ``current`` points at.

    ``current`` is None when it is absent, dangling or points at no release; ``elsewhere`` then says where it points.
    """

    current: str | None = None
    elsewhere: str | None = None
    releases: tuple[str, ...] = ()


def observe(machine: Machine, deploy_to: str) -> Layout:
    """Look at ``deploy_to``; an absent one is an empty layout."""
    root = machine.real(deploy_to)
    if not root.is_dir():
        return Layout()
    names = tuple(name for name in beneath.subdirectories(root, "releases") if is_name(name))
    target = beneath.read_link(root, "current")
    if target is None:
        return Layout(releases=names)
    name = target.rstrip("/").rpartition("/")[2]
    # A link written by Capistrano names the real path, one in an image may be relative: compare what they reach.
    try:
        if name in names and (root / "current").samefile(root / "releases" / name):
            return Layout(name, None, names)
    except OSError:  # dangling, or going in circles
        pass
    return Layout(None, target, names)


def is_name(name: str) -> bool:
    """Whether a directory name is that of a release."""
    try:
        return _NAME.fullmatch(name) is not None and bool(datetime.strptime(name, _FORMAT))
    except ValueError:  # fourteen digits that are no time
        return False


def new_name(now: datetime, taken: Collection[str]) -> str:
    """The name of a release made ``now`` (UTC): unique, and after every name there is, whatever the clock says.

    Raises BootagentError when nothing can come after the last of them.
    """
    newest = max(taken, default="")
    name = now.strftime(_FORMAT)
    if name <= newest:
        try:
            name = (datetime.strptime(newest, _FORMAT) + timedelta(seconds=1)).strftime(_FORMAT)
        except OverflowError:
            raise BootagentError(f"no release can come after {newest}", remedy="remove that directory") from None
    return name


def short(label: str) -> str:
    """A revision for people: a commit or digest by its first twelve digits, anything else as it is."""
    return label[:12] if _DIGEST.fullmatch(label) else label
