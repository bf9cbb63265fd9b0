"""Looks at an app's directory before the agent of this boot has touched it, and tells what it found.

For the power cuts: the last boot ended with the plug pulled, the filesystem's journal has just been replayed.
Argument: the directory. Output, as JSON: where ``current`` leads, the digest of each release's tree, the state file.
"""

# It runs on an emulated processor, before every boot's agent, where pathlib takes seconds.
# ruff: noqa: PTH110, PTH112, PTH114, PTH115, PTH123, PTH208

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys

STATE = "/var/lib/bootagent/state.json"


def tree_digest(top: str) -> str:
    """One digest over every name, kind, permission to execute and content below a directory."""
    digest = hashlib.sha256()
    for name in sorted(_below(top)):
        path = f"{top}/{name}"
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            kind, content = "directory", b""
        elif stat.S_ISLNK(mode):
            kind, content = "link", os.fsencode(os.readlink(path))
        else:
            with open(path, "rb") as file:
                kind, content = f"{mode & 0o111:o}", hashlib.sha256(file.read()).digest()
        digest.update(f"{name}\0{kind}\0".encode() + content)
    return digest.hexdigest()


def _below(top: str, name: str = "") -> list[str]:
    found = []
    with os.scandir(f"{top}/{name}") as entries:
        for entry in entries:
            found.append(name + entry.name)
            if entry.is_dir(follow_symlinks=False):
                found += _below(top, f"{name}{entry.name}/")
    return found


def witness(deploy_to: str) -> dict[str, object]:
    current, releases = f"{deploy_to}/current", f"{deploy_to}/releases"
    names = os.listdir(releases) if os.path.isdir(releases) else []
    return {
        "current": os.readlink(current) if os.path.islink(current) else "no link" if os.path.exists(current) else None,
        "releases": {name: tree_digest(f"{releases}/{name}") for name in names},
        "state": _state(),
    }


def _state() -> object:
    if not os.path.exists(STATE):
        return None
    with open(STATE) as file:
        return json.load(file)


if __name__ == "__main__":
    print(json.dumps(witness(sys.argv[1])))
