"""Evaluates a retriever on the test sets of a day (definitions: `crops.evaluation.testsets`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crops.config import EvaluationConfig
from crops.errors import CropsError
from crops.evaluation.metrics import (
    Grades,
    Ids,
    Values,
    grades_of,
    ndcg_at_k,
    pad,
    recall_at_k,
    reciprocal_rank,
)
from crops.evaluation.significance import Difference, Interval, bootstrap_interval, paired_bootstrap
from crops.evaluation.testsets import AGES, RELEVANT_GRADE, Facts, TestSets, TruthSets, grouped
from crops.outputs import console
from crops.protocols import Retriever

Measured = tuple[Ids, Values, Values | None]

"""Query ids [n], values [n], weights [n] (None: all 1) of one metric."""

_BLOCK = 10_000

"""Rankings compared at a time: a busy day has many more events than queries."""


def evaluate(
    retriever: ScoringRetriever,
    testsets: TestSets,
    config: EvaluationConfig,
    seed: int,
    facts: Facts | None = None,
) -> Evaluation:
    """Evaluate a retriever on the test sets of a day.

    Metrics, for k = `recall_k` and m = `ndcg_k`:

    - `recall@k/ct`, `recall@k/qr`: over queries; relevant = union over the events of the query;
    - `recall@k/ct_events`, `recall@k/qr_events`: over events; relevant = that event's own items.

    Where the test sets have an independent theta, also `recall@k/qr_independent` and
    `recall@k/qr_independent_events`. Where they have truth, also:

    - `recall@k/qr_truth`, `recall@k/qr_truth_events`: QR by truth;
    - `true_recall@k`: per search |top k with grade >= 2 for its need| / min(k, |R|), mean over the searches
      of a query, then over queries;
    - `ndcg_exp2@m/pool`: the annotated list of the old system in the order of the retriever's scores;
    - `ndcg_exp2@m/catalogue`: the retriever's own ranking of the whole catalogue.

    With `facts`, also the metrics of `crops.evaluation.evaluate`.

    Args:
        retriever: indexes exactly `testsets.candidate_ids()`.
        testsets: the test sets.
        config: cut-offs and the number of resamples.
        seed: seed of the bootstrap.
        facts: what is known of the queries and items beside their answers.

    Raises:
        CropsError: the retriever searches another catalogue.
    """
    query_ids = testsets.queries["query_id"].to_numpy()
    texts = dict(zip(query_ids.tolist(), testsets.queries["query"].to_pylist(), strict=True))
    check_catalogue(retriever, testsets.candidate_ids())
    rankings = Rankings(retriever, query_ids, list(texts.values()), max(config.recall_k, config.ndcg_k))
    k, m = config.recall_k, config.ndcg_k
    measured = _recalls("ct", testsets.ct, rankings, k) | _recalls("qr", testsets.qr, rankings, k)
    if testsets.qr_independent is not None:
        measured |= _recalls("qr_independent", testsets.qr_independent, rankings, k)
    if (truth := testsets.truth) is not None:
        measured |= _recalls("qr_truth", truth.qr, rankings, k)
        measured[f"true_recall@{k}"] = _true_recall(truth, rankings, k)
        measured[f"ndcg_exp2@{m}/pool"] = _pool_ndcg(truth, retriever, texts, m)
        measured[f"ndcg_exp2@{m}/catalogue"] = _catalogue_ndcg(truth, rankings, m)
    if facts is not None:
        parts = detail(rankings, testsets, facts, k)
        measured |= {metric: (ids, values, None) for metric, (ids, values) in parts.items()}
    seen = dict(zip(query_ids.tolist(), testsets.queries["seen"].to_pylist(), strict=True))
    tables = {
        metric: metric_values(
            metric, ids, values, weights=weights, seen=[seen[query] for query in ids.tolist()]
        )
        for metric, (ids, values, weights) in measured.items()
    }
    return summarise(tables, config.resamples, seed)


def _recalls(name: str, pairs: pa.Table, rankings: Rankings, k: int) -> dict[str, Measured]:
    """Return recall over queries and, weighted by their number, over events."""
    queries, events, items = (pairs[column].to_numpy() for column in ("query_id", "search_id", "item_id"))
    query_ids, (relevant,) = grouped(queries, items)
    union = [np.unique(ids) for ids in relevant]
    _, (event_queries, event_items) = grouped(events, queries, items)
    owners = np.array([owner[0] for owner in event_queries], dtype=np.int64)
    by_event = _recall(rankings, owners, event_items, k)
    means, counts = _mean_by_query(query_ids, owners, by_event, np.ones(len(owners)))
    return {
        f"recall@{k}/{name}": (query_ids, _recall(rankings, query_ids, union, k), None),
        f"recall@{k}/{name}_events": (query_ids, means, counts),
    }


def _recall(
    rankings: Rankings, query_ids: Ids, relevant: list[Ids], k: int, *, capped: bool = False
) -> Values:
    """Return `recall_at_k` [n] of known queries [n] (repeated at will), block by block."""
    blocks = [
        recall_at_k(
            rankings.of(query_ids[start : start + _BLOCK]), relevant[start : start + _BLOCK], k, capped=capped
        )
        for start in range(0, len(query_ids), _BLOCK)
    ]
    return np.concatenate([np.empty(0), *blocks])


def _true_recall(truth: TruthSets, rankings: Rankings, k: int) -> Measured:
    grades = truth.grades.filter(pc.field("grade") >= RELEVANT_GRADE)
    needs, (items,) = grouped(grades["need_id"].to_numpy(), grades["item_id"].to_numpy())
    relevant = dict(zip(needs.tolist(), items, strict=True))
    nothing = np.empty(0, dtype=np.int64)
    owners = truth.needs["query_id"].to_numpy()
    sought = [relevant.get(need, nothing) for need in truth.needs["need_id"].to_pylist()]
    values = _recall(rankings, owners, sought, k, capped=True)
    query_ids = np.unique(owners)
    means, _ = _mean_by_query(
        query_ids, owners, values, truth.needs["searches"].to_numpy().astype(np.float64)
    )
    return query_ids, means, None


def _pool_ndcg(truth: TruthSets, retriever: ScoringRetriever, texts: dict[int, str], m: int) -> Measured:
    annotation = truth.annotation
    query_ids, (items, grades) = grouped(
        *(annotation[name].to_numpy() for name in ("query_id", "item_id", "grade"))
    )
    ordered = grades_by_score(retriever, [texts[query] for query in query_ids.tolist()], items, grades)
    return query_ids, ndcg_at_k(ordered, m), None


def _catalogue_ndcg(truth: TruthSets, rankings: Rankings, m: int) -> Measured:
    query_ids, (needs,) = grouped(
        truth.annotation["query_id"].to_numpy(), truth.annotation["need_id"].to_numpy()
    )
    known, (items, grades) = grouped(
        *(truth.grades[name].to_numpy() for name in ("need_id", "item_id", "grade"))
    )
    nothing = np.empty(0, dtype=np.int64)
    by_need = {need: pair for need, *pair in zip(known.tolist(), items, grades, strict=True)}
    judged = [by_need.get(int(own[0]), [nothing, nothing]) for own in needs]
    judged_items, judged_grades = [pair[0] for pair in judged], [pair[1] for pair in judged]
    ranked = grades_of(rankings.of(query_ids)[:, :m], judged_items, judged_grades)
    return query_ids, ndcg_at_k(ranked, m, ideal=pad(judged_grades, 0)), None


def _mean_by_query(query_ids: Ids, owners: Ids, values: Values, weights: Values) -> tuple[Values, Values]:
    """Return each query's weighted mean of its defined values (NaN if there is none) and their weight."""
    rows = np.searchsorted(query_ids, owners)
    counted = np.where(np.isnan(values), 0.0, weights)
    total = np.bincount(rows, counted, minlength=len(query_ids))
    weighted = np.bincount(rows, counted * np.nan_to_num(values), minlength=len(query_ids))
    return weighted / np.where(total > 0, total, np.nan), total.astype(np.float64)


