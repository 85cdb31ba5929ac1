"""Evaluates a retriever on the test sets of a day, and on a judged collection.

The test sets are defined in `crops.evaluation.testsets`.
A new metric is one file: a function from a `RankedDay` to values per query, and a row for it,
`METRICS["mine"] = function` (see examples/extending/metric.py).
"""

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
from crops.evaluation.testsets import AGES, RELEVANT_GRADE, SHOWN, Slices, TestSets, grouped
from crops.logs import Judged
from crops.outputs import console
from crops.protocols import Retriever

_NOTHING: Ids = np.empty(0, dtype=np.int64)
_NDCG_K = 10
"""NDCG on judged collections is also reported at this cut-off, beside the configured one."""
CUTOFFS = (20, 50)
"""Recall is also reported at these, where they are below the configured cut-off."""
_BLOCK = 10_000
"""Rankings compared at a time: a busy day has many more events than queries."""


def evaluate(
    retriever: ScoringRetriever,
    testsets: TestSets,
    config: EvaluationConfig,
    seed: int,
    slices: Slices | None = None,
) -> Evaluation:
    """Evaluate a retriever on the test sets of a day, by every metric of `METRICS`.

    Args:
        retriever: indexes exactly `testsets.candidate_ids()`.
        config: cut-offs (k = `recall_k`, m = `ndcg_k`) and the number of resamples.
        slices: what is known of the queries and items besides their answers, for the metrics that need it.

    Raises:
        CropsError: the retriever searches another catalogue.
    """
    query_ids = testsets.queries["query_id"].to_numpy()
    check_catalogue(retriever, testsets.candidate_ids())
    depth = max(config.recall_k, config.ndcg_k)
    rankings = Rankings(retriever, query_ids, testsets.queries["query"].to_pylist(), depth)
    day = RankedDay(testsets, rankings, retriever, slices, config.recall_k, config.ndcg_k)
    seen = dict(zip(query_ids.tolist(), testsets.queries["seen"].to_pylist(), strict=True))
    tables = {
        name: metric_values(name, ids, values, weights=weights, seen=[seen[query] for query in ids.tolist()])
        for metric in METRICS.values()
        for name, (ids, values, weights) in metric(day).items()
    }
    return summarise(tables, config.resamples, seed)


@dataclass(frozen=True)
class RankedDay:
    """What a metric may look at: the test sets of a day, and what a retriever ranks for them."""

    testsets: TestSets
    rankings: Rankings
    retriever: ScoringRetriever
    slices: Slices | None
    k: int
    """Cut-off of recall and its like."""
    m: int
    """Cut-off of NDCG."""


Measured = tuple[Ids, Values, Values | None]
"""Query ids [n], ascending, values [n] (NaN: none), weights [n] (None: all 1)."""


def recall(day: RankedDay) -> dict[str, Measured]:
    """Return recall of CT and, with truth, of QR by truth and by an editor.

    - `recall@k/ct`, `recall@k/qr_truth`, ...: over queries; relevant = union over the events of the query;
      also at `CUTOFFS`;
    - `recall@k/ct_events`, ...: over events, weighted by their number; relevant = that event's own items.
    """
    truth = day.testsets.truth
    return _recalls(
        day,
        {"ct": day.testsets.ct, "qr_truth": truth and truth.qr, "qr_editor": truth and truth.qr_editor},
    )


def recall_by_theta(day: RankedDay) -> dict[str, Measured]:
    """Return recall of QR, and of QR by the independent theta where it is known, as `recall` does."""
    return _recalls(day, {"qr": day.testsets.qr, "qr_independent": day.testsets.qr_independent})


def _recalls(day: RankedDay, sets: Mapping[str, pa.Table | None]) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    for name, pairs in sets.items():
        if pairs is None:
            continue
        columns = (pairs[column].to_numpy() for column in ("search_id", "query_id", "item_id"))
        _, (event_queries, event_items) = grouped(*columns)
        query_ids, union = _items_by_query(pairs)
        owners = np.array([owner[0] for owner in event_queries], dtype=np.int64)
        by_event = _recall(day, owners, event_items)
        means, counts = _mean_by_query(query_ids, owners, by_event, np.ones(len(owners)))
        found[f"recall@{day.k}/{name}"] = (query_ids, _recall(day, query_ids, union), None)
        found[f"recall@{day.k}/{name}_events"] = (query_ids, means, counts)
        for k in CUTOFFS:
            if k < day.k:
                found[f"recall@{k}/{name}"] = (query_ids, _recall(day, query_ids, union, k=k), None)
    return found


