"""The engine's report: where samples come from, what they cover, who they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from crops.labels import POSITIVE_ORIGINS
from crops.report.charts import Bar, Line, SplitBar, bar_chart, line_chart, split_bar_chart
from crops.report.data import Coverage, SourceCounts, SourceRow


@dataclass(frozen=True)
class Disagreement:
    """The positives of a source beside what the other sources and the search made of them."""

    source: str
    positives: int
    also: Mapping[str, int | None]
    """How many another source makes positive too; None for the source itself."""
    search: Mapping[str, int]
    """By the highest stage they reached in search."""
    negatives: int
    """How many search alone would have called negatives."""


@dataclass(frozen=True)
class FrequencyRow:
    """How many queries of a frequency have a positive; None stands for what too few users are behind."""

    name: str
    queries: int | None
    searches: int | None
    least: int | None
    most: int | None
    """Searches per query, from least to most."""
    shares: Mapping[str, float | None]
    """By source."""


@dataclass(frozen=True)
class Block:
    """Users next to each other in influence, or one of them."""

    name: str
    contributions: int
    """(query, item, user) that evidence has."""
    share: float


@dataclass(frozen=True)
class Influence:
    """How positives spread over the users whose behaviour they rest on."""

    users: int
    pairs: int
    of_one_user: int | None
    """Pairs that a single user speaks for; None where these are too few users."""
    blocks: Sequence[Block]


@dataclass(frozen=True)
class EngineReport:
    """The report of `crops engine-report`."""

    title: str
    headline: Sequence[str]
    facts: Sequence[tuple[str, str]]
    sources: SourceCounts
    disagreements: Sequence[Disagreement]
    coverage: Sequence[FrequencyRow]
    influence: Influence
    k: int
    notes: Sequence[str] = ()


def engine_charts(report: EngineReport) -> dict[str, list[tuple[str, Markup]]]:
    """Return the charts of each section that there is data for, with their captions."""
    labels = [SplitBar(f"label {label}", count) for label, count in sorted(report.sources.labels.items())]
    disagreements = [
        SplitBar(row.source, row.positives, row.negatives, tone)
        for tone, row in enumerate(report.disagreements, start=1)
    ]
    drawn = {
        "labels": [("Samples by label", split_bar_chart(labels[::-1], title="Samples by label", marked=""))],
        "disagreements": [
            (
                "Positives, of them rescued from the negatives of search",
                split_bar_chart(disagreements, title="Positives", marked="rescued"),
            )
        ],
        "coverage": [(row.name, _coverage_chart(row)) for row in report.coverage],
        "influence": [("Share of all contributions", _influence_chart(report.influence))],
    }
    return {
        section: [(caption, chart) for caption, chart in charts if chart] for section, charts in drawn.items()
    }


def _coverage_chart(row: FrequencyRow) -> Markup:
    bars = [
        Bar(name, value, tone=tone)
        for tone, (name, value) in enumerate(row.shares.items(), start=1)
        if value is not None
    ]
    return bar_chart(bars, title=f"Queries with a positive, {row.name}", upper=1.0)


def _influence_chart(influence: Influence) -> Markup:
    bars = [Bar(block.name, block.share) for block in influence.blocks]
    return bar_chart(bars, title="Share of all contributions")


# ------------------------------------------------------------------------------
# The calibration report: what a threshold of theta keeps, and whether its probabilities can be trusted.


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


# ------------------------------------------------------------------------------
# The judge report: what people and an LLM say of the positives of each source (the paper's Figure 6).


@dataclass(frozen=True)
class JudgedSource:
    """How the pairs of a source were graded."""

    name: str
    counts: tuple[int, int, int]
    """Irrelevant, relevant, very relevant."""
    low: float | None
    high: float | None
    """95 % interval of the share that is relevant or better; None where the pairs are too few for one."""

    @property
    def pairs(self) -> int:
        """How many were graded."""
        return sum(self.counts)

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of the grades."""
        return tuple(count / self.pairs for count in self.counts)

    @property
    def useful(self) -> float:
        """The share that is relevant or better."""
        return (self.counts[1] + self.counts[2]) / self.pairs


@dataclass(frozen=True)
class RaterPair:
    """How far two raters agree; a kappa is None where chance alone would agree."""

    names: str
    pairs: int
    same: float
    kappa: float | None
    weighted_kappa: float | None


@dataclass(frozen=True)
class JudgeReport:
    """The report of `crops judge report`."""

    title: str
    headline: Sequence[str]
    facts: Sequence[tuple[str, str]]
    people: Sequence[JudgedSource]
    llm: Sequence[JudgedSource]
    agreement: Sequence[RaterPair]


def judge_charts(report: JudgeReport) -> list[tuple[str, Markup]]:
    """Return the charts that there is data for, with their captions."""
    charts = [
        (f"Relevant or better, {raters}", _chart(rows, raters))
        for raters, rows in (("by people", report.people), ("by the LLM", report.llm))
    ]
    return [(caption, chart) for caption, chart in charts if chart]


def _chart(rows: Sequence[JudgedSource], raters: str) -> Markup:
    bars = [Bar(row.name, row.useful, row.low, row.high, tone) for tone, row in enumerate(rows, start=1)]
    return bar_chart(bars, title=f"Relevant or better, {raters}", upper=1.0)


# ------------------------------------------------------------------------------
# The realism report: what simulated platforms look like, beside what was measured on people.


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


# ------------------------------------------------------------------------------
# The counts of a mining in the form that reports show.


def source_counts(mined: dict[str, Any]) -> SourceCounts:
    """Return where the samples come from, by the report of a mining."""
    coverage = mined["p3_coverage"]
    return SourceCounts(
        rows=[
            SourceRow(
                row.name,
                row.meaning,
                found["candidates"],
                found["kept"],
                found.get("after_similarity"),
                found.get("after_relevance"),
                mined["novelty"].get(row.key, {}).get("never_shown"),
            )
            for row in POSITIVE_ORIGINS
            for found in [mined["sources"].get(row.key) or mined["sources"]["search"][row.stage]]
        ],
        labels={int(label): count for label, count in mined["labels"].items()},
        p3=Coverage(
            queries=coverage["queries"],
            with_generation=coverage["with_generation"],
            samples=sum(mined["labels"].values()),
            generated=coverage["samples"],
        ),
        rescued={int(label): count for label, count in mined["rescued"].items() if label != "pairs"},
    )
