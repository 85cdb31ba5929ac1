"""The judge report: what people and an LLM say of the positives of each source (the paper's Figure 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from crops.report.charts import Bar, bar_chart


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
