"""The small parts of a chart: escaped elements, text of a bounded width, scales and ticks."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from markupsafe import Markup

from crops.errors import CropsError

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
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _attribute(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, Markup("").join(children))


def _attribute(value: str | float) -> str:
    return value if isinstance(value, str) else f"{round(value, 2):g}"


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
    """Return an axis over finite values; equal values get room on both sides.

    Args:
        values: at least one.
        start: position of the low end.
        end: position of the high end.
        about: how many ticks are wanted.
        round_ends: whether the axis reaches to the next tick on both sides.
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


def percent(value: float) -> str:
    """Return a share in %, without the sign."""
    return f"{100 * value:.1f}"
