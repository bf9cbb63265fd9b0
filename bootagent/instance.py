"""What an instance knows about itself: identity, tags and user-data, read once and frozen.

Tags come from instance metadata; where it does not show them, from EC2 DescribeTags. Tags of an autoscaling group can
arrive seconds after launch, so the required ones are waited for.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tomli

from bootagent import aws
from bootagent.errors import AwsError, ConfigError, MetadataError, Problem
from bootagent.imds import Metadata, is_disabled

#: Metadata is rate-limited per instance: poll no faster than this, with jitter.
POLL_SECONDS = 5.0
#: How long metadata alone is asked for late tags before EC2 is asked too: a fleet that boots must not crowd its API.
EC2_AFTER_SECONDS = 20.0
USER_DATA_MARK = "#bootagent"

Tags = Mapping[str, str]
RequiredTags = Callable[[Tags], set[str]]


@dataclass(frozen=True)
class Instance:
    """An instance's identity and tags; ``region_origin`` and ``tag_origin`` say where those values came from."""

    instance_id: str | None
    region: str | None
    availability_zone: str | None = None
    account_id: str | None = None
    instance_type: str | None = None
    image_id: str | None = None
    private_ip: str | None = None
    tags: Tags = field(default_factory=dict)
    tag_origin: Mapping[str, str] = field(default_factory=dict)
    region_origin: str = "metadata"

    def coordinates(self) -> dict[str, str]:
        """What a configuration may interpolate besides role, environment and tags; only what is known."""
        known = {
            "region": self.region,
            "availability_zone": self.availability_zone,
            "account_id": self.account_id,
            "instance_id": self.instance_id,
            "instance_type": self.instance_type,
        }
        return {name: value for name, value in known.items() if value}


@dataclass(frozen=True)
class Overrides:
    """Tags from elsewhere than the instance: the command line wins over everything, defaults fill gaps.

    ``remembered`` gives those of earlier command lines on the instance of that id; an argument with an empty value
    takes one of them away.
    """

    arguments: Tags = field(default_factory=dict)
    defaults: Tags = field(default_factory=dict)
    remembered: Callable[[str | None], Tags] = lambda instance_id: {}

    def layers(self, instance_id: str | None) -> dict[str, Tags]:
        """The tags by where they come from."""
        old = {key: value for key, value in self.remembered(instance_id).items() if key not in self.arguments}
        given = {key: value for key, value in self.arguments.items() if value}
        return {"defaults": self.defaults, "remembered": old, "argument": given}


def read(
    overrides: Overrides, required: RequiredTags, *, within: float, pause: Callable[[float], None] = time.sleep
) -> Instance:
    """Read identity, user-data and tags, waiting for the required tags.

    ``required`` is asked again as tags arrive: which tags a role needs is known once the role is. ``pause`` waits for
    so many seconds between two looks.
    Raises MetadataError when metadata or a required tag does not come ``within`` so many seconds, and ConfigError
    for a ``#bootagent`` user-data document that makes no sense.
    """
    if is_disabled():
        return _without_metadata(overrides, required)
    metadata = Metadata(within)
    deadline = time.monotonic() + within
    instance = _identity(metadata)
    user_data = user_data_tags(metadata.get_bytes("user-data"))
    return _with_tags(
        instance,
        metadata,
        lambda: {"user-data": user_data, **overrides.layers(instance.instance_id)},
        required,
        deadline,
        pause,
    )


def _identity(metadata: Metadata) -> Instance:
    document: dict[str, Any] = {}
    text = metadata.get("dynamic/instance-identity/document")
    if text:
        try:
            document = json.loads(text)
        except ValueError:
            raise MetadataError(f"the instance identity document is no JSON: {text[:80]!r}") from None
    named = _named_region()
    return Instance(
        instance_id=document.get("instanceId") or metadata.get("meta-data/instance-id"),
        region=named or document.get("region") or metadata.get("meta-data/placement/region"),
        region_origin="environment" if named else "metadata",
        availability_zone=document.get("availabilityZone") or metadata.get("meta-data/placement/availability-zone"),
        account_id=document.get("accountId"),
        instance_type=document.get("instanceType"),
        image_id=document.get("imageId"),
        private_ip=document.get("privateIp"),
    )


