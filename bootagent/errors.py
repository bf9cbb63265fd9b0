"""The few kinds of failure the agent tells people about, each with the exit code it ends in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_DEGRADED = 3
EXIT_TRY_LATER = 75  # EX_TEMPFAIL of sysexits.h

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class BootagentError(Exception):
    """A failure with a sentence for people. ``remedy`` says what to do about it, when that is known."""

    exit_code = EXIT_FAILED

    def __init__(self, sentence: str, *, remedy: str | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.sentence} ({self.remedy})" if self.remedy else self.sentence


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: the file, the key path in it, and a sentence."""

    file: str
    key: str
    sentence: str

    def __str__(self) -> str:
        where = f"{self.file}: {self.key}" if self.key else self.file
        return f"{where}: {self.sentence}"


class ConfigError(BootagentError):
    """Everything that is wrong with a configuration, all of it at once."""

    exit_code = EXIT_USAGE

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UsageError(BootagentError):
    """The command line asks for something that cannot be."""

    exit_code = EXIT_USAGE


class LockedError(BootagentError):
    """Another bootagent holds the lock; try later."""

    exit_code = EXIT_TRY_LATER


class MetadataError(BootagentError):
    """The instance metadata service is absent, disabled or does not say what is required."""


class BundleError(BootagentError):
    """A bundle is missing, damaged, not what was published, or hostile; nothing of it is used."""


class CommandError(BootagentError):
    """A program the agent ran failed, or outlived its deadline. ``tail`` holds the end of what it printed."""

    def __init__(self, sentence: str, *, tail: str = "", remedy: str | None = None) -> None:
        super().__init__(sentence, remedy=remedy)
        self.tail = tail


class MachineError(BootagentError):
    """The machine, or what it was told, not the release: a full disk, no supervisor. It is worth another try."""


class UnfitError(MachineError):
    """The machine is not made for what it was told, and no other try in this boot changes that: no cgroup version 2."""


class ServiceError(BootagentError):
    """A service did not start, stay up or pass its check. ``tail`` holds the end of its log."""

    def __init__(self, sentence: str, *, tail: str = "", remedy: str | None = None) -> None:
        super().__init__(sentence, remedy=remedy)
        self.tail = tail


class AwsError(BootagentError):
    """An AWS call failed: what was asked, the error code, the request id, and the IAM action that was missing."""

    def __init__(
        self,
        sentence: str,
        *,
        code: str,
        request_id: str | None = None,
        iam_action: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(sentence, remedy=remedy)
        self.code = code
        self.request_id = request_id
        self.iam_action = iam_action


class StepError(BootagentError):
    """A step of the plan failed; ``step`` is its sentence, ``phase`` where it is in the plan, the cause is chained."""

    def __init__(self, step: str, cause: BootagentError, *, phase: str | None = None) -> None:
        super().__init__(f"{step}: {cause}")
        self.step = step
        self.cause = cause
        self.phase = phase


def plain(text: str) -> str:
    """Text of others made safe for a terminal: control characters other than newline and tab are spelled out."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
