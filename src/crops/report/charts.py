"""Charts as inline SVG: no script, no request, readable in both colour schemes, in print and aloud.

Colours are classes of the page's style sheet: tone 0 is neutral, 1 to 6 are one palette. Nothing is told
by colour alone: lines differ in dashes and end marks, parts of bars in texture. Without data, a chart is an
empty string.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from crops.errors import CropsError

TONES = 6
_PITCH, _BAR, _FIRST = 39.0, 12.0, 20.0
"""Distance of bars, their thickness, and the y of the first."""
_EDGE = 1.0
"""Room for half a line at both ends of an axis."""
_LEFT, _PLOT = 46.0, 190.0
"""Left margin and height of a line chart's plot."""
_DASHES = ("2 3", None, "7 3", "2 2", "9 3 2 3", "12 4", "5 2 1 2")
"""By tone."""


@dataclass(frozen=True)
class Bar:
    """A value and its interval."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    tone: int = 0


@dataclass(frozen=True)
class Dot(Bar):
    """A difference of shares and its interval."""

    group: str = ""
    """What it is a difference of: neighbours of one group have one heading."""
    sure: bool = True
    """Whether it is more than chance: others are hollow."""


@dataclass(frozen=True)
class SplitBar:
    """A count and the part of it to mark; None where the part has no meaning."""

    name: str
    total: int
    marked: int | None = None
    tone: int = 0


@dataclass(frozen=True)
class Line:
    """A series."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    tone: int = 0


@dataclass(frozen=True)
class Figure:
    """A chart as data: bars or dots from top to bottom, or lines over common axes."""

    title: str
    series: Sequence[Bar] | Sequence[SplitBar] | Sequence[Line]
    x_label: str = ""
    """What the x of lines is."""
    reference: float | None = None
    """A value of bars to draw a line at."""
    upper: float = 0.0
    """The axis of bars reaches at least this far, so that several charts can share a scale."""
    marked: str = ""
    """What the hatched part of split bars is, to follow a number ("never shown before")."""


def draw(figure: Figure) -> Markup:
    """Return the chart of a figure.

    Raises:
        CropsError: a number is not finite, a part is larger than its whole, or x and y differ in length.
    """
    if dots := [one for one in figure.series if isinstance(one, Dot)]:
        return _dot_chart(figure, dots)
    if bars := [one for one in figure.series if isinstance(one, Bar)]:
        return _bar_chart(figure, bars)
    if split := [one for one in figure.series if isinstance(one, SplitBar)]:
        return _split_bar_chart(figure, split)
    return _line_chart(figure, [one for one in figure.series if isinstance(one, Line)])