def true_recall(day: RankedDay) -> dict[str, Measured]:
    """Return `true_recall@k`, with truth.

    Per search |top k with grade >= 2 for its need| / min(k, |R|), mean over the searches of a query.
    """
    if (truth := day.testsets.truth) is None:
        return {}
    answers = truth.grades.filter(pc.field("grade") >= RELEVANT_GRADE)
    (sought,) = _of_keys(answers, truth.needs["need_id"].to_numpy(), "item_id")
    owners = truth.needs["query_id"].to_numpy()
    query_ids = np.unique(owners)
    searches = truth.needs["searches"].to_numpy().astype(np.float64)
    means, _ = _mean_by_query(query_ids, owners, _recall(day, owners, sought, capped=True), searches)
    return {f"true_recall@{day.k}": (query_ids, means, None)}


def pool_ndcg(day: RankedDay) -> dict[str, Measured]:
    """Return `ndcg_exp2@m/pool`, with truth: the old system's annotated list in the retriever's order."""
    if (truth := day.testsets.truth) is None:
        return {}
    query_ids, (items, grades) = grouped(
        *(truth.annotation[name].to_numpy() for name in ("query_id", "item_id", "grade"))
    )
    asked = day.testsets.queries
    texts = dict(zip(asked["query_id"].to_pylist(), asked["query"].to_pylist(), strict=True))
    ordered = grades_by_score(day.retriever, [texts[query] for query in query_ids.tolist()], items, grades)
    return {f"ndcg_exp2@{day.m}/pool": (query_ids, ndcg_at_k(ordered, day.m), None)}


def catalogue_ndcg(day: RankedDay) -> dict[str, Measured]:
    """Return `ndcg_exp2@m/catalogue`, with truth: the retriever's own ranking of the whole catalogue."""
    if (truth := day.testsets.truth) is None:
        return {}
    query_ids, (needs,) = grouped(
        truth.annotation["query_id"].to_numpy(), truth.annotation["need_id"].to_numpy()
    )
    first = np.array([own[0] for own in needs], dtype=np.int64)
    items, grades = _of_keys(truth.grades, first, "item_id", "grade")
    ranked = grades_of(day.rankings.of(query_ids)[:, : day.m], items, grades)
    values = ndcg_at_k(ranked, day.m, ideal=pad(grades, 0))
    return {f"ndcg_exp2@{day.m}/catalogue": (query_ids, values, None)}


def mrr(day: RankedDay) -> dict[str, Measured]:
    """Return `mrr@k/ct`, `mrr@k/qr`, with slices: one over the rank of the first relevant result, or 0."""
    if day.slices is None:
        return {}
    found: dict[str, Measured] = {}
    for name, pairs in (("ct", day.testsets.ct), ("qr", day.testsets.qr)):
        queries, relevant = _items_by_query(pairs)
        values = reciprocal_rank(day.rankings.of(queries)[:, : day.k], relevant)
        found[f"mrr@{day.k}/{name}"] = (queries, values, None)
    return found


def recall_by_age(day: RankedDay) -> dict[str, Measured]:
    """Return `recall@k/ct|age=...`, with slices: recall of the clicked items of that age only."""
    if day.slices is None:
        return {}
    found, ages, ct = {}, day.slices.ages, day.testsets.ct
    for age in AGES:
        items = ages.filter(pc.field("age") == age)["item_id"].combine_chunks()
        found[f"recall@{day.k}/ct|age={age}"] = _recall_of(day, ct.filter(pc.is_in(ct["item_id"], items)))
    return found


def recall_by_click(day: RankedDay) -> dict[str, Measured]:
    """Return `recall@k/ct|words=...`, `recall@k/ct|shown=...`, with slices and truth: of such clicks only."""
    if day.slices is None or (clicks := day.slices.clicks) is None:
        return {}
    parts = {"words=some": ~pc.field("wordless"), "words=none": pc.field("wordless")}
    parts |= {f"shown={one}": pc.field("shown") == one for one in SHOWN}
    return {f"recall@{day.k}/ct|{name}": _recall_of(day, clicks.filter(part)) for name, part in parts.items()}


def never_shown(day: RankedDay) -> dict[str, Measured]:
    """Return `never_shown@k`, with slices.

    It is the share of the results that the old system had never shown for the query up to the training day; a
    query without a single result has none.
    """
    if day.slices is None:
        return {}
    query_ids = day.testsets.queries["query_id"].to_numpy()
    (shown,) = _of_keys(day.slices.shown, query_ids, "item_id")
    values = np.full(len(query_ids), np.nan)
    for row, (own, top) in enumerate(zip(shown, day.rankings.of(query_ids), strict=True)):
        results = top[: day.k][top[: day.k] >= 0]
        if results.size:
            values[row] = 1 - np.isin(results, own).mean()
    return {f"never_shown@{day.k}": (query_ids, values, None)}


