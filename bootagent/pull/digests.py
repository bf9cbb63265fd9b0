"""Checking that the bytes of a bundle are the ones that were published."""

from __future__ import annotations

import base64
import hashlib
import zlib

from bootagent.errors import BundleError


class Digests:
    """Digests of a stream, kept while it passes: always SHA-256, and what S3's ``checksums`` ask for.

    With a ``sha256`` (hex) from the pointer the weaker ones prove nothing more, and are not computed. CRC32C and
    CRC64NVME are not either: the standard library has neither.
    """

    def __init__(self, sha256: str | None, checksums: tuple[tuple[str, str], ...]) -> None:
        self._expected = sha256
        self._checksums = {} if sha256 else dict(checksums)
        self._sha256 = hashlib.sha256()
        self._sha1 = hashlib.sha1(usedforsecurity=False) if "ChecksumSHA1" in self._checksums else None
        self._crc32 = 0 if "ChecksumCRC32" in self._checksums else None

    def update(self, data: memoryview) -> None:
        """Take in the next bytes."""
        self._sha256.update(data)
        if self._sha1 is not None:
            self._sha1.update(data)
        if self._crc32 is not None:
            self._crc32 = zlib.crc32(data, self._crc32)

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes so far, in hex."""
        return self._sha256.hexdigest()

    @property
    def is_checking(self) -> bool:
        """Whether there is anything to compare with."""
        return bool(self._expected or self._found())

    def check(self, name: str) -> None:
        """Compare with what was expected; raises BundleError with both values when they differ."""
        if self._expected and self.sha256 != self._expected:
            raise BundleError(
                f"{name} is not what was published: its sha256 is {self.sha256}, the pointer says {self._expected}",
                remedy="publish it again",
            )
        for key, found in self._found().items():
            if found != self._checksums[key]:
                raise BundleError(
                    f"{name} did not arrive whole: its {key} is {found}, S3 says {self._checksums[key]}",
                    remedy="run again",
                )

    def _found(self) -> dict[str, str]:
        raw: dict[str, bytes] = {}
        if "ChecksumSHA256" in self._checksums:
            raw["ChecksumSHA256"] = self._sha256.digest()
        if self._sha1 is not None:
            raw["ChecksumSHA1"] = self._sha1.digest()
        if self._crc32 is not None:
            raw["ChecksumCRC32"] = self._crc32.to_bytes(4, "big")
        return {key: base64.b64encode(value).decode() for key, value in raw.items()}
