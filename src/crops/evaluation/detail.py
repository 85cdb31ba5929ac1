"""What a mean recall hides: reciprocal rank, items by age, senses covered, and what was never shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops.evaluation.facts import AGES, Facts
from crops.evaluation.metrics import Ids, Values, recall_at_k, reciprocal_rank
from crops.evaluation.ranking import Rankings
from crops.evaluation.tables import grouped
from crops.evaluation.testsets import TestSets
from crops.evaluation.truth import RELEVANT_GRADE, TruthSets

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
