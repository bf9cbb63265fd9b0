"""What the boot tests measured, told at the end of the run: seconds, memory, power cuts tried and lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

CUTS = 15
#: The names under which tests leave figures in their user properties.
FIGURE, CUT = "figure", "power cut"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("machines that really boot")
    group.addoption("--cuts", type=int, default=CUTS, metavar="N", help=f"how many power cuts to try (default {CUTS})")
    group.addoption("--cuts-seed", default="", metavar="SEED", help="when they fall; the default is another every time")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    found = [item for report in reports for item in getattr(report, "user_properties", ())]
    for line in summary(found):
        terminalreporter.write_line(line)


def summary(found: Iterable[tuple[str, Any]]) -> list[str]:
    """The lines to print for what the tests left."""
    properties = list(found)
    lines = [str(value) for name, value in properties if name == FIGURE]
    cuts = [value for name, value in properties if name == CUT]
    if cuts:
        lost = sum(cut["lost"] for cut in cuts)
        kinds = Counter(cut["kind"] for cut in cuts)
        moments = Counter(cut["moment"] for cut in cuts)
        lines.append(f"power cuts: {len(cuts)} tried, {lost} lost (seed {cuts[0]['seed']})")
        lines.append(f"  of {_told(kinds)}")
        lines.append(f"  the plug was pulled {_told(moments)}")
    return lines


def _told(counted: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counted.most_common())
