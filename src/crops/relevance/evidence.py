"""An evidence theta: P(document relevant to the query) by what logs say of the pair, beside its texts.

A text model cannot tell an item whose words are others than those of the query. Logs can: who asked the like
clicked it, or it is of the category that they click. What that is worth is learnt from a few thousand
judgements of an editor, in seconds. Kept are the judged pairs with their features; the model is fitted when
it is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.database import failing_as, open_database
from crops.errors import CropsError
from crops.logs import Logs
from crops.logs.sql import add_texts
from crops.relevance.encode import TextEncoder
from crops.relevance.score import append_scores, pair_cosines
from crops.text import content_id

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Words = Callable[[Sequence[str], Ids], NDArray[np.float32]]
"""Scores [q, c] of query texts with candidate item ids [q, c]: BM25's."""
NEIGHBOURS = 20
"""Other queries whose clicks and shows speak for a query, the most alike."""
ALIKE = 0.5
"""Lowest cosine of a neighbour, which is its weight."""
FEATURES = (
    "cosine",
    "bm25",
    "stage",
    "shows",
    "clicks",
    "neighbour_shows",
    "neighbour_clicks",
    "neighbour_ctr",
    "category_of_clicks",
    "category_of_shows",
    "item_shows",
    "item_clicks",
)
"""What is read of a pair. `stage`: how far the item came for the query, 0 (not found) to 4 (clicked); counts
are log(1 + n), those of neighbours weighted by their cosine; `category_*`: share of the clicks, or shows, of
the query and its neighbours that the item's category has."""
_BLOCK = 1024
_PAIRS = """
select t.query, l.item_id, count(*) filter (l.stage = 'exposed') as shows,
    count(*) filter (l.clicked) as clicks, max(case when l.clicked then 4 when l.stage = 'exposed' then 3
        when l.stage = 'unexposed' then 2 else 1 end) as stage
from {impressions} l join texts t on t.raw = l.query
where l.day in (select unnest($days)) group by all order by all
"""
_CATEGORIES = "select item_id, category from {items} order by item_id"