def _bar_chart(figure: Figure, bars: Sequence[Bar]) -> Markup:
    """Return horizontal bars of shares with 95 % whiskers."""
    upper, reference = figure.upper, figure.reference
    known = [(bar.name, value) for bar in bars for value in (bar.value, *_ends(bar))]
    check_finite(figure.title, [*known, ("the end of the axis", upper), ("the reference", reference or 0.0)])
    values = [*(value for _, value in known), upper]
    x = axis([0.0, *(values if any(values) else [1.0])], _EDGE, WIDTH - _EDGE, about=4, round_ends=True)
    bottom = _FIRST + _PITCH * len(bars)
    drawn = [_vertical(x, tick, bottom, f"{100 * tick:g}") for tick in x.ticks()]
    if reference is not None:
        line = _d((x.at(reference), 8), (x.at(reference), bottom - 8))
        drawn.append(element("path", d=line, class_="reference"))
    told = []
    for row, bar in enumerate(bars):
        y, sentence = _FIRST + _PITCH * row, f"{bar.name}: {_percent(bar.value)}"
        parts = [
            text(bar.name, _EDGE, y, WIDTH - 70),
            text(_percent(bar.value), WIDTH - _EDGE, y, 60, class_="number", anchor="end"),
            _rectangle(x.at(0), x.at(bar.value), y + 7),
        ]
        if ends := _ends(bar):
            middle, places = y + 7 + _BAR / 2, [x.at(end) for end in ends]
            caps = "".join(_d((end, middle - 4), (end, middle + 4)) for end in places)
            line = _d(*((end, middle) for end in places)) + caps
            parts.append(element("path", d=line, class_="whisker"))
            sentence += f", interval {_percent(ends[0])} to {_percent(ends[1])}"
        drawn.append(element("g", *parts, class_=_tone(bar.tone)))
        told.append(sentence)
    return drawing(f"{figure.title}, in %", "; ".join(told), bottom + 14, *drawn)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _dot_chart(figure: Figure, dots: Sequence[Dot]) -> Markup:
    """Return differences in points as dots with their intervals, on one axis around zero."""
    known = [(one.name, value) for one in dots for value in (one.value, *_ends(one))]
    check_finite(figure.title, known)
    room = max(sum(map(_ems, one.name)) for one in dots) * FONT * _CHAR
    above = room > _NAMES  # long names get lines of their own
    left = _EDGE if above else room + 12
    values = [value for _, value in known]
    x = axis([0.0, *(values if any(values) else [0.01])], left, WIDTH - 52, about=4, round_ends=True)
    drawn, told, y, group = [], [], 4.0, ""
    for one in dots:
        if one.group != group:
            y, group = y + 26, one.group
            drawn.append(text(group, _EDGE, y, WIDTH - 2, class_="number"))
        y += 36 if above else 21
        at, value, ends = x.at(one.value), signed(one.value), _ends(one)
        parts = [
            text(one.name, _EDGE, y - (15 if above else 0), WIDTH - 60 if above else room + 1),
            text(value, WIDTH - _EDGE, y, 48, class_="number", anchor="end"),
        ]
        sentence = f"{group} {one.name}: {value}".strip()
        if ends:
            parts.append(element("path", d=_d(*((x.at(end), y - 4) for end in ends)), class_="whisker"))
            sentence += f", interval {signed(ends[0])} to {signed(ends[1])}"
        parts.append(element("circle", cx=at, cy=y - 4, r=4.5, class_="mark" if one.sure else "hollow"))
        drawn.append(element("g", *parts, class_=_tone(one.tone)))
        told.append(sentence)
    bottom = y + 16
    grid = [
        _vertical(x, tick, bottom, signed(tick, "+g") if tick else "0", at_edge=False) for tick in x.ticks()
    ]
    zero = element("path", d=_d((x.at(0), 8), (x.at(0), bottom - 8)), class_="reference")
    return drawing(f"{figure.title}, in points", "; ".join(told), bottom + 14, *grid, zero, *drawn)


_NAMES = 175.0
"""The most room for names beside dots."""


def _ends(one: Bar) -> tuple[float, ...]:
    return () if one.low is None or one.high is None else (one.low, one.high)


def signed(value: float, form: str = "+.1f") -> str:
    """Write a difference of shares in points, with a true minus sign."""
    return f"{round(100 * value, 9):{form}}".replace("-", "\N{MINUS SIGN}")


def _split_bar_chart(figure: Figure, bars: Sequence[SplitBar]) -> Markup:
    """Return horizontal bars of counts whose marked part is hatched."""
    x = axis([0, max(1, *(bar.total for bar in bars))], _EDGE, WIDTH - _EDGE, about=4, round_ends=True)
    bottom = _FIRST + _PITCH * len(bars)
    shown = tick_format(max(1, x.step))
    drawn = [_vertical(x, tick, bottom, shown(tick)) for tick in x.ticks() if tick % 1 == 0]
    told = []
    for row, bar in enumerate(bars):
        y, sentence = _FIRST + _PITCH * row, f"{bar.total:,}"
        if bar.marked is not None and bar.total:
            if not 0 <= bar.marked <= bar.total:
                raise CropsError(
                    f"chart '{figure.title}': {bar.name} has {bar.marked} of {bar.total} {figure.marked}"
                )
            sentence += f", {100 * bar.marked / bar.total:.0f} % {figure.marked}"
        split, end = x.at(bar.total - (bar.marked or 0)), x.at(bar.total)
        parts = [
            text(bar.name, _EDGE, y, WIDTH / 2),
            text(sentence, WIDTH - _EDGE, y, WIDTH / 2, class_="number", anchor="end"),
            _rectangle(x.at(0), split, y + 7),
        ]
        if bar.marked:
            parts.append(_rectangle(split, end, y + 7, class_="part"))
            parts.append(element("path", d=_hatch(split, end, y + 7), class_="hatch"))
        drawn.append(element("g", *parts, class_=_tone(bar.tone)))
        told.append(f"{bar.name}: {sentence}")
    return drawing(figure.title, "; ".join(told), bottom + 14, *drawn)


