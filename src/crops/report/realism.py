"""The realism report: what simulated platforms look like, beside what was measured on people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from crops.report.charts import Line, line_chart


@dataclass(frozen=True)
class Cell:
    """A measured share, and whether it is accepted; None where the row has no range."""

    measured: float
    holds: bool | None = None


@dataclass(frozen=True)
class RealismRow:
    """One figure, in every world."""

    name: str
    figure: str
    """The public figure as text."""
    source: str
    accepted: tuple[float, float] | None
    cells: Sequence[Cell | None]
    """By world; None where it was not measured."""


@dataclass(frozen=True)
class Curve:
    """A distribution drawn for every world, and for people where that was measured."""

    title: str
    x_label: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    """x and y by name."""


@dataclass(frozen=True)
class RealismReport:
    """The report of `crops platform-report`."""

    title: str
    headline: Sequence[str]
    facts: Sequence[tuple[str, str]]
    worlds: Sequence[str]
    realism: Sequence[RealismRow]
    bubble: Sequence[RealismRow]
    curves: Sequence[Curve]


def realism_charts(report: RealismReport) -> list[tuple[str, Markup]]:
    """Return the charts that there is data for, with their captions."""
    charts = [
        (
            curve.title,
            line_chart(
                [Line(name, x, y, tone) for tone, (name, (x, y)) in enumerate(curve.lines.items(), start=1)],
                title=curve.title,
                x_label=curve.x_label,
            ),
        )
        for curve in report.curves
    ]
    return [(title, chart) for title, chart in charts if chart]