class Evidence:
    """What the logs of some days say of pairs of a query and an item."""

    def __init__(
        self,
        logs: Logs,
        days: Sequence[str],
        items: tuple[Ids, Sequence[str]],
        encoder: TextEncoder,
        words: Words,
        prefixes: tuple[str, str] = ("", ""),
    ) -> None:
        """Count who saw and clicked what.

        Args:
            days: the days that count, YYYY-MM-DD: none of evaluation.
            items: item ids, ascending, and their document texts.
            encoder: its cosine compares queries, and query and document.
            words: BM25 over the items.
            prefixes: what the encoder reads before a query and before a document.
        """
        from scipy.sparse import csr_array  # slow to import: not for --help

        impressions = f"({logs.sql('search_impressions')})"
        with failing_as(f"{logs.path}: cannot read the evidence"), open_database() as db:
            add_texts(db, f"select query from {impressions}")
            sql = _PAIRS.format(impressions=impressions)
            pairs: pa.Table = db.sql(sql, params={"days": list(days)}).to_arrow_table()
            named: pa.Table = db.sql(_CATEGORIES.format(items=f"({logs.sql('items')})")).to_arrow_table()
        self._encoder, self._words, self._prefixes = encoder, words, prefixes
        self._items, self._texts = items
        pairs = pairs.filter(pa.array(np.isin(pairs["item_id"].to_numpy(), self._items)))
        coded = pairs["query"].combine_chunks().dictionary_encode()
        self._queries: list[str] = coded.dictionary.to_pylist()
        self._place = {content_id(text): row for row, text in enumerate(self._queries)}
        places = coded.indices.to_numpy(), np.searchsorted(self._items, pairs["item_id"].to_numpy())

        def matrix(name: str) -> Any:  # noqa: ANN401 (scipy has no types)
            values = pairs[name].to_numpy().astype(np.float64)
            return csr_array((values, places), shape=(len(self._queries), len(self._items)))

        self._shows, self._clicks, self._stage = matrix("shows"), matrix("clicks"), matrix("stage")
        self._query_rows = encoder.rows([prefixes[0] + text for text in self._queries])
        near = csr_array(neighbours(encoder.vectors[self._query_rows]), shape=(len(self._queries),) * 2)
        self._near_shows, self._near_clicks = near @ self._shows, near @ self._clicks
        names = dict(zip(named["item_id"].to_pylist(), named["category"].to_pylist(), strict=True))
        codes = {name: code for code, name in enumerate(dict.fromkeys(names.values()))}
        self._category = np.array([codes[names[item]] for item in self._items.tolist()], np.int64)
        ones = np.ones(len(self._items)), (np.arange(len(self._items)), self._category)
        belongs = csr_array(ones, shape=(len(self._items), len(codes)))
        self._shares = []
        for counts in (self._clicks + self._near_clicks, self._shows + self._near_shows):
            own = np.asarray((counts @ belongs).todense(), np.float64)
            self._shares.append(own / np.maximum(own.sum(axis=1, keepdims=True), 1e-9))
        self._item_shows, self._item_clicks = (
            np.asarray(counts.sum(axis=0), np.float64).ravel() for counts in (self._shows, self._clicks)
        )

    def knows(self, query: int) -> bool:
        """Return whether a query was searched on the days."""
        return query in self._place

    def features(self, query_ids: Ids, item_ids: Ids) -> Floats:
        """Return `FEATURES` of pairs, [n, features].

        Raises:
            CropsError: a query was not searched on the days, or an item is not in the catalogue.
        """
        if unknown := [query for query in query_ids.tolist() if not self.knows(query)]:
            raise CropsError(
                f"query_id {unknown[0]} was not searched on the days that evidence is counted on"
            )
        query = np.array([self._place[one] for one in query_ids.tolist()], np.int64)
        item = np.minimum(np.searchsorted(self._items, item_ids), len(self._items) - 1)
        if (missing := self._items[item] != item_ids).any():
            raise CropsError(
                f"item_id {item_ids[missing][0]} has no text in the catalogue; leave the pair out"
            )

        def of(matrix: Any) -> Floats:  # noqa: ANN401
            return np.asarray(matrix[query, item], np.float64).ravel()

        distinct, place = np.unique(item, return_inverse=True)
        documents = self._encoder.rows([self._prefixes[1] + self._texts[row] for row in distinct.tolist()])
        shows, clicks = of(self._near_shows), of(self._near_clicks)
        columns = (
            pair_cosines(self._encoder.vectors, self._query_rows[query], documents[place]),
            self._by_words(query, item),
            of(self._stage),
            np.log1p(of(self._shows)),
            np.log1p(of(self._clicks)),
            np.log1p(shows),
            np.log1p(clicks),
            clicks / (shows + 1),
            *(share[query, self._category[item]] for share in self._shares),
            np.log1p(self._item_shows[item]),
            np.log1p(self._item_clicks[item]),
        )
        return np.column_stack(columns).astype(np.float64)

    def _by_words(self, query: Ids, item: Ids) -> Floats:
        found = np.empty(len(query))
        order = np.argsort(query, kind="stable")
        asked, starts = np.unique(query[order], return_index=True)
        for row, own in zip(asked.tolist(), np.split(order, starts[1:]), strict=True):
            found[own] = self._words([self._queries[row]], self._items[item[own]][None, :])[0]
        return found


def neighbours(vectors: NDArray[np.float32]) -> tuple[Floats, tuple[Ids, Ids]]:
    """Return the `NEIGHBOURS` most alike others of unit vectors [n, dim]: weights, and rows and columns."""
    count = min(NEIGHBOURS, len(vectors) - 1)
    rows, columns, weights = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    for start in range(0, len(vectors) if count else 0, _BLOCK):
        alike = vectors[start : start + _BLOCK] @ vectors.T
        own = np.arange(len(alike))
        alike[own, start + own] = -1  # a query is no neighbour of itself
        best = np.argpartition(-alike, count - 1, axis=1)[:, :count]
        weight = np.take_along_axis(alike, best, axis=1)
        kept = weight >= ALIKE
        rows.append(start + np.repeat(own, kept.sum(axis=1)))
        columns.append(best[kept])
        weights.append(weight[kept].astype(np.float64))
    return np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))


# The models of scikit-learn, and what they are worth on held-out queries.

FOLDS = 5


