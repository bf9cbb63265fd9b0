"""Looks at an app's directory before the agent of this boot has touched it, and tells what it found.

For the power cuts: the last boot ended with the plug pulled, the filesystem's journal has just been replayed.
Argument: the directory. Output, as JSON: where ``current`` leads, the digest of each release's tree, the state file.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from pathlib import Path

STATE = Path("/var/lib/bootagent/state.json")


def tree_digest(top: Path) -> str:
    """One digest over every name, kind, permission to execute and content below a directory."""
    digest = hashlib.sha256()
    for path in sorted(top.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            kind, content = "directory", b""
        elif stat.S_ISLNK(mode):
            kind, content = "link", os.fsencode(path.readlink())
        else:
            kind, content = f"{mode & 0o111:o}", hashlib.sha256(path.read_bytes()).digest()
        digest.update(f"{path.relative_to(top)}\0{kind}\0".encode() + content)
    return digest.hexdigest()


def witness(deploy_to: Path) -> dict[str, object]:
    current, releases = deploy_to / "current", deploy_to / "releases"
    state = STATE.read_text() if STATE.exists() else None
    return {
        "current": str(current.readlink()) if current.is_symlink() else "no link" if current.exists() else None,
        "releases": {path.name: tree_digest(path) for path in releases.iterdir()} if releases.is_dir() else {},
        "state": json.loads(state) if state is not None else None,
    }


if __name__ == "__main__":
    print(json.dumps(witness(Path(sys.argv[1]))))
