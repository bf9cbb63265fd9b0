"""The instance's tags ``bootagent:release`` and ``bootagent:state``: for whoever looks at the fleet in EC2."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from bootagent import aws
from bootagent.errors import AwsError
from bootagent.state import State
from bootagent.telling.serving import serving

RELEASE, STATE = "bootagent:release", "bootagent:state"
#: The longest value of a tag: "Tag restrictions" in the EC2 user guide.
VALUE_CHARACTERS = 256
#: How long EC2 may take; a machine that goes down has no time.
SECONDS, HURRIED_SECONDS = 10.0, 4.0


def wanted(known: State) -> dict[str, str]:
    """The tags as they should be, each value as long as EC2 takes it."""
    releases = [f"{one.app}={one.release or 'none'}" for one in serving(known)]
    return {RELEASE: _fitting(releases) or "none", STATE: known.last_run.outcome if known.last_run else "none"}


def write(instance_id: str, region: str | None, tags: Mapping[str, str], *, hurried: bool) -> str | None:
    """Set the tags; why that was not possible, as a sentence, or None. ``hurried``: one try, and a short one."""
    said: list[str | None] = []
    # In a thread that may be left behind: neither a name server nor credentials that hang may keep a run from its end.
    work = threading.Thread(target=lambda: said.append(_tried(instance_id, region, tags, hurried)), daemon=True)
    work.start()
    patience = HURRIED_SECONDS if hurried else SECONDS
    work.join(patience)
    return said[0] if said else f"EC2 did not take the tags of {instance_id} within {patience:g} s"


def _tried(instance_id: str, region: str | None, tags: Mapping[str, str], hurried: bool) -> str | None:
    try:
        with aws.call(f"set the tags {', '.join(tags)} of {instance_id}", "ec2:CreateTags"):
            aws.ec2(region, hurried=hurried).create_tags(
                Resources=[instance_id], Tags=[{"Key": key, "Value": value} for key, value in tags.items()]
            )
    except AwsError as error:
        return str(error)
    return None


def _fitting(words: list[str]) -> str:
    """As many of the words as fit, and how many more there are."""
    for count in range(len(words), 0, -1):
        rest = [f"+{len(words) - count}"] if count < len(words) else []
        if len(found := " ".join([*words[:count], *rest])) <= VALUE_CHARACTERS:
            return found
    return words[0][:VALUE_CHARACTERS] if words else ""
