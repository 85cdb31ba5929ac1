"""The engine's report: where samples come from, what they cover, who they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from crops.report.charts import Bar, SplitBar, bar_chart, split_bar_chart
from crops.report.data import SourceCounts


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
