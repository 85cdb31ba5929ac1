"""The daily effects of an experiment as charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crops.online.analysis import Analysis
from crops.online.daily import DayEffect
from crops.online.metrics import PRIMARY
from crops.report import LineFigure
from crops.report.charts import Line

Looks = Mapping[str, Sequence[DayEffect]]
"""The looks at one metric, by arm."""


def figures(analysis: Analysis) -> list[LineFigure]:
    """Return the daily effects on each primary metric: of the days so far, and of each day alone."""
    charts = []
    for metric in analysis.metrics:
        if metric.key not in PRIMARY or not analysis.daily:
            continue
        arms = {arm: by_metric[metric.key] for arm, by_metric in analysis.daily.items()}
        so_far = [*_lines(arms, "so_far"), *_funnel(arms)]
        charts.append(LineFigure(f"{metric.label}: effect of the days so far, points", "day", so_far))
        alone = _lines(arms, "alone")
        charts.append(LineFigure(f"{metric.label}: effect of each day alone, points", "day", alone))
    return charts


def _lines(arms: Looks, which: str) -> list[Line]:
    lines = []
    for tone, (arm, looks) in enumerate(arms.items(), start=1):
        points = [(day, found) for day, look in enumerate(looks, 1) if (found := getattr(look, which))]
        lines.append(
            Line(arm, [day for day, _ in points], [100 * found.absolute for _, found in points], tone)
        )
    return lines


def _funnel(arms: Looks) -> list[Line]:
    """Return the widest boundary of the arms: beyond it every arm's effect may be claimed."""
    reach: dict[int, float] = {}
    for looks in arms.values():
        for day, look in enumerate(looks, 1):
            if look.so_far:
                edge = 100 * look.bound * look.so_far.standard_error
                reach[day] = max(edge, reach.get(day, 0.0))
    days = sorted(reach)
    return [
        Line("claimed above", days, [reach[day] for day in days]),
        Line("claimed below", days, [-reach[day] for day in days]),
    ]
