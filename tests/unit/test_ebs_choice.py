"""Which of several volumes is meant, and which snapshots are too old: decided without asking anyone."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from bootagent.ebs import choice, snapshots
from bootagent.ebs.calls import Attachment, Volume
from bootagent.ebs.kind import VolumeKind
from bootagent.ebs.owner import BLANK, FOR, FORMAT, INSTANCE, LASTING, RECORD
from bootagent.ebs.snapshots import Snapshot
from bootagent.ebs.wanted import Wanted, owner_tags, token
from bootagent.errors import BootagentError, MachineError

HERE, ZONE = "i-here", "eu-west-1a"
TAGS = (("Data", "db"),)
WANTED = Wanted("app.web.1", "app web", HERE, "eu-west-1", ZONE, snapshot="snap-1")


def volume(
    name: str, state: str = "available", holder: str | None = None, device: str = "/dev/sdf", zone: str = ZONE
) -> Volume:
    attachments = (Attachment(holder, device, "attached", False),) if holder else ()
    return Volume(f"vol-{name}", state, zone, 1, None, {}, attachments, f"2026-11-21T00:00:0{len(name)}+00:00")


# --- the instance's own --------------------------------------------------------------------------------------


def test_of_its_own_the_attached_one_comes_first() -> None:
    old, attached = volume("a"), volume("bb", "in-use", HERE)
    assert choice.own([old, attached], HERE, ()) == attached


def test_of_its_own_the_oldest_comes_first_and_a_failed_one_last() -> None:
    failed, old, young = volume("a", "error"), volume("bb"), volume("ccc")
    assert choice.own([young, failed, old], HERE, ()) == old
    assert choice.own([failed], HERE, ()) == failed


def test_what_another_record_names_or_is_going_is_nobodys() -> None:
    assert choice.own([volume("a"), volume("bb", "deleting")], HERE, {"vol-a"}) is None


# --- that outlives instances ---------------------------------------------------------------------------------


def test_one_that_is_free_comes_before_one_that_is_held() -> None:
    assert choice.lasting([volume("a", "in-use", "i-other"), volume("bb")], HERE, ZONE, TAGS) == volume("bb")


def test_one_that_is_held_is_better_than_none() -> None:
    held = volume("a", "in-use", "i-other")
    assert choice.lasting([held], HERE, ZONE, TAGS) == held


@pytest.mark.parametrize("device", ["/dev/sda1", "/dev/xvda"])
def test_the_root_of_an_instance_never_counts(device: str) -> None:
    assert choice.lasting([volume("a", "in-use", HERE, device)], HERE, ZONE, TAGS) is None


@pytest.mark.parametrize("state", ["deleting", "deleted"])
def test_one_that_is_lost_does_not_count(state: str) -> None:
    assert choice.lasting([volume("a", state)], HERE, ZONE, TAGS) is None


@pytest.mark.parametrize("zone", [ZONE, "eu-west-1b"])
def test_one_that_has_failed_is_not_replaced_in_silence(zone: str) -> None:
    failed = volume("a", "error", zone=zone)
    with pytest.raises(MachineError, match="bears the tags Data=db: vol-a has them and is in error") as caught:
        choice.lasting([failed], HERE, ZONE, TAGS)
    assert caught.value.remedy and "from a snapshot" in caught.value.remedy
    assert choice.lasting([failed, volume("bb")], HERE, ZONE, TAGS) == volume("bb")


def test_one_that_has_failed_and_never_held_anything_does_not_count() -> None:
    assert choice.lasting([replace(volume("a", "error"), tags={FORMAT: BLANK})], HERE, ZONE, TAGS) is None
    assert choice.lasting([volume("a", "error")], HERE, ZONE, TAGS, lost=["vol-a"]) is None


@pytest.mark.parametrize(
    "several",
    [
        [volume("a"), volume("bb", "creating")],
        [volume("a", "in-use", HERE), volume("bb", "in-use", HERE, "/dev/sdg")],
    ],
)
def test_of_several_none_is_guessed(several: list[Volume]) -> None:
    with pytest.raises(BootagentError, match="several volumes in eu-west-1a bear the tags Data=db: vol-a, vol-bb"):
        choice.lasting(several, HERE, ZONE, TAGS)


def test_one_in_another_zone_is_named() -> None:
    with pytest.raises(BootagentError, match="there is vol-a in eu-west-1b"):
        choice.lasting([volume("a", zone="eu-west-1b")], HERE, ZONE, TAGS)


# --- tokens and tags -----------------------------------------------------------------------------------------


def test_a_token_is_the_same_for_the_same_intent_alone() -> None:
    others = [
        (WANTED, 2),
        (Wanted("app.web.2", "app web", HERE, None, ZONE, snapshot="snap-1"), 1),
        (Wanted("app.web.1", "app web", "i-other", None, ZONE, snapshot="snap-1"), 1),
        (Wanted("app.web.1", "app web", HERE, None, ZONE, snapshot="snap-2"), 1),
    ]
    tokens = {token(WANTED, 1), *(token(*other) for other in others)}
    assert len(tokens) == 5
    assert all(len(one) <= 64 for one in tokens)
    assert token(WANTED, 1) == token(Wanted("app.web.1", "app web", HERE, None, ZONE, snapshot="snap-1"), 1)


def test_instances_that_want_the_same_lasting_volume_make_it_once() -> None:
    first, second = (
        Wanted("role.db.data", "volume db/data", instance, None, ZONE, find=TAGS, kind=VolumeKind(size_gib=1))
        for instance in ("i-1", "i-2")
    )
    assert token(first, 1) == token(second, 1)
    assert owner_tags(first) == owner_tags(second)
    assert token(first, 1) != token(Wanted(**{**vars(first), "zone": "eu-west-1b"}), 1)


def test_nobody_overrules_the_tags_a_volume_is_found_by() -> None:
    wanted = Wanted(**{**vars(WANTED), "tags": ((INSTANCE, "x"), (FOR, "x"), (RECORD, "x"), (LASTING, "yes"))})
    tags = dict(owner_tags(wanted))
    assert (tags[INSTANCE], tags[FOR], tags[RECORD]) == (HERE, "app web", "app.web.1")
    assert dict(owner_tags(Wanted(**{**vars(WANTED), "tags": (("Name", "mine"),)})))["Name"] == "mine"


# --- snapshots -----------------------------------------------------------------------------------------------


def taken(number: int, state: str = "completed") -> Snapshot:
    started = datetime(2026, 11, 21, tzinfo=timezone.utc) + timedelta(hours=number)
    return Snapshot(f"snap-{number}", 1, started, {}, state)


def test_the_newest_stay() -> None:
    series = [taken(number) for number in (3, 1, 2)]
    assert snapshots.surplus(series, 2) == [taken(1)]
    assert snapshots.surplus(series, 3) == []


def test_one_always_stays() -> None:
    assert snapshots.surplus([taken(1), taken(2)], 0) == [taken(1)]


def test_only_completed_ones_count() -> None:
    series = [taken(1), taken(2), taken(3, "pending"), taken(4, "error")]
    assert snapshots.surplus(series, 2) == [taken(4, "error")]
    assert snapshots.surplus(series, 1) == [taken(1), taken(4, "error")]


def test_a_series_is_its_tags_in_any_order() -> None:
    assert snapshots.series((("B", "2"), ("A", "1"))) == snapshots.series((("A", "1"), ("B", "2"))) == "A=1, B=2"
    long = tuple((f"key{number}", "x" * 200) for number in range(3))
    assert len(snapshots.series(long)) <= 256
    assert snapshots.series(long) != snapshots.series(long[:2])