def _hatch(left: float, right: float, top: float) -> str:
    """Return diagonal strokes cut at the edges of a bar: unlike a pattern they need no id on the page."""
    bottom, strokes = top + _BAR, ""
    for index in range(int((right - left + _BAR) / 5) + 1):
        foot = left - _BAR + 5 * index + 2.5
        start, end = max(foot, left), min(foot + _BAR, right)
        if start < end:
            strokes += _d((start, bottom - (start - foot)), (end, bottom - (end - foot)))
    return strokes


def _line_chart(figure: Figure, lines: Sequence[Line]) -> Markup:
    """Return lines over common axes, names and last values below; lines without points are left out."""
    lines = [line for line in lines if len(line.x) or len(line.y)]
    for line in lines:
        if len(line.x) != len(line.y):
            raise CropsError(f"chart '{figure.title}': {line.name} has {len(line.x)} x for {len(line.y)} y")
        check_finite(figure.title, [(line.name, value) for value in (*line.x, *line.y)])
    if not lines:
        return Markup("")
    x = axis([v for line in lines for v in line.x], _LEFT, WIDTH - 14, about=6, round_ends=False)
    if all(float(v).is_integer() for line in lines for v in line.x):  # days, steps: nothing lies between
        x = replace(x, step=max(1.0, x.step))
    y = axis([v for line in lines for v in line.y], _PLOT, 12, about=4, round_ends=True)
    x_ticks, y_ticks = tick_format(x.step), tick_format(y.step)
    last = tick_format(y.step / 100)
    drawn = []
    for tick in y.ticks():
        level = _d((_LEFT, y.at(tick)), (WIDTH - 14, y.at(tick)))
        drawn.append(element("path", d=level, class_="grid"))
        drawn.append(text(y_ticks(tick), _LEFT - 8, y.at(tick) + 4, _LEFT - 8, class_="tick", anchor="end"))
    for tick in x.ticks():
        drawn.append(text(x_ticks(tick), x.at(tick), _PLOT + 17, 60, class_="tick", anchor="middle"))
    drawn.append(text(figure.x_label, WIDTH - 14, _PLOT + 34, WIDTH / 2, class_="tick", anchor="end"))
    for row, line in enumerate(lines):
        legend, dashes = _PLOT + 56 + 19 * row, _DASHES[line.tone % len(_DASHES)]
        points = [(x.at(a), y.at(b)) for a, b in zip(line.x, line.y, strict=True)]
        sample = [(_LEFT, legend - 4), (_LEFT + 30, legend - 4)]
        drawn.append(
            element(
                "g",
                element("path", d=_d(*points), class_="line", stroke_dasharray=dashes),
                _mark(line.tone, *points[-1]),
                element("path", d=_d(*sample), class_="line", stroke_dasharray=dashes),
                _mark(line.tone, *sample[-1]),
                text(line.name, _LEFT + 42, legend, WIDTH - _LEFT - 120),
                text(last(line.y[-1]), WIDTH - 14, legend, 70, class_="number", anchor="end"),
                class_=_tone(line.tone),
            )
        )
    told = "; ".join(f"{line.name}: from {last(line.y[0])} to {last(line.y[-1])}" for line in lines)
    return drawing(figure.title, told, _PLOT + 50 + 19 * len(lines), *drawn)


def _mark(tone: int, x: float, y: float) -> Markup:
    """Return the end mark of a line: circle, square, triangle or diamond."""
    r = 3.8
    shapes = (
        f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z",
        f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z",
        f"M{x:.1f} {y - r - 1:.1f}l{r + 1} {2 * r + 1}h{-2 * (r + 1)}Z",
        f"M{x:.1f} {y - r - 1.5:.1f}l{r + 1.5} {r + 1.5}l{-(r + 1.5)} {r + 1.5}l{-(r + 1.5)} {-(r + 1.5)}Z",
    )
    return element("path", d=shapes[tone % len(shapes)], class_="mark")


def _tone(tone: int) -> str:
    return f"tone-{(tone - 1) % TONES + 1 if tone else 0}"


def _rectangle(start: float, end: float, top: float, class_: str = "bar") -> Markup:
    return element("rect", x=min(start, end), y=top, width=abs(end - start), height=_BAR, class_=class_)


