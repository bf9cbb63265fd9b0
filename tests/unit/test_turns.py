"""What comes after what."""

from __future__ import annotations

import pytest

from bootagent.turns import turns


def test_each_comes_after_what_it_names() -> None:
    assert turns({"web": ["db", "cache"], "db": [], "cache": ["db"], "mail": []}) == [
        ["db", "mail"],
        ["cache"],
        ["web"],
    ]


def test_what_is_not_there_is_not_waited_for() -> None:
    assert turns({"web": ["db"]}) == [["web"]]
    assert turns({}) == []


def test_a_circle_has_no_order() -> None:
    with pytest.raises(ValueError, match="cycle"):
        turns({"a": ["b"], "b": ["a"]})
