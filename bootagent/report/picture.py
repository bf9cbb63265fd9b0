"""A run as a picture: a bar for every stage of the boot and every step, on one axis of seconds.

The SVG stands alone: no scripts, no fonts or images from elsewhere, legible on light and on dark paper. What it is told
of (names, paths, messages of errors) is others' text and only ever ends up as text.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

Facts = dict[str, Any]

WIDTH = 1190
MARGIN = 20
#: The column of labels, and how wide one of its characters is: every monospaced font's are about 0.6 of its size.
LABELS = 400
CHARACTER = 6.7
CHART = LABELS + MARGIN
CHART_WIDTH = 650
ROW = 22
BAR = 12
TICKS = 8
#: No bar is thinner, however short what it stands for was.
THINNEST = 2.0

#: What the way to the end of a boot's run is made of.
_BREAKDOWN = ("kernel", "systemd", "agent")
_STYLE = """
.paper{fill:#fff} text{fill:#1f2937;stroke:#fff;stroke-width:3px;stroke-linejoin:round;paint-order:stroke;
font:11px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.title{font:600 19px system-ui,"Segoe UI","DejaVu Sans",sans-serif}
.said{font:13px system-ui,"Segoe UI","DejaVu Sans",sans-serif;fill:#4b5563}
.lane{font:600 13px system-ui,"Segoe UI","DejaVu Sans",sans-serif} .quiet{fill:#6b7280}
.band{fill:#f3f4f6} .grid{stroke:#d1d5db;stroke-width:1} .mark{stroke:#15803d;stroke-width:1.5;stroke-dasharray:4 3}
.good{fill:#15803d;font-weight:600} .bad{fill:#b91c1c;font-weight:600}
.firmware{fill:#9ca3af} .kernel{fill:#64748b} .systemd{fill:#8b5cf6} .agent{fill:#c084fc}
.read{fill:#0ea5e9} .attach{fill:#0891b2} .retire{fill:#94a3b8} .stage{fill:#f59e0b}
.activate{fill:#10b981} .serve{fill:#3b82f6} .other{fill:#14b8a6}
.hold{fill:#9ca3af} .failed{fill:#dc2626} .wait{fill:url(#waiting)}
.open{fill-opacity:.45;stroke:#dc2626;stroke-dasharray:3 2}
@media (prefers-color-scheme:dark){.paper{fill:#111827} text{fill:#e5e7eb;stroke:#111827}
.said{fill:#9ca3af} .quiet{fill:#9ca3af}
.band{fill:#1f2937} .grid{stroke:#374151} .mark{stroke:#4ade80} .good{fill:#4ade80} .bad{fill:#f87171}}
"""


@dataclass(frozen=True)
class Bar:
    """One bar: from ``begin`` to ``end`` on the axis, in seconds; ``about`` is its tooltip.

    ``held_since``: when its lane was done with the phase before, if others were not.
    """

    label: str
    kind: str
    begin: float
    end: float
    about: str
    failed: bool = False
    unfinished: bool = False
    waits: tuple[tuple[float, float], ...] = ()
    held_since: float | None = None


@dataclass(frozen=True)
class Lane:
    """Bars that belong together, under one heading; ``remark`` stands in for them when there are none."""

    heading: str
    bars: tuple[Bar, ...]
    remark: str = ""


@dataclass(frozen=True)
class Axis:
    """Seconds to the picture's own units."""

    begin: float
    end: float

    def x(self, seconds: float) -> float:
        """Where a moment is."""
        share = (seconds - self.begin) / (self.end - self.begin)
        return CHART + min(max(share, 0.0), 1.0) * CHART_WIDTH

    def ticks(self) -> Iterator[float]:
        """Round moments, some eight of them."""
        rough = (self.end - self.begin) / TICKS
        size: float = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough)
        number = math.ceil(self.begin / step)
        while number * step <= self.end:
            yield number * step
            number += 1


def svg(found: Facts) -> str:
    """The picture of what ``report.boot_timeline`` found, as the text of an SVG file."""
    lanes = _lanes(found)
    axis = _axis(found, lanes)
    root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-labelledby": "title desc"})
    headline = _headline(found)
    _text(root, "title", _title(found), id="title")
    _text(root, "desc", f"{headline}. {_described(lanes)}", id="desc")
    ET.SubElement(root, "style").text = _STYLE
    _definitions(root)
    ET.SubElement(root, "rect", {"class": "paper", "width": "100%", "height": "100%"})
    head, bands, grid, chart = (ET.SubElement(root, "g") for _ in range(4))
    top = _draw_head(head, found, headline, lanes)
    bottom = _draw_lanes(bands, chart, lanes, axis, top + 20)
    _draw_axis(grid, axis, top, bottom)
    bottom = _draw_end(grid, found, axis, top, bottom)
    root.set("viewBox", f"0 0 {WIDTH} {bottom + MARGIN}")
    root.set("width", str(WIDTH))
    root.set("height", str(bottom + MARGIN))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


# --- what is to be drawn -----------------------------------------------------------------------------------------


def _lanes(found: Facts) -> list[Lane]:
    offset = _offset(found)
    lanes = []
    if found["boot"]:
        stages = [_stage(stage["name"], stage["begin"], stage["end"]) for stage in found["boot"]["stages"]]
        finish = found["boot"]["finish"]
        if finish is not None and finish > offset:
            stages.append(_stage("systemd, beside the agent", offset, finish))
        lanes.append(Lane("boot", tuple(stages)))
    spans: dict[str | None, list[Facts]] = {None: []}
    for name in found["apps"]:
        spans[name] = []
    for span in found["spans"]:
        spans.setdefault(span["app"], []).append(span)
    for name, own in spans.items():
        bars = tuple(_step(span, offset, found["waits"]) for span in own)
        if name is not None and len(found["apps"]) > 1:
            bars = _held_up(bars, found["seconds"] / 200)
        app = found["apps"].get(name, {})
        heading = "agent" if name is None else f"{name}: {app.get('intent') or ''} {app.get('release') or ''}"
        lanes.append(Lane(heading.strip(" :"), bars, "" if bars else "nothing had to be done"))
    return lanes


def _offset(found: Facts) -> float:
    """When the run began, on the axis."""
    return float(found["uptime_at_start"]) if found["boot"] else 0.0


def _stage(name: str, begin: float, end: float) -> Bar:
    kinds = {"firmware": "firmware", "boot loader": "firmware", "the agent starts": "agent"}
    kind = kinds.get(name, "systemd" if name.startswith("systemd") else "kernel")
    return Bar(name, kind, begin, end, f"{name}: {_span_text(begin, end)}")


def _step(span: Facts, offset: float, waits: Sequence[Facts]) -> Bar:
    begin, end = offset + span["begin"], offset + span["end"]
    inside = tuple(
        (max(begin, offset + wait["begin"]), min(end, offset + wait["end"]))
        for wait in waits
        if span["phase"] == "read" and wait["begin"] < span["end"] and wait["end"] > span["begin"]
    )
    about = f"{span['step']} ({span['phase']}): {_span_text(begin, end)}"
    if span["failed"]:
        about += f"; failed: {str(span.get('error') or '')[:500]}"
    if span["unfinished"]:
        about += "; not finished"
    kind = span["phase"] if span["phase"] in ("read", "attach", "stage", "activate", "serve", "retire") else "other"
    return Bar(span["step"], kind, begin, end, about, span["failed"], span["unfinished"], inside)


def _held_up(bars: tuple[Bar, ...], least: float) -> tuple[Bar, ...]:
    """Mark where an app waited for at least so long until the others were done with a phase, too."""
    return bars[:1] + tuple(
        replace(bar, held_since=before.end) if before.kind != bar.kind and bar.begin - before.end > least else bar
        for before, bar in itertools.pairwise(bars)
    )


def _axis(found: Facts, lanes: Sequence[Lane]) -> Axis:
    bars = [bar for lane in lanes for bar in lane.bars]
    begin = min([0.0, *(bar.begin for bar in bars if bar.kind == "firmware")])
    end = max([_offset(found) + found["seconds"], *(bar.end for bar in bars)])
    return Axis(begin, max(end, begin + 0.001))


def _title(found: Facts) -> str:
    command = "boot" if found["boot"] else str(found["command"] or "run")
    return f"{command[:1].upper()}{command[1:]} of {found['started'][:19].replace('T', ' ')} UTC"


def _headline(found: Facts) -> str:
    ended = "healthy" if found["outcome"] == "done" and found["boot"] else found["outcome"]
    if not found["boot"]:
        return f"{ended} after {_seconds(found['seconds'])}"
    spent = dict.fromkeys(("firmware", *_BREAKDOWN), 0.0)
    for stage in found["boot"]["stages"]:
        bar = _stage(stage["name"], stage["begin"], stage["end"])
        spent[bar.kind] += bar.end - bar.begin
    spent["agent"] += found["seconds"]
    parts = ", ".join(f"{name} {_seconds(spent[name])}" for name in _BREAKDOWN if spent[name] > 0)
    before = f"; firmware {_seconds(spent['firmware'])} before that" if spent["firmware"] else ""
    return f"{ended} {_seconds(_offset(found) + found['seconds'])} after the kernel started: {parts}{before}"


def _described(lanes: Sequence[Lane]) -> str:
    """The picture in words, for those who cannot see it."""
    told = []
    for lane in lanes:
        bars = [f"{bar.label} {_seconds(bar.end - bar.begin)}{' failed' if bar.failed else ''}" for bar in lane.bars]
        told.append(f"{lane.heading}: {'; '.join(bars) or lane.remark}.")
    return " ".join(told)


# --- drawing -----------------------------------------------------------------------------------------------------


def _definitions(root: ET.Element) -> None:
    definitions = ET.SubElement(root, "defs")
    hatch = {"id": "waiting", "width": "6", "height": "6", "patternUnits": "userSpaceOnUse"}
    pattern = ET.SubElement(definitions, "pattern", {**hatch, "patternTransform": "rotate(45)"})
    ET.SubElement(pattern, "rect", {"width": "3", "height": "6", "fill": "#fff", "fill-opacity": ".6"})
    clip = ET.SubElement(definitions, "clipPath", {"id": "labels"})
    _rect(clip, 0, 0, CHART - 4, 10**6)


def _draw_head(head: ET.Element, found: Facts, headline: str, lanes: Sequence[Lane]) -> float:
    _text(head, "text", _title(found), x=MARGIN, y=38, kind="title")
    _text(head, "text", headline, x=MARGIN, y=60, kind="said")
    x = float(MARGIN)
    kinds = dict.fromkeys(bar.kind for lane in lanes for bar in lane.bars if not bar.failed)
    names = [*kinds, *(["failed"] if any(bar.failed for lane in lanes for bar in lane.bars) else [])]
    if any(bar.waits for lane in lanes for bar in lane.bars):
        names.append("waiting")
    if any(bar.held_since is not None for lane in lanes for bar in lane.bars):
        names.append("held up by other apps")
    for name in names:
        if name == "held up by other apps":
            _rect(head, x, 81, BAR, 2, "hold")
        else:
            _rect(head, x, 76, BAR, BAR, "read" if name == "waiting" else name)
        if name == "waiting":
            _rect(head, x, 76, BAR, BAR, "wait")
        _text(head, "text", name, x=x + BAR + 6, y=86)
        x += BAR + 6 + len(name) * CHARACTER + 20
    return 104


def _draw_lanes(bands: ET.Element, chart: ET.Element, lanes: Sequence[Lane], axis: Axis, top: float) -> float:
    """Draw the lanes, and return where they end."""
    labels = ET.SubElement(chart, "g", {"clip-path": "url(#labels)"})
    y = top
    for number, lane in enumerate(lanes):
        height = ROW * (1 + max(1, len(lane.bars))) + 8
        if number % 2 == 0:
            _rect(bands, 0, y, WIDTH, height, "band")
        _text(labels, "text", _cut(lane.heading, 52), x=MARGIN, y=y + 18, kind="lane")
        y += ROW
        if lane.remark:
            _text(labels, "text", lane.remark, x=MARGIN + 12, y=y + 14, kind="quiet")
            y += ROW
        for bar in lane.bars:
            _draw_bar(chart, labels, bar, axis, y)
            y += ROW
        y += 8
    return y


def _draw_bar(chart: ET.Element, labels: ET.Element, bar: Bar, axis: Axis, y: float) -> None:
    waited = sum(end - begin for begin, end in bar.waits)
    suffix = f" ({_seconds(waited)} waiting)" if bar.waits else ""
    most = int((CHART - 4 - MARGIN - 12) / CHARACTER)
    label = _text(labels, "text", _cut(bar.label, most - len(suffix)) + suffix, x=MARGIN + 12, y=y + 14)
    _text(label, "title", bar.about)
    group = ET.SubElement(chart, "g")
    _text(group, "title", bar.about)
    if bar.held_since is not None:
        held = ET.SubElement(chart, "g")
        _text(held, "title", f"held up by the other apps: {_span_text(bar.held_since, bar.begin)}")
        _rect(held, axis.x(bar.held_since), y + 9, axis.x(bar.begin) - axis.x(bar.held_since), 2, "hold")
    kind = "failed" if bar.failed else bar.kind
    left, width = axis.x(bar.begin), max(axis.x(bar.end) - axis.x(bar.begin), THINNEST)
    _rect(group, left, y + 4, width, BAR, f"bar {kind}{' open' if bar.unfinished else ''}")
    for begin, end in bar.waits:
        _rect(group, axis.x(begin), y + 4, axis.x(end) - axis.x(begin), BAR, "wait")
    ending = " ✕ failed" if bar.failed else " …" if bar.unfinished else ""
    took = f"{_seconds(bar.end - bar.begin)}{ending}"
    _text(group, "text", took, x=left + width + 6, y=y + 14, kind="bad" if bar.failed else "")


def _draw_axis(grid: ET.Element, axis: Axis, top: float, bottom: float) -> None:
    for tick in axis.ticks():
        x = _number(axis.x(tick))
        ET.SubElement(grid, "line", {"class": "grid", "x1": x, "x2": x, "y1": str(top + 14), "y2": str(bottom)})
        _text(grid, "text", f"{round(tick, 6):g} s", x=axis.x(tick), y=top + 8, kind="quiet", anchor="middle")


def _draw_end(grid: ET.Element, found: Facts, axis: Axis, top: float, bottom: float) -> float:
    """Mark the end of the run."""
    moment = _offset(found) + found["seconds"]
    x = axis.x(moment)
    good = found["outcome"] == "done"
    if good:
        ends = {"x1": _number(x), "x2": _number(x), "y1": str(top + 14), "y2": str(bottom + 4)}
        ET.SubElement(grid, "line", {"class": "mark", **ends})
    said = "healthy" if good and found["boot"] else found["outcome"]
    anchor = "end" if x > CHART + CHART_WIDTH / 2 else "start"
    _text(grid, "text", f"{said} {_seconds(moment)}", x=x, y=bottom + 18, kind="good" if good else "bad", anchor=anchor)
    since = "the kernel started" if found["boot"] else "the run began"
    _text(grid, "text", f"seconds since {since}", x=MARGIN, y=bottom + 18, kind="quiet")
    return bottom + 24


def _rect(parent: ET.Element, x: float, y: float, width: float, height: float, kind: str = "") -> None:
    box = {"x": _number(x), "y": _number(y), "width": _number(max(width, 0.0)), "height": _number(height)}
    ET.SubElement(parent, "rect", {**({"class": kind} if kind else {}), **box})


def _text(
    parent: ET.Element,
    element: str,
    text: str,
    *,
    x: float | None = None,
    y: float | None = None,
    kind: str = "",
    anchor: str = "",
    id: str = "",
) -> ET.Element:
    named = {"id": id, "class": kind, "text-anchor": anchor}
    placed = {"x": _number(x) if x is not None else "", "y": _number(y) if y is not None else ""}
    made = ET.SubElement(parent, element, {key: value for key, value in {**named, **placed}.items() if value})
    made.text = _clean(text)
    return made


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def _span_text(begin: float, end: float) -> str:
    return f"{_seconds(end - begin)}, from {begin:.2f} s to {end:.2f} s"


def _clean(text: str) -> str:
    """Text as XML may hold it, without what would break lines or turn the order of what stands around it."""
    return "".join(
        " " if char.isspace() else "\ufffd" if unicodedata.category(char).startswith("C") else char for char in text
    )


def _cut(text: str, most: int) -> str:
    """At most so many columns of a text; East Asian characters take two."""
    text = _clean(text)
    columns = 0
    for number, char in enumerate(text):
        columns += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if columns > most:
            kept = text[:number]
            while kept and sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in kept) > most - 1:
                kept = kept[:-1]
            return f"{kept}…"
    return text
