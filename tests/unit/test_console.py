"""What people see while something takes long."""

from __future__ import annotations

import pytest

from bootagent.console import amount, bar
from bootagent.machine import Transfer


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (0, 400_000, "  pull web [>                           ]   0 %  0.0 of 400.0 kB"),
        (62_400_000, 115_300_000, "  pull web [===============>            ]  54 %  62.4 of 115.3 MB"),
        (5_000, 5_000, "  pull web [============================] 100 %  5.0 of 5.0 kB"),
        (62_400_000, None, "  pull web 62.4 MB"),
    ],
)
def test_a_transfer_is_a_bar_where_its_size_is_known(done: int, total: int | None, shown: str) -> None:
    assert bar(Transfer("pull web", done, total), 100) == shown


def test_a_narrow_terminal_cuts_the_name_and_not_the_amount() -> None:
    event = Transfer("pull a bundle with a long name", 1_000_000, 2_000_000)
    shown = bar(event, 80)
    assert len(shown) <= 80 and shown.endswith(amount(event)) and "…" in shown
