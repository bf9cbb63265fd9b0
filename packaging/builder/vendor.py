"""The vendored packages: pinned wheels, and of them only what the agent uses."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from builder.entries import Entry
from builder.errors import BuildError

#: The service models that are shipped, with the one version of each that clients use: botocore has four hundred. The
#: agent calls those up to sts; the others are how people's own credentials come about, for `publish` from a laptop.
SERVICES = {
    "autoscaling": "2011-01-01",
    "ec2": "2016-11-15",
    "elb": "2012-06-01",
    "elbv2": "2015-12-01",
    "s3": "2006-03-01",
    "secretsmanager": "2017-10-17",
    "ssm": "2014-11-06",
    "sts": "2011-06-15",
    "signin": "2023-01-01",
    "sso": "2019-06-10",
    "sso-oidc": "2019-06-10",
}
_LEFT_OUT = (
    "*.dist-info/*",
    "*/tests/*",
    "*/py.typed",
    "*/examples-1.json",
    "boto3/data/*",  # of its resource objects, which the agent does without
    "boto3/examples/*",
    "botocore/cacert.pem",  # certifi's, once more
    "urllib3/contrib/emscripten/*",  # for browsers
    "dateutil/zoneinfo/*.tar.gz",  # for machines without a time zone database
)
_NATIVE = (".so", ".pyd", ".dll", ".dylib", ".a")
_SHEBANG = re.compile(rb"\A#!.*")  # a module of a library is no program


@dataclass(frozen=True)
class Package:
    """One vendored package: its files as they go onto sys.path, and its licence texts by name."""

    name: str
    version: str
    files: tuple[Entry, ...]
    licences: dict[str, str]


def packages(requirements: str, cache: Path) -> list[Package]:
    """The packages a requirements file pins. Wheels are kept in ``cache``, and fetched by pip when not there.

    Raises BuildError when pip cannot get them, or one is not pure Python.
    """
    pinned = re.findall(r"^([\w.-]+)==([\w.]+).*?--hash=sha256:([0-9a-f]{64})", requirements, re.MULTILINE | re.DOTALL)
    wheels = _present(cache)
    if any(digest not in wheels for _, _, digest in pinned):
        _download(requirements, cache)
        wheels = _present(cache)
    return [_package(name, version, wheels[digest]) for name, version, digest in pinned]


def _present(cache: Path) -> dict[str, Path]:
    return {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in cache.glob("*.whl")}


def _download(requirements: str, cache: Path) -> None:
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        raise BuildError(
            f"{sys.executable} has no pip; install python3-pip, or run this by the python of a virtual environment"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as fresh:
        pinned = Path(fresh) / "requirements.txt"
        pinned.write_text(requirements)
        words = [
            "--require-hashes",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--requirement",
            str(pinned),
            "--dest",
            fresh,
        ]
        pure = ["--platform", "any", "--python-version", "3.10", "--implementation", "py", "--abi", "none"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", *words, *pure],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BuildError(f"pip cannot get the packages of packaging/requirements.txt: {done.stderr.strip()}")
        for wheel in Path(fresh).glob("*.whl"):
            wheel.replace(cache / wheel.name)  # several builds may do so at once


def _package(name: str, version: str, wheel: Path) -> Package:
    files, licences = [], {}
    with zipfile.ZipFile(wheel) as archive:
        for path in sorted(archive.namelist()):
            if path.endswith(_NATIVE):
                raise BuildError(f"{wheel.name} is not pure Python: it has {path}")
            if _is_licence(path):
                licences[path.rpartition("/")[2]] = archive.read(path).decode()
            if not path.endswith("/") and _is_used(path):
                files.append(Entry(path, _SHEBANG.sub(b"#", archive.read(path))))
    return Package(name, version, tuple(files), licences)


def _is_licence(path: str) -> bool:
    directory, _, name = path.rpartition("/")
    return ".dist-info" in directory and name.startswith(("LICEN", "COPYING", "NOTICE"))


def _is_used(path: str) -> bool:
    if any(fnmatchcase(path, pattern) for pattern in _LEFT_OUT):
        return False
    parts = path.split("/")
    if parts[:2] == ["botocore", "data"] and len(parts) > 3:
        return SERVICES.get(parts[2]) == parts[3]
    return True


def library(found: Iterable[Package]) -> Iterator[Entry]:
    """The files of all packages, as one directory for sys.path."""
    for package in found:
        yield from package.files
