"""The picture of a boot: well-formed whatever it is told, and its bars where the seconds say."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootagent.report import picture

SVG = "{http://www.w3.org/2000/svg}"
#: Nothing that runs, loads or links.
ELEMENTS = {"svg", "title", "desc", "style", "defs", "pattern", "clipPath", "rect", "line", "g", "text"}


def span(step: str, begin: float, end: float, *, phase: str = "stage", app: str | None = "web", **more: Any) -> Any:
    about = {"phase": phase, "app": app, "step": step, "begin": begin, "end": end}
    return {**about, "failed": False, "error": None, "unfinished": False, **more}


def run(*spans: Any, seconds: float = 8.0, boot: Any = None, **more: Any) -> Any:
    return {
        "run": "r",
        "command": "run",
        "started": "2026-11-12T12:00:00.000Z",
        "uptime_at_start": 12.0,
        "seconds": seconds,
        "finished": True,
        "outcome": "done",
        "apps": {"web": {"intent": "deploy", "release": "20261112120000"}},
        "spans": list(spans),
        "waits": [],
        "boot": boot,
        **more,
    }


def booted(finish: float | None = None) -> Any:
    stages = [("boot loader", -2.0, 0.0), ("kernel", 0.0, 5.0), ("systemd, until the network is up", 5.0, 12.0)]
    told = [{"name": name, "begin": begin, "end": end} for name, begin, end in stages]
    return {"stages": told, "finish": finish, "healthy": 20.0}


def drawn(found: Any) -> ET.Element:
    return ET.fromstring(picture.svg(found))


def bars(root: ET.Element) -> dict[str, tuple[float, float, set[str]]]:
    """Every bar by the first words of its tooltip: where it begins and ends, and its classes."""
    found = {}
    for group in root.iter(f"{SVG}g"):
        for box in group.findall(f"{SVG}rect"):
            classes = set(box.get("class", "").split())
            if "bar" in classes:
                about = group.findtext(f"{SVG}title") or ""
                left = float(box.get("x", ""))
                found[re.split(r" \(|: ", about)[0]] = (left, left + float(box.get("width", "")), classes)
    return found


def seconds_at(root: ET.Element) -> Any:
    """The axis, as its own ticks have it: a function from a place to a moment."""
    lines = [line for line in root.iter(f"{SVG}line") if line.get("class") == "grid"]
    marks = [text.text or "" for text in root.iter(f"{SVG}text") if text.get("text-anchor") == "middle"]
    (x0, t0), *_, (x1, t1) = [
        (float(line.get("x1", "")), float(mark.removesuffix(" s"))) for line, mark in zip(lines, marks, strict=True)
    ]
    return lambda x: t0 + (x - x0) / (x1 - x0) * (t1 - t0)


def words(root: ET.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


# --- where things are ------------------------------------------------------------------------------------------------


def test_bars_are_where_the_seconds_say() -> None:
    root = drawn(run(span("read tags", 0.0, 1.5, phase="read", app=None), span("unpack it", 1.5, 6.0)))
    moment = seconds_at(root)
    found = bars(root)
    assert moment(found["read tags"][0]) == pytest.approx(0.0, abs=0.01)
    assert moment(found["read tags"][1]) == pytest.approx(1.5, abs=0.01)
    assert moment(found["unpack it"][0]) == pytest.approx(1.5, abs=0.01)
    assert moment(found["unpack it"][1]) == pytest.approx(6.0, abs=0.01)
    assert found["read tags"][2] == {"bar", "read"} and found["unpack it"][2] == {"bar", "stage"}


def test_a_boot_is_drawn_from_before_the_kernel_to_health_on_one_axis() -> None:
    root = drawn(run(span("unpack it", 1.0, 6.0), boot=booted(finish=15.0)))
    moment = seconds_at(root)
    found = bars(root)
    for name, begin, end in (
        ("boot loader", -2.0, 0.0),
        ("kernel", 0.0, 5.0),
        ("systemd, until the network is up", 5.0, 12.0),
        ("systemd, beside the agent", 12.0, 15.0),
        ("unpack it", 13.0, 18.0),
    ):
        assert (moment(found[name][0]), moment(found[name][1])) == pytest.approx((begin, end), abs=0.02), name
    said = words(root)
    assert "Boot of 2026-11-12 12:00:00 UTC" in said
    assert (
        "healthy 20.00 s after the kernel started: kernel 5.00 s, systemd 7.00 s, agent 8.00 s; "
        "firmware 2.00 s before that" in said
    )
    (mark,) = (line for line in root.iter(f"{SVG}line") if line.get("class") == "mark")
    assert moment(float(mark.get("x1", ""))) == pytest.approx(20.0, abs=0.02)


def test_a_run_that_is_no_boot_has_no_kernel_and_begins_at_nought() -> None:
    root = drawn(run(span("unpack it", 0.0, 8.0), command="reconfigure"))
    assert {"kernel", "systemd"}.isdisjoint(kind for _, _, classes in bars(root).values() for kind in classes)
    assert "Reconfigure of 2026-11-12 12:00:00 UTC" in words(root)
    assert "done after 8.00 s" in words(root)
    assert "seconds since the run began" in words(root)


def test_a_step_too_short_to_see_is_seen() -> None:
    left, right, _ = bars(drawn(run(span("link it", 4.0, 4.0))))["link it"]
    assert right - left == picture.THINNEST


def test_what_failed_is_told_by_words_too() -> None:
    root = drawn(run(span("start it", 1.0, 2.0, failed=True, error="it ended at once"), outcome="degraded"))
    assert bars(root)["start it"][2] == {"bar", "failed"}
    assert "1.00 s ✕ failed" in words(root)
    assert any("it ended at once" in (title.text or "") for title in root.iter(f"{SVG}title"))
    assert not [line for line in root.iter(f"{SVG}line") if line.get("class") == "mark"]
    assert "degraded 8.00 s" in words(root)


def test_what_was_cut_short_is_told_apart() -> None:
    root = drawn(run(span("unpack it", 1.0, 8.0, unfinished=True), outcome="not finished", finished=False))
    assert bars(root)["unpack it"][2] == {"bar", "stage", "open"}


def test_a_wait_is_hatched_for_as_long_as_it_was() -> None:
    waits = [{"step": "wait for the instance's tags", "begin": 1.0, "end": 90.0}]
    root = drawn(run(span("read tags", 0.5, 90.5, phase="read", app=None), seconds=95.0, waits=waits))
    moment = seconds_at(root)
    (hatched,) = (b for b in root.iter(f"{SVG}rect") if b.get("class") == "wait" and float(b.get("x", "")) > 420)
    left = float(hatched.get("x", ""))
    assert moment(left) == pytest.approx(1.0, abs=0.1)
    assert moment(left + float(hatched.get("width", ""))) == pytest.approx(90.0, abs=0.1)
    assert "read tags (89.00 s waiting)" in words(root)


def test_an_app_that_others_hold_up_shows_it() -> None:
    apps = {name: {"intent": "deploy", "release": "20261112120000"} for name in ("web", "api")}
    root = drawn(
        run(
            span("unpack web", 0.0, 1.0),
            span("unpack api", 0.0, 5.0, app="api"),
            span("switch web", 5.0, 5.1, phase="activate"),
            span("switch api", 5.0, 5.1, phase="activate", app="api"),
            apps=apps,
        )
    )
    moment = seconds_at(root)
    (held,) = (b for b in root.iter(f"{SVG}rect") if b.get("class") == "hold" and float(b.get("x", "")) > 420)
    assert moment(float(held.get("x", ""))) == pytest.approx(1.0, abs=0.02)
    assert moment(float(held.get("x", "")) + float(held.get("width", ""))) == pytest.approx(5.0, abs=0.02)


def test_an_app_alone_is_held_up_by_nobody() -> None:
    root = drawn(run(span("unpack it", 0.0, 1.0), span("switch it", 3.0, 3.1, phase="activate")))
    assert not [box for box in root.iter(f"{SVG}rect") if box.get("class") == "hold"]


def test_nothing_to_do_is_said() -> None:
    root = drawn(run(span("read tags", 0.0, 0.4, phase="read", app=None), seconds=0.4))
    assert "web: deploy 20261112120000" in words(root) and "nothing had to be done" in words(root)
    assert drawn(run(seconds=0.0, apps={}, outcome="not finished")) is not None


@pytest.mark.parametrize("length", [0.0004, 0.4, 8.0, 95.0, 86400.0])
def test_the_axis_has_a_few_round_marks(length: float) -> None:
    marks = list(picture.Axis(0.0, length).ticks())
    assert 4 <= len(marks) <= 10
    steps = {round((b - a) / 10 ** math.floor(math.log10(b - a) + 1e-9), 6) for a, b in itertools.pairwise(marks)}
    assert steps <= {1.0, 2.0, 5.0}


def test_no_text_meets_another() -> None:
    """Labels end before the chart, what a bar took stands beside it, and rows keep their distance."""
    clipped = drawn(run(span("unpack it", 0.0, 1.0))).find(f".//{SVG}g[@clip-path='url(#labels)']")
    assert clipped is not None  # whatever a font makes of a character
    assert "unpack it" in [text.text for text in clipped]
    spans = [span(f"step {number} " + "x" * 200, number * 0.4, number * 0.4 + 0.4) for number in range(20)]
    root = drawn(run(*spans, boot=booted()))
    rows: dict[float, list[ET.Element]] = {}
    for text in root.iter(f"{SVG}text"):
        rows.setdefault(float(text.get("y", "")), []).append(text)
    places = sorted(y for y in rows if y > 110)
    assert all(below - above >= 14 for above, below in itertools.pairwise(places))
    for y in places[:-1]:
        ends = -1.0
        for text in sorted(rows[y], key=lambda text: float(text.get("x", ""))):
            assert float(text.get("x", "")) > ends
            ends = float(text.get("x", "")) + len(text.text or "") * picture.CHARACTER
        assert ends <= picture.WIDTH
    for left, right, _ in bars(root).values():
        assert picture.CHART <= left < right <= picture.CHART + picture.CHART_WIDTH + picture.THINNEST


# --- what it is made of ----------------------------------------------------------------------------------------------


def test_it_stands_alone_and_can_be_read_aloud() -> None:
    text = picture.svg(run(span("unpack it", 1.0, 6.0), boot=booted()))
    root = ET.fromstring(text)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= ELEMENTS
    attributes = {name for element in root.iter() for name in element.attrib}
    assert not {name for name in attributes if "href" in name or name.startswith("on")}
    assert set(re.findall(r"url\(([^)]*)\)", text)) == {"#waiting", "#labels"}
    assert "@import" not in text and text.count("http") == 1  # its own namespace
    assert (root.get("role"), root.get("aria-labelledby")) == ("img", "title desc")
    assert [root[0].get("id"), root[1].get("id")] == ["title", "desc"]
    assert "unpack it 5.00 s" in (root[1].text or "")
    assert "prefers-color-scheme:dark" in text


def test_the_same_facts_give_the_same_picture() -> None:
    found = run(span("unpack it", 1.0, 6.0), boot=booted())
    assert picture.svg(found) == picture.svg(found)


HOSTILE = st.one_of(
    st.text(st.characters()),
    st.sampled_from(
        [
            "</text><script>alert(1)</script>",
            "]]><!-- -- -->&amp;&#0;",
            '" onload="x',
            "\x00\x1b[31m\r\n\ud800\ufffe",
            "\u202eevil\u2066",
            "漢" * 300,
        ]
    ),
)


@given(step=HOSTILE, app=HOSTILE, error=HOSTILE, release=HOSTILE, command=HOSTILE, outcome=HOSTILE)
def test_others_text_is_text_whatever_it_is(
    step: str, app: str, error: str, release: str, command: str, outcome: str
) -> None:
    spans = [span(step, 0.0, 1.0, app=app, failed=True, error=error), span(step, 1.0, 2.0, phase=step, app=app)]
    found = run(*spans, apps={app: {"intent": "deploy", "release": release}}, command=command, outcome=outcome)
    text = picture.svg(found)
    root = ET.fromstring(text.encode())  # it can be written, too
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= ELEMENTS
    assert len([box for box in root.iter(f"{SVG}rect") if (box.get("class") or "").startswith("bar ")]) == 2
    assert {box.get("class") for box in root.iter(f"{SVG}rect")} <= {
        None,
        "paper",
        "band",
        "stage",
        "failed",
        "other",
    } | {f"bar {kind}" for kind in ("failed", "stage", "read", "activate", "serve", "other")} | {
        "read",
        "activate",
        "serve",
    }
    told = "".join(element.text or "" for element in root.iter() if element.tag != f"{SVG}style")
    assert not set(told) & set("\x00\x1b\u202e\u2066\u200f")


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [("short", 5, "short"), ("longer", 5, "long…"), ("漢字漢字", 5, "漢字…"), ("漢字", 4, "漢字"), ("", 5, "")],
)
def test_a_label_is_cut_to_its_columns(text: str, most: int, shown: str) -> None:
    assert picture._cut(text, most) == shown
