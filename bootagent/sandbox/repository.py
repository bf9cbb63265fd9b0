"""The HEAD of a git repository, as the archive or the directory that an app's source holds."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bootagent.errors import BootagentError

#: Which of ``git archive``'s formats belongs to which suffix.
FORMATS = {".tar": "tar", ".tar.gz": "tar.gz", ".tgz": "tar.gz", ".zip": "zip"}
#: The release that a deploy box would have made.
RELEASE = "20260101000000"


def archive(repository: Path, kind: str) -> bytes:
    """HEAD as an archive. Raises BootagentError with what git said."""
    done = subprocess.run(
        ["git", "-C", str(repository), "archive", f"--format={kind}", "HEAD"], capture_output=True, check=False
    )
    if done.returncode:
        raise BootagentError(f"git archive of {repository} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def release(repository: Path, place: Path) -> Path:
    """HEAD's files in the directory ``place``."""
    place.mkdir(parents=True)
    subprocess.run(["tar", "-xf", "-", "-C", str(place)], input=archive(repository, "tar"), check=True)
    return place


def deploy_to(repository: Path, place: Path) -> Path:
    """A whole deploy_to in the directory ``place``, as Capistrano leaves it on a deploy box."""
    release(repository, place / "releases" / RELEASE)
    (place / "shared").mkdir()
    (place / "current").symlink_to(f"releases/{RELEASE}")
    return place