# ------------------------------------------------------------------------------
# A retriever's rankings of the queries and candidate lists of a test set, as matrices.


class ScoringRetriever(Retriever, Protocol):
    """A retriever that also scores given candidates: what NDCG over annotated lists needs."""

    item_ids: NDArray[np.int64]
    """The catalogue it searches [n], ascending."""

    def scores(self, queries: Sequence[str], candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the scores [q, c] of the queries with their `candidates` [q, c]; -inf for a candidate -1."""
        ...


class Rankings:
    """The top k of each query, looked up by query_id."""

    def __init__(self, retriever: Retriever, query_ids: Ids, texts: Sequence[str], k: int) -> None:
        """Search once for every query.

        Args:
            retriever: the retriever.
            query_ids: distinct ids [q], ascending.
            texts: the q query texts.
            k: length of the rankings.
        """
        self._query_ids = query_ids
        self._ranked, _ = retriever.search(texts, k)
        nothing = int((self._ranked < 0).all(axis=1).sum())
        if nothing:
            console.print(
                f"[yellow]{nothing:,} of {len(texts):,} queries found nothing:[/yellow] no known word"
            )

    def of(self, query_ids: Ids) -> Ids:
        """Return the ranked item ids [n, k] of known queries [n] (repeated at will)."""
        return self._ranked[np.searchsorted(self._query_ids, query_ids)]


def check_catalogue(retriever: ScoringRetriever, candidates: Ids) -> None:
    """Refuse a retriever that searches another catalogue than the test set's: its figures would not compare.

    Raises:
        CropsError: the ids differ from `candidates` (ascending).
    """
    more = np.setdiff1d(retriever.item_ids, candidates)
    fewer = np.setdiff1d(candidates, retriever.item_ids)
    if more.size or fewer.size:
        example = np.append(more, fewer)[0]
        raise CropsError(
            f"the retriever searches {more.size} items that are not candidates of the test set and lacks "
            f"{fewer.size} that are (e.g. item_id {example}); index exactly the candidates: "
            "load_items(path, keep=testsets.candidate_ids())"
        )


def grades_by_score(
    retriever: ScoringRetriever, texts: Sequence[str], items: Sequence[Ids], grades: Sequence[Grades]
) -> Grades:
    """Order the graded items of each query by the retriever's scores, ties by item_id.

    Args:
        retriever: scores the items.
        texts: q query texts.
        items: the graded items of each query.
        grades: their grades, alike in shape.

    Returns:
        Grades [q, longest list] in the order of the scores; 0 after the end of shorter lists.
    """
    candidates = pad(items, -1)
    if not candidates.size:
        return candidates
    scores = retriever.scores(texts, candidates)
    order = np.lexsort((candidates, -scores))
    return np.take_along_axis(pad(grades, 0), order, axis=1)


# ------------------------------------------------------------------------------
# The result of an evaluation: one value per metric and query, means with intervals, comparisons.


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


# ------------------------------------------------------------------------------
# What a mean recall hides: reciprocal rank, items by age, senses covered, and what was never shown.


PerQuery = tuple[Ids, Values]

"""Query ids [n], ascending, and their values [n]."""


def detail(rankings: Rankings, testsets: TestSets, facts: Facts, k: int) -> dict[str, PerQuery]:
    """Return metrics of the first k results beside recall and NDCG, one value per query.

    - `mrr@k/ct`, `mrr@k/qr`: one over the rank of the first relevant result, 0 if none is among the k;
    - `recall@k/ct|age=...`: of the clicked items of that age only;
    - `never_shown@k`: share of the results that the old system had never shown for the query up to the
      training day (a query without a single result has none);
    - with truth, `senses@k`: for a query whose test searches meant several senses, the share of these senses
      with an answer (grade >= 2 for a need of the sense) among the results;
    - with truth, `true_recall@k|never_shown`: share of the answers to the query's needs that the old system
      had never shown for it which are found, capped as true recall; per query, needs taken together.
    """
    found: dict[str, PerQuery] = {}
    for name, pairs in (("ct", testsets.ct), ("qr", testsets.qr)):
        found[f"mrr@{k}/{name}"] = _over_pairs(
            pairs, rankings, lambda top, relevant: reciprocal_rank(top[:, :k], relevant)
        )
    for age in AGES:
        own = testsets.ct.filter(pc.is_in(testsets.ct["item_id"], _of_age(facts, age)))
        found[f"recall@{k}/ct|age={age}"] = _over_pairs(
            own, rankings, lambda top, relevant: recall_at_k(top, relevant, k)
        )
    query_ids = testsets.queries["query_id"].to_numpy()
    found[f"never_shown@{k}"] = _never_shown(query_ids, rankings, facts.shown, k)
    if facts.senses is not None:
        found[f"senses@{k}"] = _senses(facts.senses, rankings, k)
    if testsets.truth is not None:
        pairs = _unshown_answers(testsets.truth, facts.shown)
        found[f"true_recall@{k}|never_shown"] = _over_pairs(
            pairs, rankings, lambda top, relevant: recall_at_k(top, relevant, k, capped=True)
        )
    return found


def _over_pairs(pairs: pa.Table, rankings: Rankings, metric: Callable[[Ids, list[Ids]], Values]) -> PerQuery:
    """Return a metric over each query's distinct items."""
    queries, (items,) = grouped(pairs["query_id"].to_numpy(), pairs["item_id"].to_numpy())
    return queries, metric(rankings.of(queries), [np.unique(own) for own in items])


def _of_age(facts: Facts, age: str) -> pa.Array:
    return facts.ages.filter(pc.field("age") == age)["item_id"].combine_chunks()


def _never_shown(query_ids: Ids, rankings: Rankings, shown: pa.Table, k: int) -> PerQuery:
    known, (items,) = grouped(shown["query_id"].to_numpy(), shown["item_id"].to_numpy())
    nothing = np.empty(0, dtype=np.int64)
    by_query = dict(zip(known.tolist(), items, strict=True))
    top = rankings.of(query_ids)[:, :k]
    values = np.full(len(query_ids), np.nan)
    for row, (query, results) in enumerate(zip(query_ids.tolist(), top, strict=True)):
        results = results[results >= 0]
        if results.size:
            values[row] = 1 - np.isin(results, by_query.get(query, nothing)).mean()
    return query_ids, values


def _senses(senses: pa.Table, rankings: Rankings, k: int) -> PerQuery:
    """Return the share of each ambiguous query's senses that its results cover."""
    _, codes = np.unique(senses["sense"].to_numpy(zero_copy_only=False), return_inverse=True)
    queries, (own_senses, items) = grouped(senses["query_id"].to_numpy(), codes, senses["item_id"].to_numpy())
    tops = rankings.of(queries)[:, :k]
    values = np.full(len(queries), np.nan)
    for row, (own, answers, top) in enumerate(zip(own_senses, items, tops, strict=True)):
        distinct = np.unique(own)
        if len(distinct) > 1:
            values[row] = len(np.unique(own[np.isin(answers, top)])) / len(distinct)
    return queries, values


def _unshown_answers(truth: TruthSets, shown: pa.Table) -> pa.Table:
    """Return query_id, item_id: answers to a need of the query that were never shown for it."""
    answers = truth.grades.filter(pc.field("grade") >= RELEVANT_GRADE).select(["need_id", "item_id"])
    pairs = truth.needs.select(["query_id", "need_id"]).join(answers, "need_id", join_type="inner")
    return pairs.join(shown, ["query_id", "item_id"], join_type="left anti").select(["query_id", "item_id"])
