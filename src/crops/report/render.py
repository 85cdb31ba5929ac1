"""Pages from data: Jinja2 templates with everything escaped, one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from crops.evaluation import MIN_QUERIES
from crops.labels import ORIGINS
from crops.outputs import unique
from crops.report.charts import (
    Bar,
    Line,
    bar_chart,
    curve_charts,
    line_chart,
    metric_charts,
    percent,
    source_chart,
    window,
)
from crops.report.data import SIGNIFICANT, DemoReport, Hit, QueryCase, ResultTable
from crops.report.pages import (
    CalibrationReport,
    EngineReport,
    JudgeReport,
    RealismReport,
    calibration_charts,
    engine_charts,
    judge_charts,
    realism_charts,
)


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
class LineFigure:
    """Lines over common axes."""

    title: str
    x_label: str
    lines: Sequence[Line]

    def drawn(self) -> Markup:
        """Return the chart."""
        return line_chart(self.lines, title=self.title, x_label=self.x_label)


# ------------------------------------------------------------------------------
# A page of sections, each with tables of ready texts and charts: what `crops reproduce` shows.


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


Report = DemoReport | RealismReport | EngineReport | JudgeReport | CalibrationReport | TablesReport

"""Everything that becomes a page."""


def render_report(data: Report) -> str:
    """Return the report as one HTML page: no script, no request to anywhere, all texts escaped.

    Raises:
        CropsError: a number to be drawn is not finite, or a part is larger than its whole.
    """
    if isinstance(data, RealismReport):
        page = _environment().get_template("realism.html")
        return page.render(report=data, charts=realism_charts(data))
    if isinstance(data, TablesReport):
        charts = [section_charts(section) for section in data.sections]
        return _environment().get_template("tables.html").render(report=data, charts=charts)
    if isinstance(data, JudgeReport):
        return _environment().get_template("judge.html").render(report=data, charts=judge_charts(data))
    if isinstance(data, CalibrationReport):
        page = _environment().get_template("calibration.html")
        return page.render(report=data, charts=calibration_charts(data))
    if isinstance(data, EngineReport):
        page = _environment().get_template("engine.html")
        return page.render(
            report=data,
            charts=engine_charts(data),
            source_chart=source_chart(data.sources),
            label_meanings=label_meanings(),
            sources_named=list(dict.fromkeys(name for row in data.coverage for name in row.shares or ())),
        )
    longest = max((len(curve.steps) for curve in data.curves), default=0)
    page = _environment().get_template("demo.html")
    return page.render(
        report=data,
        metric_charts=metric_charts(data.tables[0], _coloured(data)) if data.tables else [],
        source_chart=source_chart(data.sources) if data.sources else "",
        curve_charts=curve_charts(data.curves),
        window=window(longest),
        label_meanings=label_meanings(),
        significant=SIGNIFICANT,
    )


def _coloured(data: DemoReport) -> list[str]:
    """Return the models with a colour of their own: those with a curve, else the reference and all below."""
    if data.curves:
        return [curve.name for curve in data.curves]
    rows = data.tables[0].rows
    first = next((index for index, row in enumerate(rows) if row.is_reference), len(rows))
    return [row.name for row in rows[first:]]


def write_report(data: Report, path: str | Path) -> None:
    """Write the report to `path`; the file appears whole or not at all.

    Raises:
        CropsError: as `render_report`.
    """
    path = Path(path)
    page = render_report(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = unique(path, "tmp")
    try:
        staging.write_text(page, encoding="utf-8", errors="replace")
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def standalone(chart: Markup) -> str:
    """Return a chart as an SVG file of its own, in the colours of the pages, light and dark."""
    style = resources.files("crops.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    colours = style.split("* {", 1)[0]
    rules = [line for line in style.splitlines() if line.startswith((".chart ", ".tone-"))]
    sheet = "\n".join([colours, "svg { background: var(--paper); }", *rules])
    # Of a plain text: Markup would escape what is put in.
    drawing = str(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return drawing.replace("<title>", f"<style>\n{sheet}\n</style><title>", 1) + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("crops.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["min_queries"] = MIN_QUERIES
    environment.filters.update(
        percent=percent,
        signed=_signed,
        p_value=_p_value,
        best=_best,
        queries=_queries,
        tally=_tally,
        count_of=_count,
    )
    return environment


def _signed(value: float) -> str:
    """Write a difference of shares in points, with a true minus sign."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _p_value(p: float | None) -> str:
    if p is None:
        return "not testable"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _best(table: ResultTable, key: str) -> str | None:
    """Return the largest value of a column as it is printed: rows that print the same are equally best."""
    means = [row.cells[key].mean for row in table.rows if key in row.cells]
    return percent(max(means)) if table.contest and len(means) > 1 else None


def _queries(table: ResultTable, key: str) -> str:
    """Return the number of queries behind a column, as a range where its rows differ."""
    counts = {row.cells[key].n for row in table.rows if key in row.cells}
    if not counts:
        return "–"
    return f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,}–{max(counts):,}"


def _tally(hits: Sequence[Hit], case: QueryCase) -> list[tuple[str, str]]:
    """Return what a column of results amounts to: (number, of what)."""
    graded = [hit.grade for hit in hits if hit.grade is not None]
    topics = {hit.topic for hit in hits if hit.topic is not None}
    never_shown = sum(hit.never_shown for hit in hits)
    tally = []
    if graded:
        relevant = sum(grade >= case.relevant_grade for grade in graded)
        tally.append((f"{relevant} of {len(graded)}", "relevant"))
    if topics:
        tally.append((str(len(topics)), "topic" if len(topics) == 1 else "topics"))
    if never_shown:
        tally.append((str(never_shown), "never shown before"))
    return tally


def label_meanings() -> dict[int, str]:
    """Return what earns each label by default."""
    meanings: dict[int, list[str]] = {}
    for row in reversed(ORIGINS):
        named = row.meaning if row.stage else f"{row.meaning} ({row.name})"
        meanings.setdefault(row.label, []).insert(0, named)
    return {label: ", or ".join(texts) for label, texts in meanings.items()}


def section_charts(section: Section) -> list[tuple[str, Markup]]:
    """Return the charts that there is data for, with their captions."""
    charts = [(figure.title, figure.drawn()) for figure in section.figures]
    return [(caption, chart) for caption, chart in charts if chart]