def senses(day: RankedDay) -> dict[str, Measured]:
    """Return `senses@k`, with slices and truth.

    For a query whose test searches meant several senses it is the share of these with an answer (grade >= 2
    for a need of the sense) among the results.
    """
    if day.slices is None or (table := day.slices.senses) is None:
        return {}
    _, codes = np.unique(table["sense"].to_numpy(zero_copy_only=False), return_inverse=True)
    queries, (own_senses, items) = grouped(table["query_id"].to_numpy(), codes, table["item_id"].to_numpy())
    values = np.full(len(queries), np.nan)
    for row, (own, answers, top) in enumerate(
        zip(own_senses, items, day.rankings.of(queries)[:, : day.k], strict=True)
    ):
        distinct = np.unique(own)
        if len(distinct) > 1:
            values[row] = len(np.unique(own[np.isin(answers, top)])) / len(distinct)
    return {f"senses@{day.k}": (queries, values, None)}


def recall_of_never_shown(day: RankedDay) -> dict[str, Measured]:
    """Return `true_recall@k|never_shown`, with slices and truth.

    It is the share of the answers to the query's needs that the old system had never shown for it which are
    found, capped as true recall; per query, needs taken together.
    """
    if day.slices is None or (truth := day.testsets.truth) is None:
        return {}
    answers = truth.grades.filter(pc.field("grade") >= RELEVANT_GRADE).select(["need_id", "item_id"])
    pairs = truth.needs.select(["query_id", "need_id"]).join(answers, "need_id", join_type="inner")
    pairs = pairs.join(day.slices.shown, ["query_id", "item_id"], join_type="left anti")
    return {f"true_recall@{day.k}|never_shown": _recall_of(day, pairs, capped=True)}


METRICS: dict[str, Callable[[RankedDay], dict[str, Measured]]] = {
    "recall": recall,
    "true_recall": true_recall,
    "pool_ndcg": pool_ndcg,
    "catalogue_ndcg": catalogue_ndcg,
    "mrr": mrr,
    "recall_by_age": recall_by_age,
    "recall_by_click": recall_by_click,
    "never_shown": never_shown,
    "senses": senses,
    "recall_of_never_shown": recall_of_never_shown,
    "recall_by_theta": recall_by_theta,
}
"""All metrics, in the order of the results; a function may give several, by name, or none. QR by theta comes
last: where theta chose what was trained on, it is its own witness."""


def _items_by_query(pairs: pa.Table) -> tuple[Ids, list[Ids]]:
    """Return the queries of pairs, ascending, and the distinct items of each."""
    queries, (items,) = grouped(pairs["query_id"].to_numpy(), pairs["item_id"].to_numpy())
    return queries, [np.unique(own) for own in items]


def _of_keys(table: pa.Table, keys: Ids, *columns: str) -> list[list[Ids]]:
    """Return what columns hold for each key of a table's first column; nothing where it has no row."""
    known, values = grouped(*(table[name].to_numpy() for name in (table.column_names[0], *columns)))
    place = {key: row for row, key in enumerate(known.tolist())}
    rows = [place.get(key) for key in keys.tolist()]
    return [[_NOTHING if row is None else column[row] for row in rows] for column in values]


def _recall_of(day: RankedDay, pairs: pa.Table, *, capped: bool = False) -> Measured:
    """Return recall over each query's distinct items."""
    queries, relevant = _items_by_query(pairs)
    return queries, _recall(day, queries, relevant, capped=capped), None


def _recall(
    day: RankedDay, query_ids: Ids, relevant: list[Ids], *, capped: bool = False, k: int | None = None
) -> Values:
    """Return `recall_at_k` [n] of known queries [n] (repeated at will), block by block; k is the day's."""
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(query_ids), _BLOCK)]
    values = [
        recall_at_k(day.rankings.of(query_ids[block]), relevant[block], k or day.k, capped=capped)
        for block in blocks
    ]
    return np.concatenate([np.empty(0), *values])


def _mean_by_query(query_ids: Ids, owners: Ids, values: Values, weights: Values) -> tuple[Values, Values]:
    """Return each query's weighted mean of its defined values (NaN if there is none) and their weight."""
    rows = np.searchsorted(query_ids, owners)
    counted = np.where(np.isnan(values), 0.0, weights)
    total = np.bincount(rows, counted, minlength=len(query_ids))
    weighted = np.bincount(rows, counted * np.nan_to_num(values), minlength=len(query_ids))
    return weighted / np.where(total > 0, total, np.nan), total.astype(np.float64)


