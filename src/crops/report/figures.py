"""Which charts a report has, from its data."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from crops.report.charts import Bar, Line, SplitBar, bar_chart, line_chart, split_bar_chart
from crops.report.data import ResultRow, ResultTable, SourceCounts, TrainingCurve

MAX_POINTS = 60
"""A curve with more points is drawn as means over equal windows, or the noise hides it."""


def metric_charts(table: ResultTable, tones: Sequence[str]) -> list[tuple[str, Markup]]:
    """Return a bar chart for each plotted metric, with its caption; all have the same scale.

    Args:
        table: the results; a line marks the reference row.
        tones: names of rows in the order of their colours; other rows are neutral.
    """
    charts = []
    columns = [column for column in table.columns if column.plotted]
    values = [row.cells[column.key] for column in columns for row in table.rows if column.key in row.cells]
    upper = max((max(value.mean, value.high or 0.0) for value in values), default=0.0)
    for column in columns:
        rows = [row for row in table.rows if column.key in row.cells]
        reference = next((row.cells[column.key].mean for row in rows if row.is_reference), None)
        bars = [_bar(row, column.key, tones) for row in rows]
        chart = bar_chart(bars, title=column.label, upper=upper, reference=reference)
        charts.append((column.label, chart))
    return [(caption, chart) for caption, chart in charts if chart]


def _bar(row: ResultRow, key: str, tones: Sequence[str]) -> Bar:
    cell = row.cells[key]
    tone = tones.index(row.name) + 1 if row.name in tones else 0
    return Bar(row.name, cell.mean, cell.low, cell.high, tone)


def source_chart(sources: SourceCounts) -> Markup:
    """Return the kept positives of each source, the never shown ones hatched."""
    bars = [SplitBar(row.name, row.kept, row.never_shown, tone) for tone, row in enumerate(sources.rows, 1)]
    return split_bar_chart(bars, title="Positives by source", marked="never shown")


def curve_charts(curves: Sequence[TrainingCurve]) -> list[tuple[str, Markup]]:
    """Return the charts of temperature and loss that there is data for, with their captions."""
    temperature = [_line(curve, curve.temperature, tone) for tone, curve in enumerate(curves, 1)]
    loss = [_line(curve, curve.loss, tone) for tone, curve in enumerate(curves, 1)]
    named = (("Temperature", temperature), ("Loss", loss))
    charts = [(name, line_chart(lines, title=name, x_label="step")) for name, lines in named]
    return [(caption, chart) for caption, chart in charts if chart]


def window(points: int) -> int:
    """Return how many points of a curve make one drawn point."""
    return -(-points // MAX_POINTS) or 1


def _line(curve: TrainingCurve, values: Sequence[float], tone: int) -> Line:
    if not values:
        return Line(curve.name, (), (), tone)
    size = window(len(values))
    return Line(curve.name, _means(curve.steps, size), _means(values, size), tone)


def _means(values: Sequence[float], size: int) -> list[float]:
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(part) / len(part) for part in parts]
