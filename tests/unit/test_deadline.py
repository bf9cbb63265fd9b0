"""What each part of a stop may take of the time there is."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest

from bootagent import shutdown
from bootagent.daemon.resident import limits
from bootagent.deadline import Deadline, cut

NOW = datetime(2026, 11, 21, 8, 20, tzinfo=timezone.utc)


def within(seconds: float, later: float = 0.0, reserve: float = 0.0) -> Deadline:
    return Deadline(time.monotonic() + seconds, later, reserve)


def test_without_a_deadline_everybody_gets_what_he_wants() -> None:
    assert Deadline().grant(600.0) == 600.0
    assert Deadline(later=1000.0, reserve=20.0).grant(600.0) == 600.0
    assert Deadline().left() == float("inf")


@pytest.mark.parametrize(
    ("seconds", "later", "reserve", "wanted", "given"),
    [
        (100, 0, 0, 60, 60),
        (100, 0, 20, 600, 80),  # the last one gets all but what is kept
        (100, 10, 20, 300, 70),  # those after it get theirs
        (100, 10, 20, 30, 30),
        (100, 600, 20, 300, 40),  # who wants too much gets half, as does who comes first
        (100, 600, 20, 10, 10),
        (9, 600, 20, 300, 3),  # of little time a third is kept
        (0, 5, 20, 10, 0),
        (-5, 0, 0, 10, 0),
    ],
)
def test_who_comes_first_leaves_something_for_the_others(
    seconds: float, later: float, reserve: float, wanted: float, given: float
) -> None:
    assert within(seconds, later, reserve).grant(wanted) == pytest.approx(given, abs=0.2)


def test_what_comes_later_is_said_anew_for_each() -> None:
    until = within(100, later=50, reserve=10)
    assert (until.before(5).later, until.before(5).at, until.before(5).reserve) == (5, until.at, 10)


def test_a_wait_that_was_cut_short_is_told() -> None:
    assert cut(10.0, 10.0) == ""
    assert cut(3.0, 600.0) == ", in place of 600 s, for the stop has to be over"


@pytest.mark.parametrize(
    ("notice", "seconds"),
    [
        ("2026-11-21T08:22:00Z", 115),
        ("2026-11-21T08:21:00Z", 55),
        ("2026-11-21T09:22:00Z", 115),  # the clock is wrong: it is never more than two minutes
        ("2026-11-21T08:19:00Z", 15),  # or has it passed?
        ("2026-11-21T08:22:00", 115),
        ("soon", 115),
        ("", 115),
    ],
)
def test_a_notice_says_how_long_there_is(notice: str, seconds: float) -> None:
    assert shutdown.seconds_until(notice, NOW) == seconds


def test_a_spot_notice_goes_before_what_the_group_says() -> None:
    spot = {"spot": '{"action": "terminate", "time": "2026-11-21T08:22:00Z"}'}
    assert limits({**spot, "lifecycle": "Terminated"}) == ["--until", "2026-11-21T08:22:00Z"]
    assert limits({"spot": "what?"}) == ["--until", ""]
    assert "--escorted" in limits({"lifecycle": "Terminated"})
