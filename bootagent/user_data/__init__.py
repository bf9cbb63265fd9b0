"""The text of an instance's user-data: what gives it its role at launch, and on a stock image the agent itself."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from bootagent.errors import UsageError

#: What EC2 accepts, in bytes before base64 (EC2 User Guide, "Run commands at launch").
LIMIT = 16384
#: Seconds the script's run waits for the boot's: that one may be in the middle of a large download.
LOCK_WAIT = 900
_CONFIG = "/etc/bootagent/conf.d/user-data.toml"
_PROGRAM = Path(__file__).with_name("fetch.py")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def tags_of(
    role: str,
    environment: str | None = None,
    tags: Mapping[str, str] | None = None,
    *,
    role_key: str = "Role",
    environment_key: str = "Environment",
) -> dict[str, str]:
    """The tags that user-data is to give: role, environment and others, under the keys the configuration reads.

    Raises UsageError for one that is empty, given twice, or that no command line or TOML document can hold.
    """
    found = {role_key: role}
    for key, value in [*({environment_key: environment} if environment else {}).items(), *(tags or {}).items()]:
        if found.setdefault(key, value) != value:
            raise UsageError(f"{key} is to be both {found[key]!r} and {value!r}")
    for key, value in found.items():
        if not key or "=" in key:
            raise UsageError(f"{key!r} cannot be the key of a tag here", remedy="it needs a name without =")
        if not value:
            raise UsageError(f"the tag {key} is empty")
        if not (key + value).isprintable():
            raise UsageError(f"the tag {key!r} holds {value!r}: that is not one line of text")
    return found


def document(tags: Mapping[str, str]) -> str:
    """User-data that the agent reads by itself, for images without cloud-init. Raises UsageError when too long."""
    lines = [f"{key if _BARE.fullmatch(key) else _quoted(key)} = {_quoted(value)}" for key, value in tags.items()]
    return _checked("\n".join(["#bootagent", "[tags]", *lines, ""]))


def script(tags: Mapping[str, str]) -> str:
    """User-data for cloud-init on an image that has the agent. Raises UsageError when it is too long."""
    return _checked(f"#!/bin/sh\nexec {_reconfigure(tags)}\n")


def install_script(
    tags: Mapping[str, str], package: str, *, sha256: str | None = None, configuration: str | None = None
) -> str:
    """User-data for cloud-init on a stock image: fetches the package and installs it, then does as ``script``.

    ``package`` is the ``.deb`` or the ``.pyz``: ``s3://BUCKET/KEY``, read with the instance's role, or an ``https://``
    URL. With ``sha256`` it must have that digest, so that who may write to the bucket is not root here.
    ``configuration`` is TOML text that is put beside the package's own. Raises UsageError.
    """
    found = re.fullmatch(r"(?:s3|https)://[^/]+/[^?]*\.(deb|pyz)(?:\?.*)?", package)
    if not found or not package.isprintable() or " " in package:
        raise UsageError(f"{package!r} is no s3:// or https:// URL of a .deb or .pyz")
    suffix = found[1]
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise UsageError(f"{sha256!r} is no SHA-256 digest", remedy="64 hexadecimal digits, as sha256sum prints them")
    file = f'"$work/bootagent.{suffix}"'
    parts = [
        "#!/bin/sh",
        "# Installs bootagent, then makes this instance what its tags say.",
        "set -eu",
        "umask 022",
        "work=$(mktemp -d)",
        'chmod 755 "$work"',
        f"python3 -I - {shlex.quote(package)} {file} {sha256 or ''} {_here('PROGRAM', _PROGRAM.read_text())}",
        *(_INSTALL[suffix].format(file=file),),
        *([f"cat >{_CONFIG} {_here('CONFIGURATION', configuration)}"] if configuration else ()),
        'rm -r "$work"',
        "code=0",
        f"{_reconfigure(tags)} || code=$?",
        "# From the next boot on, the machine starts the daemon by itself.",
        "[ ! -d /run/systemd/system ] || systemctl start --no-block bootagent.service",
        "exit $code",
        "",
    ]
    return _checked("\n".join(parts))


_INSTALL = {
    # The lists of a stock image are old (and without a network, old ones may do); others may be installing, too.
    "deb": """\
export DEBIAN_FRONTEND=noninteractive
apt-get -q -o DPkg::Lock::Timeout=300 update || true
apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold install {file}""",
    "pyz": "python3 {file} install",
}


def _reconfigure(tags: Mapping[str, str]) -> str:
    words: list[str] = []
    for key, value in tags.items():
        words += [f"--tag={key}={value}"] if key.startswith("-") else ["--tag", f"{key}={value}"]
    return shlex.join(["bootagent", "reconfigure", "--lock-wait", str(LOCK_WAIT), *words])


def _here(mark: str, text: str) -> str:
    if mark in text.splitlines():
        raise UsageError(f"the configuration has a line {mark}, which ends it here")
    return f"<<'{mark}'\n{text.rstrip()}\n{mark}"


def _quoted(text: str) -> str:
    # What is printable is written in JSON as in TOML.
    return json.dumps(text, ensure_ascii=False)


def _checked(text: str) -> str:
    size = len(text.encode())
    if size > LIMIT:
        raise UsageError(
            f"the user-data is {size} bytes long; EC2 accepts {LIMIT}", remedy="put the configuration into the image"
        )
    return text
