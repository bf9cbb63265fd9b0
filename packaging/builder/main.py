"""The command line of ``packaging/build``."""

# ruff: noqa: T201 - a command line prints

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from builder import deb, pyz, source, vendor
from builder.errors import BuildError

REPOSITORY = Path(__file__).resolve().parents[2]
_WHAT = ("deb", "pyz")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what is asked for and print the paths. Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        for path in _build(options):
            print(path)
    except BuildError as error:
        print(f"packaging/build: {error}", file=sys.stderr)
        return 1
    return 0


def _build(options: argparse.Namespace) -> list[Path]:
    if not options.work_tree and source.is_dirty(REPOSITORY):
        print("packaging/build: changes not committed are left out; --work-tree takes them", file=sys.stderr)
    found = source.work_tree(REPOSITORY) if options.work_tree else source.commit(REPOSITORY)
    packages = vendor.packages(found.text("packaging/requirements.txt"), REPOSITORY / "build" / "wheels")
    made = []
    for what in options.what or _WHAT:
        if what == "deb":
            made.append((f"bootagent_{found.version}_all.deb", deb.build(found, packages), 0o644))
        if what == "pyz":
            made.append(("bootagent.pyz", pyz.build(found, packages), 0o755))
    options.output.mkdir(parents=True, exist_ok=True)
    return [_written(options.output / name, content, mode) for name, content, mode in made]


def _written(path: Path, content: bytes, mode: int) -> Path:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.chmod(mode)
    return fresh.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="packaging/build",
        description="Builds packages of this checkout's HEAD, byte for byte the same each time; prints their paths.",
        epilog="The time everything counts as made is the commit's, or SOURCE_DATE_EPOCH. Needs git and pip.",
    )
    parser.add_argument("what", nargs="*", choices=[[], *_WHAT], metavar="deb|pyz", help="default: all")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist", metavar="DIR", help="default: dist/")
    parser.add_argument(
        "--work-tree", action="store_true", help="the files as they are now, not as HEAD has them; for development"
    )
    return parser
