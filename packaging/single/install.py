"""``bootagent.pyz install [--root DIR]``: puts the single file in place as /usr/bin/bootagent, and has it run at boot.

For machines without the Debian package. Configuration that is there is kept. Starts nothing.
"""

# ruff: noqa: T201 - a command line prints

from __future__ import annotations

import argparse
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

SHARE = Path(__file__).resolve().parents[1] / "share"


def main(single_file: str, arguments: list[str]) -> int:
    """Install into a root, and say what was done."""
    parser = argparse.ArgumentParser(
        prog="bootagent.pyz install",
        description="Puts this file in place as /usr/bin/bootagent, and has it run at boot.",
    )
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="below which, default /")
    root = parser.parse_args(arguments).root
    program = root / "usr/bin/bootagent"
    if program.is_symlink():
        print(f"bootagent: {program} is a package's; remove that first", file=sys.stderr)
        return 1
    try:
        install(Path(single_file), root)
    except OSError as error:
        print(f"bootagent: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def install(single_file: Path, root: Path) -> None:
    """Everything, in an order that may be broken off and begun again."""
    put(single_file, root / "usr/bin/bootagent", 0o755)
    for name, place in (("config.toml", "etc/bootagent/config.toml"), ("bootagent.default", "etc/default/bootagent")):
        if not (root / place).exists():
            put(SHARE / name, root / place, 0o644)
    (root / "etc/bootagent/conf.d").mkdir(exist_ok=True)
    if (root / "usr/lib/systemd").is_dir() or (root / "lib/systemd").is_dir():
        for unit in sorted((SHARE / "systemd").iterdir()):
            put(unit, root / "etc/systemd/system" / unit.name, 0o644)
        wants = root / "etc/systemd/system/multi-user.target.wants/bootagent.service"
        wants.parent.mkdir(exist_ok=True)
        if not wants.is_symlink():
            wants.symlink_to("/etc/systemd/system/bootagent.service")
        if root == Path("/") and Path("/run/systemd/system").is_dir():
            subprocess.run(["systemctl", "daemon-reload"], check=False)
            subprocess.run(["systemctl", "try-restart", "bootagent.service"], check=False)
    else:
        for file in sorted((SHARE / "runit").rglob("*")):
            if file.is_file():
                put(file, root / "etc/sv" / file.relative_to(SHARE / "runit"), stat.S_IMODE(file.stat().st_mode))
        if (root / "etc/service").is_dir() and not (root / "etc/service/bootagent").is_symlink():
            (root / "etc/service/bootagent").symlink_to("/etc/sv/bootagent")
    if not any(
        (root / place / "runsvdir").exists() for place in ("usr/bin", "bin", "usr/sbin", "sbin", "usr/local/bin")
    ):
        print("bootagent: there is no runsvdir; install runit, which runs the services", file=sys.stderr)


def put(file: Path, place: Path, mode: int) -> None:
    """Copy a file, at once or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        shutil.copyfile(file, fresh)
        fresh.chmod(mode)
        fresh.replace(place)
    finally:
        fresh.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