def _with_tags(
    instance: Instance,
    metadata: Metadata,
    layers: Callable[[], Mapping[str, Tags]],
    required: RequiredTags,
    deadline: float,
    pause: Callable[[float], None],
) -> Instance:
    asked_ec2, denied = False, None
    ask_ec2_at = 0.0  # where metadata shows no tags: at once, since it may never
    own: dict[str, str] = {}
    origin = "metadata"
    while True:
        seen = metadata_tags(metadata)
        if seen is not None:
            own, origin = seen, "metadata"
            ask_ec2_at = ask_ec2_at or time.monotonic() + EC2_AFTER_SECONDS
        merged = _merged({origin: own, **layers()})
        missing = _missing(required, merged.tags)
        if missing and time.monotonic() >= ask_ec2_at:
            ask_ec2_at = time.monotonic() + EC2_AFTER_SECONDS
            try:
                own, origin, asked_ec2 = {**own, **ec2_tags(instance)}, "ec2", True
            except AwsError as error:
                denied = error  # not final: no tags in metadata may mean none yet, and credentials may be late
            merged = _merged({origin: own, **layers()})
            missing = _missing(required, merged.tags)
        if not missing:
            return _replaced(instance, merged)
        left = deadline - time.monotonic()
        if left <= 0:
            if denied and seen is None:
                raise denied
            raise _tags_missing(missing, merged.tags, shown=seen is not None, asked_ec2=asked_ec2)
        pause(min(left, POLL_SECONDS * random.uniform(1.0, 1.2)))


def metadata_tags(metadata: Metadata) -> dict[str, str] | None:
    """The tags instance metadata shows; None when it shows none (switched off, or the instance has no tags)."""
    listing = metadata.get("meta-data/tags/instance")
    if listing is None:
        return None
    # A tag removed meanwhile answers 404.
    values = {key: metadata.get(f"meta-data/tags/instance/{key}") for key in listing.split("\n") if key}
    return {key: value for key, value in values.items() if value is not None}


def ec2_tags(instance: Instance) -> dict[str, str]:
    """The instance's tags from EC2 DescribeTags. Raises AwsError."""
    if instance.instance_id is None:
        return {}
    try:
        with aws.call(f"read the tags of {instance.instance_id}", "ec2:DescribeTags"):
            pages = aws.ec2(instance.region).get_paginator("describe_tags")
            found = pages.paginate(Filters=[{"Name": "resource-id", "Values": [instance.instance_id]}])
            return {tag["Key"]: tag["Value"] for page in found for tag in page["Tags"]}
    except AwsError as error:
        error.remedy = "switch on tags in instance metadata (InstanceMetadataTags=enabled), or " + (
            error.remedy or "allow ec2:DescribeTags"
        )
        raise


def user_data_tags(body: bytes | None) -> dict[str, str]:
    """The ``[tags]`` of a user-data document whose first line is ``#bootagent``; any other user-data is not ours.

    Raises ConfigError when such a document is not what it should be.
    """
    if not body or body.split(b"\n", 1)[0].strip() != USER_DATA_MARK.encode():
        return {}
    try:
        document = tomli.loads(body.decode())
    except ValueError as error:
        raise ConfigError([Problem("user-data", "", f"cannot be read: {error}")]) from None
    problems = [
        Problem("user-data", key, "is not a known key; user-data holds a [tags] table")
        for key in document
        if key != "tags"
    ]
    tags = document.get("tags", {})
    if not isinstance(tags, dict):
        problems.append(Problem("user-data", "tags", "is not a table"))
        tags = {}
    problems += [
        Problem("user-data", f"tags.{key}", f"{value!r} is not text in quotes")
        for key, value in tags.items()
        if not isinstance(value, str)
    ]
    if problems:
        raise ConfigError(problems)
    return tags


@dataclass(frozen=True)
class _Merged:
    tags: Tags
    origin: Tags


def _merged(layers: Mapping[str, Tags]) -> _Merged:
    """Join layers of tags: --tag, now or earlier, over user-data over the instance's own over defaults."""
    order = ["defaults", "metadata", "ec2", "user-data", "remembered", "argument"]
    tags: dict[str, str] = {}
    origin: dict[str, str] = {}
    for name in sorted(layers, key=order.index):
        tags |= layers[name]
        origin |= dict.fromkeys(layers[name], name)
    return _Merged(tags, origin)


def _missing(required: RequiredTags, tags: Tags) -> list[str]:
    return sorted(key for key in required(tags) if not tags.get(key))


def _replaced(instance: Instance, merged: _Merged) -> Instance:
    return Instance(**{**vars(instance), "tags": merged.tags, "tag_origin": merged.origin})


def _without_metadata(overrides: Overrides, required: RequiredTags) -> Instance:
    merged = _merged(overrides.layers(None))
    if missing := _missing(required, merged.tags):
        raise MetadataError(
            f"no value for {', '.join(missing)}: AWS_EC2_METADATA_DISABLED is set",
            remedy="name it with --tag KEY=VALUE",
        )
    return _replaced(Instance(instance_id=None, region=_named_region(), region_origin="environment"), merged)


def _named_region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def _tags_missing(missing: list[str], tags: Tags, *, shown: bool, asked_ec2: bool) -> MetadataError:
    asked = [name for name, was in (("instance metadata", shown), ("EC2 DescribeTags", asked_ec2)) if was]
    has = f"it has {', '.join(sorted(tags))}" if tags else "it has no tags"
    return MetadataError(
        f"the instance has no tag {', '.join(missing)} ({has}; asked {' and '.join(asked)})",
        remedy="tag the instance or its autoscaling group (PropagateAtLaunch), or pass --tag KEY=VALUE",
    )