def models() -> dict[str, Callable[[], Any]]:
    """Return what may be fitted, by name."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # slow to import: not for --help
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Few and small trees: a tenth of the judgements may be wrong.
    few = {"max_iter": 100, "learning_rate": 0.05, "max_depth": 4, "min_samples_leaf": 20, "random_state": 0}
    return {
        "trees": lambda: HistGradientBoostingClassifier(**few),
        "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    }


def out_of_fold(
    model: Callable[[], Any], features: Floats, relevant: Flags, queries: Sequence[str], seed: int
) -> Floats:
    """Return P(relevant) of each pair by a model that was fitted on other queries, [n].

    Raises:
        CropsError: there are too few queries, or one of the classes is missing.
    """
    distinct, group = np.unique(np.array(queries), return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(distinct))[group] % FOLDS
    found = np.empty(len(relevant))
    for part in range(FOLDS):
        held = fold == part
        rest = relevant[~held]
        if not held.any() or rest.all() or not rest.any():
            raise CropsError(
                f"{len(relevant)} judgements of {len(distinct)} queries: it takes relevant and irrelevant "
                "ones of many queries; 2,000 judgements are a good number"
            )
        found[held] = model().fit(features[~held], rest).predict_proba(features[held])[:, 1]
    return found


def recall_at_precision(score: Floats, relevant: Flags, precision: float = 0.9) -> float:
    """Return the highest recall of any threshold with at least this precision; 0 where there is none."""
    from sklearn.metrics import precision_recall_curve

    reached, recall, _ = precision_recall_curve(relevant, score)
    return float(recall[reached >= precision].max(initial=0.0))


# The folder of `crops theta fit`, and the scorer.

_JUDGED = "judged.parquet"
"""query_id, item_id, relevant, and `FEATURES`."""


def save_judged(folder: Path, query_ids: Ids, item_ids: Ids, relevant: Flags, features: Floats) -> None:
    """Write the judged pairs with their features into an existing folder."""
    columns = {"query_id": query_ids, "item_id": item_ids, "relevant": relevant}
    pq.write_table(pa.table(columns | dict(zip(FEATURES, features.T, strict=True))), folder / _JUDGED)


def fitted(folder: Path, name: str) -> Any:  # noqa: ANN401 (scikit-learn has no types)
    """Return the model of a name in `models`, fitted on the judged pairs of a folder.

    Raises:
        CropsError: they are not there, or of another version.
    """
    try:
        table = pq.read_table(folder / _JUDGED)
        features = np.column_stack([table[one].to_numpy() for one in FEATURES])
        model = models()[name]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise CropsError(f"{folder} is no output of this crops theta fit: {error}; fit it again") from error
    return model().fit(features, table["relevant"].to_numpy(zero_copy_only=False))


@dataclass(frozen=True)
class EvidenceScorer:
    """Scores pairs by their evidence; a `PairScorer` whose keys are a query_id and an item_id."""

    model: Any
    evidence: Evidence
    by_item = True

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Append `score` to each batch, by `left_key` and `right_key`."""
        for batch in batches:
            queries, items = (batch.column(name).to_numpy() for name in ("left_key", "right_key"))
            yield append_scores(batch, self.model.predict_proba(self.evidence.features(queries, items))[:, 1])


def read_judgements(path: Path, days: Sequence[str]) -> tuple[list[str], Ids, Flags]:
    """Read an editor's judgements: CSV of day, query, item_id, grade (0 to 3; 2 and 3 are relevant).

    Args:
        days: the days mined.

    Returns:
        The queries, the item ids and whether each pair is relevant, n of each.

    Raises:
        CropsError: it lies in a simulator's truth, is unreadable or empty, or lacks a column; a judgement is
            of a day that was not mined, e.g. the test day, or a value cannot be.
    """
    if path.resolve().parent.name == "truth":
        raise CropsError(f"{path} is a simulator's truth; theta learns from an editor's judgements only")
    fault = f"{path}: cannot read the judgements, CSV with the columns day, query, item_id, grade"
    source = "read_csv($path, all_varchar = true, header = true)"
    with failing_as(fault), open_database() as db:
        rows = db.execute(f"select day, query, item_id, grade from {source}", {"path": str(path)}).fetchall()
    if not rows:
        raise CropsError(f"{path}: no judgements; give some two thousand")
    for number, (day, query, item, grade) in enumerate(rows, 2):
        where = f"{path}, row {number}"
        if day not in days:
            raise CropsError(
                f"{where}, column day: {day} is not what was mined ({', '.join(days)}). Judgements of a day "
                "that is held out would teach theta the answers of its test: leave them out"
            )
        if grade not in ("0", "1", "2", "3"):
            raise CropsError(f"{where}, column grade: '{grade}'; write 0, 1, 2 or 3")
        if not query or not re.fullmatch(r"-?[0-9]{1,19}", item or "") or abs(int(item)) >= 2**63:
            raise CropsError(f"{where}: query '{query}', item_id '{item}'; give both, as in the logs")
    queries, items, grades = ([row[column] for row in rows] for column in (1, 2, 3))
    return queries, np.array(items, np.int64), np.array(grades, np.int64) >= 2