def _vertical(x: Axis, tick: float, bottom: float, label: str, *, at_edge: bool = True) -> Markup:
    line = element("path", d=_d((x.at(tick), 8), (x.at(tick), bottom - 8)), class_="grid")
    anchor = {x.low: "start", x.high: "end"}.get(tick, "middle") if at_edge else "middle"
    return line + text(label, x.at(tick), bottom + 8, 60, class_="tick", anchor=anchor)


def _d(*points: tuple[float, float]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


# The small parts of a chart: escaped elements, text of a bounded width, scales and ticks.

WIDTH = 400.0
"""Width of every chart in user units; the page scales it to the column."""
FONT = 12.5
"""Font size in user units (set by the style sheet too)."""
_CHAR = 0.56
"""Mean width of a character in ems, for the system's sans serif."""
_LARGEST = 1e100
"""Beyond it the arithmetic of an axis overflows."""


def element(name: str, *children: Markup, **attributes: str | float | None) -> Markup:
    """Return an SVG element; `_` in attribute names stands for `-`, a trailing one is dropped."""
    written = Markup("")
    for key, value in attributes.items():
        if value is not None:
            shown = value if isinstance(value, str) else f"{round(value, 2):g}"
            written += Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), shown)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, Markup("").join(children))


def text(
    content: str, x: float, y: float, width: float, *, class_: str = "ink", anchor: str = "start"
) -> Markup:
    """Return a line of text at (x, y), cut to fit `width`."""
    return element("text", Markup.escape(clip(content, width)), x=x, y=y, class_=class_, text_anchor=anchor)


def clip(content: str, width: float) -> str:
    """Return the text on one line, cut with an ellipsis where it would probably exceed `width` user units."""
    line, room = " ".join(content.split()), width / (FONT * _CHAR) + 1e-9
    if sum(map(_ems, line)) <= room:
        return line
    kept, used = "", 1.0
    for char in line:
        used += _ems(char)
        if used > room:
            break
        kept += char
    return kept.rstrip() + "…"


def _ems(char: str) -> float:
    """Return the width of a character in mean characters: wide scripts and emoji take about two."""
    return 1.8 if unicodedata.east_asian_width(char) in "WF" else 1.0


def drawing(title: str, description: str, height: float, *parts: Markup) -> Markup:
    """Return a chart that screen readers announce by its title and description."""
    return element(
        "svg",
        element("title", Markup.escape(title)),
        element("desc", Markup.escape(description)),
        *parts,
        class_="chart",
        role="img",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
    )


def check_finite(chart: str, values: Iterable[tuple[str, float]]) -> None:
    """Refuse numbers that have no place on an axis.

    Raises:
        CropsError: a named value is NaN, infinite or beyond 1e100.
    """
    for name, value in values:
        if not abs(value) < _LARGEST:
            raise CropsError(
                f"chart '{chart}': {name} is {value}; charts need finite numbers, leave out what has no value"
            )


@dataclass(frozen=True)
class Axis:
    """Maps [low, high] to [start, end] in user units."""

    low: float
    high: float
    start: float
    end: float
    step: float

    def at(self, value: float) -> float:
        """Return the position of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return the multiples of the step from low to high."""
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return [index * self.step for index in range(first, last + 1)]


def axis(values: Iterable[float], start: float, end: float, *, about: int, round_ends: bool) -> Axis:
    """Return an axis from position `start` to `end` with `about` so many ticks; equal values get room.

    With `round_ends` it reaches to the next tick on both sides.
    """
    seen = list(values)
    low, high = min(seen), max(seen)
    size = max(abs(low), abs(high))
    if high - low <= max(1e-12 * size, 1 / _LARGEST):
        pad = 0.1 * size if size > 1 / _LARGEST else 1.0
        low, high = low - pad, high + pad
    step = nice_step((high - low) / about)
    if round_ends:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Axis(low, high, start, end, step)


def nice_step(rough: float) -> float:
    """Return the number of the form 1, 2 or 5 times a power of ten that is nearest above `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def tick_format(step: float) -> Callable[[float], str]:
    """Return how to write the ticks of an axis: just enough decimals to tell them apart."""
    if not 1e-4 <= step < 1e7:
        return lambda value: f"{value:.3g}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return lambda value: f"{value + 0.0:,.{decimals}f}"
