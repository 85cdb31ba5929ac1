"""A page of sections, each with tables of ready texts and charts: what `crops reproduce` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from crops.report.charts import Bar, Line, bar_chart, line_chart


@dataclass(frozen=True)
class TextTable:
    """Cells as they are to be read; a cell of several lines has them separated by line breaks."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    reference: int | None = None
    """The row that others are compared with."""
    words: bool = False
    """Whether the cells are words, not figures."""


@dataclass(frozen=True)
class LineFigure:
    """Lines over common axes."""

    title: str
    x_label: str
    lines: Sequence[Line]

    def drawn(self) -> Markup:
        """Return the chart."""
        return line_chart(self.lines, title=self.title, x_label=self.x_label)


@dataclass(frozen=True)
class BarFigure:
    """Shares with their intervals."""

    title: str
    bars: Sequence[Bar]
    reference: float | None = None

    def drawn(self) -> Markup:
        """Return the chart."""
        return bar_chart(self.bars, title=self.title, reference=self.reference)


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it."""

    title: str
    lead: str = ""
    tables: Sequence[TextTable] = ()
    figures: Sequence[LineFigure | BarFigure] = ()


@dataclass(frozen=True)
class TablesReport:
    """The report of `crops reproduce`."""

    title: str
    headline: Sequence[str]
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def section_charts(section: Section) -> list[tuple[str, Markup]]:
    """Return the charts that there is data for, with their captions."""
    charts = [(figure.title, figure.drawn()) for figure in section.figures]
    return [(caption, chart) for caption, chart in charts if chart]
