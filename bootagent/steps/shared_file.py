"""A linked file whose content comes from the image or from S3."""

from __future__ import annotations

from dataclasses import dataclass

from bootagent import aws, beneath, footprint
from bootagent.errors import BootagentError
from bootagent.machine import Machine


@dataclass(frozen=True)
class SharedFile:
    """``shared/PATH`` of ``deploy_to``, equal to ``origin``: an absolute path of the image, or s3://BUCKET/KEY.

    It may hold secrets, so only the app's user and group can read it.
    """

    deploy_to: str
    path: str
    origin: str
    region: str | None
    user: str
    group: str | None

    def __str__(self) -> str:
        return f"put {self.origin} at {self.deploy_to}/shared/{self.path}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether content and mode are as they should be."""
        try:
            found, mode = beneath.read(machine.real(self.deploy_to), f"shared/{self.path}")
        except (FileNotFoundError, BootagentError):  # not there, or no file of a sane size
            return False
        return mode == 0o640 and found == self._content(machine)

    def apply(self, machine: Machine) -> None:
        """Write it as a whole."""
        owner = machine.identity(self.user, self.group)
        root = machine.real(self.deploy_to)
        content = self._content(machine)
        footprint.note_file(machine, f"{self.deploy_to}/shared/{self.path}", content, until="reset")
        beneath.write(root, f"shared/{self.path}", content, mode=0o640, owner=owner)

    def _content(self, machine: Machine) -> bytes:
        limit = beneath.MAX_FILE_BYTES
        if not self.origin.startswith("s3://"):
            try:
                with machine.real(self.origin).open("rb") as file:
                    return self._bounded(file.read(limit + 1))
            except OSError as error:
                raise BootagentError(f"cannot read {self.origin}: {error.strerror}") from None
        bucket, _, key = self.origin.removeprefix("s3://").partition("/")
        with aws.call(f"read {self.origin}", "s3:GetObject"):
            content = aws.s3(self.region).get_object(Bucket=bucket, Key=key)["Body"].read(limit + 1)
        return self._bounded(content)

    def _bounded(self, content: bytes) -> bytes:
        if len(content) > beneath.MAX_FILE_BYTES:
            raise BootagentError(
                f"{self.origin} is larger than {beneath.MAX_FILE_BYTES} bytes: not a configuration file"
            )
        return content
