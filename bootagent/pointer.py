"""The release pointer: a small JSON document in a bucket that names one immutable bundle.

``publish`` writes it last and an instance reads it first, so a reader sees a whole release or the one before.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from bootagent.errors import BundleError

FORMAT = 1
MAX_BYTES = 64 * 1024

_CALLED = {str: "text", int: "a whole number"}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Pointer:
    """What the pointer says.

    ``bundle`` is a key in the pointer's own bucket; sizes are in bytes; ``created`` is RFC 3339.
    ``unpacked_size`` and ``files`` (members of the archive) let an instance check for room before it starts.
    """

    bundle: str
    sha256: str
    size: int
    revision: str
    created: str
    version_id: str | None = None
    unpacked_size: int | None = None
    files: int | None = None

    def to_json(self) -> bytes:
        """The document, as published."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2).encode() + b"\n"


def parse(document: bytes, name: str) -> Pointer:
    """Read a pointer; ``name`` is its URL, for the error. Keys this version does not know are ignored.

    Raises BundleError naming the first key that is wrong.
    """
    try:
        found: Any = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} is not a release pointer: {error}", remedy="publish it again") from None
    if not isinstance(found, dict):
        raise BundleError(f"{name} is not a release pointer: a JSON object was expected", remedy="publish it again")
    if found.get("format", FORMAT) != FORMAT:
        raise BundleError(
            f"{name} has format {found['format']!r}; this bootagent reads {FORMAT}", remedy="upgrade bootagent"
        )

    def value(key: str, kind: type, required: bool = True) -> Any:
        got = found.get(key)
        if got is None and not required:
            return None
        # bool is an int to isinstance, and a negative count is none.
        if not isinstance(got, kind) or isinstance(got, bool) or (isinstance(got, int) and got < 0) or got == "":
            raise BundleError(f"{name}: {key}: {got!r} is not {_CALLED[kind]}", remedy="publish it again")
        return got

    pointer = Pointer(
        bundle=value("bundle", str),
        sha256=value("sha256", str),
        size=value("size", int),
        revision=value("revision", str),
        created=value("created", str),
        version_id=value("version_id", str, required=False),
        unpacked_size=value("unpacked_size", int, required=False),
        files=value("files", int, required=False),
    )
    if not _SHA256.fullmatch(pointer.sha256):
        raise BundleError(f"{name}: sha256: {pointer.sha256!r} is not 64 lower-case hex digits")
    if not re.fullmatch(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,1024}", pointer.bundle):
        raise BundleError(f"{name}: bundle: {pointer.bundle!r} is no key of one line")
    if pointer.version_id is not None and not re.fullmatch(r"[\x21-\x7e]{1,1024}", pointer.version_id):
        raise BundleError(f"{name}: version_id: {pointer.version_id!r} is not one printable word")
    if not re.fullmatch(r"[\x21-\x7e]{1,200}", pointer.revision):
        raise BundleError(f"{name}: revision: {pointer.revision!r} is not one printable word")
    return pointer