def evaluate_judged(
    retriever: ScoringRetriever,
    judged: Judged,
    query_ids: NDArray[np.int64],
    config: EvaluationConfig,
    seed: int,
) -> Evaluation:
    """Evaluate a retriever over the documents of a judged collection, against human grades.

    Metrics, for k = `recall_k` and m = `ndcg_k` and 10:

    - `recall@k`: relevant = grade >= `positive_label`;
    - `ndcg_exp2@m/catalogue`: own ranking of all documents; one without a judgement counts as grade 0;
    - `ndcg_exp2@m/judged`: the judged documents of the query in the order of the retriever's scores.

    Args:
        retriever: indexes exactly the collection's documents.
        query_ids: the queries to evaluate, e.g. one fold's test part.
        config: cut-offs and the number of resamples.

    Raises:
        CropsError: the retriever searches another catalogue.
    """
    query_ids = np.unique(query_ids)
    texts = [judged.queries[query - 1] for query in query_ids]
    check_catalogue(retriever, judged.item_ids())
    rankings = Rankings(retriever, query_ids, texts, max(config.recall_k, config.ndcg_k, _NDCG_K))
    items, grades = _of_keys(judged.judgements, query_ids, "item_id", "grade")
    ranked = rankings.of(query_ids)
    positives = [own[grade >= judged.positive_label] for own, grade in zip(items, grades, strict=True)]
    in_catalogue = grades_of(ranked, items, grades)
    among_judged = grades_by_score(retriever, texts, items, grades)
    measured = {f"recall@{config.recall_k}": recall_at_k(ranked, positives, config.recall_k)}
    for m in sorted({config.ndcg_k, _NDCG_K}):
        measured[f"ndcg_exp2@{m}/catalogue"] = ndcg_at_k(in_catalogue, m, ideal=pad(grades, 0))
        measured[f"ndcg_exp2@{m}/judged"] = ndcg_at_k(among_judged, m)
    tables = {metric: metric_values(metric, query_ids, values) for metric, values in measured.items()}
    return summarise(tables, config.resamples, seed)


@dataclass(frozen=True)
class Fold:
    """One split of a cross-validation: disjoint query ids, ascending."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def folds(query_ids: NDArray[np.int64], count: int, seed: int) -> list[Fold]:
    """Split queries for a cross-validation: each is in one test part, whose sizes differ by one at most.

    Raises:
        CropsError: fewer than two folds, or more folds than queries.
    """
    if not 2 <= count <= len(query_ids):
        raise CropsError(f"{count} folds of {len(query_ids)} queries: give 2 to {len(query_ids)} folds")
    parts = np.array_split(np.random.default_rng(seed).permutation(query_ids), count)
    return [Fold(np.setdiff1d(query_ids, part), np.sort(part)) for part in parts]


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
            query_ids: distinct ids [q], ascending.
        """
        self._query_ids = query_ids
        self._ranked, _ = retriever.search(texts, k)
        nothing = int((self._ranked < 0).all(axis=1).sum())
        if nothing:
            console.print(
                f"[yellow]{nothing:,} of {len(texts):,} queries found nothing[/yellow] "
                f"with {type(retriever).__name__.removesuffix('Retriever')}: no known word"
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
    """Return, for each metric that both have, the paired difference a - b over the queries with both values.

    Raises:
        CropsError: a metric was taken on different queries: the two used different test sets.
    """
    differences = {}
    for metric in a.values["metric"].unique().to_pylist():
        if metric not in b.summary:
            continue
        own, other = (e.values.filter(pc.field("metric") == metric) for e in (a, b))
        if not own.select(["query_id", "weight"]).equals(other.select(["query_id", "weight"])):
            raise CropsError(f"{metric}: the two evaluations have different queries; use the same test sets")
        both = pc.and_(own["value"].is_valid(), other["value"].is_valid())
        own, other = own.filter(both), other.filter(both)
        differences[metric] = paired_bootstrap(
            own["value"].to_numpy(),
            other["value"].to_numpy(),
            resamples,
            seed,
            weights=own["weight"].to_numpy(),
        )
    return differences


def _summary(rows: pa.Table, resamples: int, seed: int) -> Summary:
    defined = rows.filter(pc.field("value").is_valid())
    interval = bootstrap_interval(
        defined["value"].to_numpy(), resamples, seed, weights=defined["weight"].to_numpy()
    )
    return Summary(**vars(interval), excluded=len(rows) - len(defined))
