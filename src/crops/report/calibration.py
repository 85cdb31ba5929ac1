"""The calibration report: what a threshold of theta keeps, and whether its probabilities can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from crops.report.charts import Line, line_chart


@dataclass(frozen=True)
class AlphaRow:
    """What passes a threshold; precision is None where nothing does."""

    alpha: float
    kept: int
    precision: float | None
    recall: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of like probability: their mean, the share that is relevant, how many."""

    predicted: float
    observed: float
    pairs: int


@dataclass(frozen=True)
class CalibrationReport:
    """The report of `crops calibrate`."""

    title: str
    headline: Sequence[str]
    facts: Sequence[tuple[str, str]]
    alphas: Sequence[AlphaRow]
    bins: Sequence[ReliabilityBin]
    default_alpha: float
    """The threshold in the settings, marked in the table."""


def calibration_charts(report: CalibrationReport) -> list[tuple[str, Markup]]:
    """Return the reliability plot and the precision-recall plot, with their captions."""
    known = [row for row in report.alphas if row.precision is not None]
    lines = [
        Line("perfect", [0.0, 1.0], [0.0, 1.0]),
        Line("measured", [one.predicted for one in report.bins], [one.observed for one in report.bins], 1),
    ]
    shares = [
        Line("precision", [row.alpha for row in known], [row.precision or 0.0 for row in known], 2),
        Line("recall", [row.alpha for row in report.alphas], [row.recall for row in report.alphas], 3),
    ]
    return [
        (
            "Reliability: share that is relevant, by predicted probability",
            line_chart(lines, title="Reliability", x_label="predicted probability"),
        ),
        (
            "Precision and recall by alpha",
            line_chart(shares, title="Precision and recall", x_label="alpha"),
        ),
    ]
