"""What a report shows: plain values, computed by the caller. Shares are 0..1 and printed in %."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from crops import evaluation
from crops.errors import CropsError
from crops.evaluation import Interval

SIGNIFICANT = 0.05
"""Differences with a smaller p-value are marked."""


@dataclass(frozen=True)
class Estimate:
    """A mean over n queries and its 95 % interval; low and high are None where n is too small for one."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def __post_init__(self) -> None:
        if any(value is not None and not math.isfinite(value) for value in (self.mean, self.low, self.high)):
            raise CropsError(f"{self} is not finite; leave out a metric that no query has a value of")

    @classmethod
    def of(cls, interval: Interval) -> Self | None:
        """Return an evaluation's interval as an estimate; None where no query had a value."""
        if math.isnan(interval.mean):
            return None
        return cls(interval.mean, _known(interval.ci_low), _known(interval.ci_high), interval.n)


@dataclass(frozen=True)
class Difference(Estimate):
    """Mean difference to the reference row over the same n queries, and its p-value (None: not testable)."""

    p: float | None = None

    @classmethod
    def of(cls, interval: Interval) -> Self | None:
        """Return a paired comparison as a difference; None where no query had a value in both."""
        if math.isnan(interval.mean):
            return None
        p = _known(interval.p) if isinstance(interval, evaluation.Difference) else None
        return cls(interval.mean, _known(interval.ci_low), _known(interval.ci_high), interval.n, p)

    @property
    def significant(self) -> bool:
        """Whether the p-value is below `SIGNIFICANT`."""
        return self.p is not None and self.p < SIGNIFICANT


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class MetricColumn:
    """A metric; higher is better."""

    key: str
    label: str
    explanation: str
    """One line for a reader who does not know it."""
    plotted: bool = True
    """Whether the bar charts show it."""


@dataclass(frozen=True)
class ResultRow:
    """A model's metrics, by `MetricColumn.key`; a metric without a value is left out."""

    name: str
    cells: Mapping[str, Estimate] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    """Against the reference row; empty for the reference itself."""
    is_reference: bool = False
    not_tested: str | None = None
    """Why the row has no figures."""


@dataclass(frozen=True)
class ResultTable:
    """Models against metrics."""

    title: str
    note: str
    columns: Sequence[MetricColumn]
    rows: Sequence[ResultRow]
    subject: str = "Model"
    """What a row stands for."""
    contest: bool = True
    """Whether the rows compete: the best of each column is marked, and the intervals are explained."""


@dataclass(frozen=True)
class SourceRow:
    """A source of positives: (query, item) pairs found, left after each filter, and kept."""

    name: str
    explanation: str
    candidates: int
    kept: int
    after_similarity: int | None = None
    """None where the source has no such filter."""
    after_relevance: int | None = None
    never_shown: int | None = None
    """Of the kept, how many the system had never shown for that query; None where that has no meaning."""


@dataclass(frozen=True)
class Coverage:
    """How far the generated documents (P3) reach."""

    queries: int
    with_generation: int
    samples: int
    generated: int

    def __post_init__(self) -> None:
        if not (0 <= self.with_generation <= self.queries and 0 <= self.generated <= self.samples):
            raise CropsError(f"{self}: a part is larger than its whole")


@dataclass(frozen=True)
class SourceCounts:
    """Where the training data comes from."""

    rows: Sequence[SourceRow]
    labels: Mapping[int, int]
    """Samples by label."""
    p3: Coverage | None = None
    rescued: Mapping[int, int] = field(default_factory=dict)
    """Positives that search alone would have called negatives, by that label."""


@dataclass(frozen=True)
class TrainingCurve:
    """One training run; the three lists are parallel, an empty one has no chart."""

    name: str
    steps: Sequence[float]
    loss: Sequence[float]
    temperature: Sequence[float] = ()


@dataclass(frozen=True)
class Hit:
    """One result of a search."""

    rank: int
    title: str
    text: str
    score: float
    grade: int | None = None
    """True grade, 0 to the case's `top_grade`; None where unknown."""
    topic: str | None = None
    is_new: bool = False
    """Not among the results it is compared with."""
    never_shown: bool = False
    """The system had never shown it for this query."""
    evidence: Sequence[str] = ()
    """Plain sentences: why the training data or the old system knew it."""


@dataclass(frozen=True)
class QueryCase:
    """What two models answer to one query."""

    query: str
    note: str
    before_name: str
    after_name: str
    before: Sequence[Hit]
    after: Sequence[Hit]
    relevant_grade: int = 2
    """The lowest grade that counts as relevant."""
    top_grade: int = 3


@dataclass(frozen=True)
class DemoReport:
    """The report of `crops demo`; what is empty or None has no section."""

    title: str
    headline: Sequence[str]
    """Two or three plain sentences with the result."""
    facts: Sequence[tuple[str, str]] = ()
    """Name and value: seed, size of the world, versions, minutes."""
    tables: Sequence[ResultTable] = ()
    """The first one is the result; its plotted metrics are drawn."""
    sources: SourceCounts | None = None
    curves: Sequence[TrainingCurve] = ()
    cases: Sequence[QueryCase] = ()
    notes: Sequence[str] = ()
