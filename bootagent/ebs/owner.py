"""The tags by which volumes and snapshots say whose they are, and what for."""

from __future__ import annotations

from collections.abc import Mapping

Tags = tuple[tuple[str, str], ...]

#: The instance a volume was made for, and goes with. A volume that outlives instances has no such tag.
INSTANCE = "bootagent:instance"
#: What for, as in "app web" or "volume db/data".
FOR = "bootagent:for"
#: The name of its record on that instance.
RECORD = "bootagent:record"
#: The snapshot it was made from.
SNAPSHOT = "bootagent:snapshot"
#: The filesystem made on a volume that was made without a snapshot; BLANK until then.
FORMAT = "bootagent:format"
BLANK = "blank"
#: Says "yes" on a volume that stays when its instance is terminated.
LASTING = "bootagent:lasting"
#: On snapshots: the tags they were asked to have, in one line. Those of one series replace each other.
SERIES = "bootagent:series"
#: On snapshots: how many of the series are to stay.
KEEP = "bootagent:keep"
#: What no one but this agent names its tags.
PREFIX = "bootagent:"


def bears(tags: Mapping[str, str], wanted: Tags) -> bool:
    """Whether ``tags`` has all of ``wanted``, to the letter: filters of EC2 take * and ? for anything."""
    return all(tags.get(key) == value for key, value in wanted)


def shown(tags: Tags) -> str:
    """Tags for a sentence: "A=1, B=2"."""
    return ", ".join(f"{key}={value}" for key, value in tags)


def is_blank(tags: Mapping[str, str]) -> bool:
    """Whether a volume's tags say that it was made blank by this agent, and not formatted since."""
    return tags.get(FORMAT) == BLANK
