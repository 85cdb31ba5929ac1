"""The result of an evaluation: one value per metric and query, means with intervals, comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.evaluation.significance import Difference, Interval, bootstrap_interval, paired_bootstrap

VALUES = pa.schema(
    [
        pa.field("metric", pa.string(), nullable=False),
        pa.field("query_id", pa.int64(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("seen", pa.bool_()),
    ]
)
"""Per-query values: null where the metric is undefined for the query; `weight` is 1 but for metrics over
events; `seen` tells whether the query was in the training data, null where that is not known."""


@dataclass(frozen=True)
class Summary(Interval):
    """A metric's mean over n queries, its interval, and how many queries had no value."""

    excluded: int


@dataclass(frozen=True)
class Evaluation:
    """What a retriever reaches on a test set."""

    values: pa.Table
    """Schema `VALUES`, sorted by metric (in order of evaluation) and query_id."""
    summary: dict[str, Summary]
    """By metric; `<metric>/seen` and `<metric>/unseen` beside it where that is known."""


def metric_values(
    metric: str,
    query_ids: NDArray[np.int64],
    values: NDArray[np.float64],
    *,
    weights: NDArray[np.float64] | None = None,
    seen: Sequence[bool | None] | None = None,
) -> pa.Table:
    """Return one metric's rows of `VALUES`, sorted by query_id; NaN becomes null.

    Args:
        metric: name.
        query_ids: distinct ids [n].
        values: values [n].
        weights: weights [n]; 1 when None.
        seen: flags [n]; unknown when None.
    """
    count = len(query_ids)
    columns = [
        pa.array([metric] * count, pa.string()),
        pa.array(query_ids, pa.int64()),
        pa.array(values, pa.float64(), from_pandas=True),
        pa.array(np.ones(count) if weights is None else weights, pa.float64()),
        pa.array([None] * count if seen is None else seen, pa.bool_()),
    ]
    return pa.table(columns, schema=VALUES).sort_by("query_id")


def summarise(tables: Mapping[str, pa.Table], resamples: int, seed: int) -> Evaluation:
    """Collect the rows of all metrics (`metric_values` by name) and bootstrap their means over queries."""
    summary: dict[str, Summary] = {}
    for metric, table in tables.items():
        summary[metric] = _summary(table, resamples, seed)
        if len(table) and not table["seen"].null_count:
            summary[f"{metric}/seen"] = _summary(table.filter(pc.field("seen")), resamples, seed)
            summary[f"{metric}/unseen"] = _summary(table.filter(~pc.field("seen")), resamples, seed)
    return Evaluation(pa.concat_tables([VALUES.empty_table(), *tables.values()]), summary)


def pool_evaluations(evaluations: Sequence[Evaluation], resamples: int, seed: int) -> Evaluation:
    """Put the evaluations of disjoint queries (the folds of a cross-validation) together.

    Raises:
        CropsError: a query has a value of the same metric in two of them.
    """
    rows = pa.concat_tables([evaluation.values for evaluation in evaluations])
    tables = {}
    for metric in rows["metric"].unique().to_pylist():
        tables[metric] = rows.filter(pc.field("metric") == metric).sort_by("query_id")
        if len(tables[metric]["query_id"].unique()) < len(tables[metric]):
            raise CropsError(
                f"{metric}: a query is in two of the pooled evaluations; pool disjoint folds only"
            )
    return summarise(tables, resamples, seed)


def compare(a: Evaluation, b: Evaluation, resamples: int, seed: int) -> dict[str, Difference]:
    """Return, for each metric that both have, the paired difference a - b over the same queries.

    Raises:
        CropsError: a metric was taken on different queries: the two used different test sets.
    """
    differences = {}
    for metric in a.values["metric"].unique().to_pylist():
        if metric not in b.summary:
            continue
        own, other = (_defined(e.values.filter(pc.field("metric") == metric)) for e in (a, b))
        if not own.select(["query_id", "weight"]).equals(other.select(["query_id", "weight"])):
            raise CropsError(f"{metric}: the two evaluations have different queries; use the same test sets")
        differences[metric] = paired_bootstrap(
            own["value"].to_numpy(),
            other["value"].to_numpy(),
            resamples,
            seed,
            weights=own["weight"].to_numpy(),
        )
    return differences


def _summary(rows: pa.Table, resamples: int, seed: int) -> Summary:
    defined = _defined(rows)
    interval = bootstrap_interval(
        defined["value"].to_numpy(), resamples, seed, weights=defined["weight"].to_numpy()
    )
    return Summary(interval.mean, interval.ci_low, interval.ci_high, interval.n, len(rows) - len(defined))


def _defined(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.field("value").is_valid())
