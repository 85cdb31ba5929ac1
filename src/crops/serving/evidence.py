"""Why an item is found for a query, and what changed between indexes; nothing is told that few users did."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.database import open_database, path_literal
from crops.engine.documents import read_expansion
from crops.engine.evidence import Pair, TrainingEvidence, TrainingQuery
from crops.engine.mined import read_mined
from crops.errors import CropsError, UnknownItemError
from crops.labels import Source
from crops.outputs import read_manifest
from crops.report.side_by_side import RELEVANT_GRADE
from crops.retrieval import FlatIndex
from crops.retrieval.encoding import narrowed
from crops.serving.searcher import Job, Searcher
from crops.text import PLAIN, normalise_query, query_id

_NEAREST = 6
"""Training queries that are looked at besides the query itself."""
_FAR = 0.3
"""Training queries of a smaller cosine with the query asked say nothing about it."""
_LONELY = 5
"""And of a smaller one than this percentile of the training queries have with the nearest other one."""
_MEASURED = 500
"""Training queries whose nearest other one is looked up for that."""
_PAIRS = 4
"""Training pairs that are named for an item."""
_WRITTEN = 4096
"""Generated documents whose vectors are kept."""


@dataclass(frozen=True)
class NearQuery:
    """A training query and its cosine with the query asked; 1 where it is the same."""

    query: TrainingQuery
    similarity: float


@dataclass(frozen=True)
class NearPair:
    """A training pair that speaks for an item."""

    near: NearQuery
    pair: Pair
    similarity: float
    """Cosine of its document with the item; 1 where it is the item itself."""


@dataclass(frozen=True)
class Explained:
    """What the training data says about a query and the items found for it."""

    known: bool
    """Whether the query itself is a training query of at least k users."""
    queries: tuple[NearQuery, ...]
    pairs: dict[int, tuple[NearPair, ...]]
    """By item, the nearest first."""


class Explainer:
    """Looks up evidence with the vectors of one model and the items of one version of an index."""

    def __init__(self, evidence: TrainingEvidence, searcher: Searcher) -> None:
        """Encode the training queries with the model of `searcher`."""
        self._evidence, self._searcher = evidence, searcher
        self._written: OrderedDict[int, NDArray[np.float32]] = OrderedDict()
        self._index: FlatIndex | None = None
        if evidence.queries and searcher.model is not None:
            vectors = searcher.encode([query.text for query in evidence.queries])
            self._index = FlatIndex(np.arange(len(vectors)), vectors)
            self._far = _FAR
            if len(vectors) > _NEAREST:
                _, scores = self._index.nearest(vectors[:_MEASURED], 2)
                self._far = max(_FAR, float(np.percentile(scores[:, 1], _LONELY)))

    def on(self, searcher: Searcher) -> Explainer:
        """Return an explainer for another version of the index; the same model encodes nothing again."""
        if not self._searcher.same_model(searcher):
            return Explainer(self._evidence, searcher)
        other = copy.copy(self)
        other._searcher = searcher
        return other

    def explain(self, query: str, items: Sequence[int]) -> Explained:
        """Return what speaks for items as answers to a query.

        Pairs are ordered by cosine of the queries times cosine of the documents: both must be near. An item
        that is not in the index raises `UnknownItemError`.
        """
        asked = np.array(items, dtype=np.int64)
        if (unknown := asked[~self._searcher.index.known(asked)]).size:
            raise UnknownItemError(int(unknown[0]), "the index", unknown.size)
        near = self._near(query)
        found = [self._evidence.positives(one.query.query_id) for one in near]
        documents = np.concatenate([*found, np.empty(0, dtype=np.int64)])
        owner = np.repeat(np.arange(len(near)), [len(one) for one in found])
        own = np.array([one.similarity for one in near], dtype=np.float32)[owner]
        similar = self._similarities(asked, documents)
        weights = own * similar
        best = np.argsort(weights, axis=1, kind="stable")[:, ::-1][:, :_PAIRS]
        chosen = [
            [(near[owner[column]], int(documents[column]), float(similar[row, column])) for column in columns]
            for row, columns in enumerate([some[weights[row, some] > 0] for row, some in enumerate(best)])
        ]
        pairs = self._evidence.pairs({(one.query.query_id, item) for some in chosen for one, item, _ in some})
        named = {
            item: tuple(
                NearPair(one, pairs[one.query.query_id, document], cosine) for one, document, cosine in some
            )
            for item, some in zip(items, chosen, strict=True)
        }
        known = bool(near) and near[0].query.query_id == query_id(query)
        return Explained(known, tuple(near), named)

    def _near(self, query: str) -> list[NearQuery]:
        """Return the query itself, if it is a training query, and the nearest others."""
        same = self._evidence.query(query_id(query))
        near = [] if same is None else [NearQuery(same, 1.0)]
        if self._index is None:
            return near
        rows, scores = self._index.nearest(self._searcher.encode([query]), _NEAREST + len(near))
        for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True):
            if row < 0 or self._evidence.queries[row].query_id == query_id(query) or score < self._far:
                continue
            found = self._evidence.query(self._evidence.queries[row].query_id)
            if found is not None and len(near) < _NEAREST:
                near.append(NearQuery(found, score))
        return near

    def _similarities(self, items: NDArray[np.int64], documents: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the cosines [items, documents] of items with documents; 0 for one that is unknown."""
        same: NDArray[np.float32] = np.equal.outer(items, documents).astype(np.float32)
        if self._index is None or not same.size:
            return same
        vectors = self._searcher.index.vectors(items)
        others = np.zeros((len(documents), vectors.shape[1]), dtype=np.float32)
        known = self._searcher.index.known(documents)  # the others have left the index, or are generated
        others[known] = self._searcher.index.vectors(documents[known])
        if self._searcher.model is not None and self._searcher.model.rendering is PLAIN:
            # Generated documents are texts: a model that reads ids has no vectors for them.
            written = documents < 0
            others[written] = self._written_vectors(documents[written].tolist(), vectors.shape[1])
        near: NDArray[np.float32] = np.where(same == 1, np.float32(1), vectors @ others.T)
        return near

    def _written_vectors(self, items: Sequence[int], width: int) -> NDArray[np.float32]:
        """Return the vectors [n, width] of generated documents, encoded when they are first asked for."""
        missing = self._evidence.written({item for item in items if item not in self._written})
        if missing:
            texts = [" ".join([one.title, *one.text.split(" · ")]).strip() for one in missing.values()]
            encoded = narrowed(self._searcher.encode(texts, role="document"), width)
            self._written.update(zip(missing, encoded, strict=True))
        found = np.array([self._written[item] for item in items], dtype=np.float32).reshape(len(items), width)
        while len(self._written) > _WRITTEN:
            self._written.popitem(last=False)
        return found


@dataclass(frozen=True)
class Added:
    """A query that joined the text of an item, and why."""

    query: str
    sources: Source
    via: str | None
    """P1: the later query of most people; None if fewer than k."""
    users: int | None
    """People behind the one trail that is told; None if fewer than k."""


class Expansion:
    """The queries that `crops expand` added, as far as others than the owner of the logs may know them."""

    def __init__(self, folder: Path, k: int | None = None) -> None:
        """Read an output of `crops expand`; k people (None: as many as in the mining) are behind all told."""
        self.k: int = k or read_manifest(folder, "expand")["k"]
        rows = read_expansion(folder)
        self._rows = rows.filter(pc.field("searchers") >= self.k)
        self._items = self._rows["item_id"].to_numpy()

    def of(self, item_id: int) -> tuple[Added, ...]:
        """Return what was added to an item, most people first."""
        begin, end = np.searchsorted(self._items, [item_id, item_id + 1]).tolist()
        added = []
        for row in self._rows.slice(begin, end - begin).to_pylist():
            sources = Source(row["sources"])
            # A sum over trails would tell, beside the one that is told, how many the others are of.
            users = row["via_users"] or (row["users"] if len(sources) == 1 else 0)
            told = users >= self.k
            added.append(Added(row["query"], sources, row["via"] if told else None, users if told else None))
        return tuple(added)


# What changed for the training queries between two indexes, by the truth where a simulation knows it.

DEPTH = 10
"""Results that are compared."""
_QUERIES = 500
"""Training queries that are compared, the most searched ones."""
_AT_ONCE = 100
_SEEN = 0.05
"""A smaller gain is 0.0 in the one decimal that is shown."""


class Truth:
    """What only a simulation knows: what items are about, and how well they answer."""

    def __init__(self, truth: Path, samples: Path | None = None, logs: Path | None = None) -> None:
        """Read the truth folder of `crops simulate`.

        Args:
            truth: the folder.
            samples: output of `crops mine`: what its searchers needed; grades are known with it only.
            logs: the logs of that mining, where they are not where it found them.
        """
        for name in ("items", "needs"):
            if not (truth / f"{name}.parquet").is_file():
                raise CropsError(f"{truth} is no truth folder of `crops simulate` (no {name}.parquet in it)")
        needs = pq.read_table(truth / "needs.parquet", columns=["need_id", "sense"]).to_pydict()
        sense = dict(zip(needs["need_id"], needs["sense"], strict=True))
        items = pq.read_table(truth / "items.parquet", columns=["item_id", "need_id"]).to_pydict()
        self._sense = {
            item: sense[need] for item, need in zip(items["item_id"], items["need_id"], strict=True)
        }
        self._needs: Mapping[int, Mapping[int, int]] = {}
        if samples is not None and (truth / "grades.parquet").is_file():
            self._needs = _needs_by_query(truth, samples, logs)
            grades = pq.read_table(truth / "grades.parquet").sort_by("need_id")
            self._graded = {name: grades[name].to_numpy() for name in ("need_id", "item_id", "grade")}

    def of(self, item_id: int) -> str | None:
        """Return what an item is about."""
        return self._sense.get(item_id)

    def answers(self, query: int, items: Sequence[int]) -> Answers | None:
        """Return how well items answer a query (its id); None where nobody asked it on the days mined."""
        if not (needs := self._needs.get(query)):
            return None
        best, relevant = dict.fromkeys(items, 0), 0.0
        for need, searches in needs.items():
            begin, end = np.searchsorted(self._graded["need_id"], [need, need + 1])
            own = self._graded["item_id"][begin:end].tolist()
            grades = dict(zip(own, self._graded["grade"][begin:end].tolist(), strict=True))
            found = {item: grades.get(item, 0) for item in items}
            best = {item: max(best[item], grade) for item, grade in found.items()}
            relevant += searches * sum(grade >= RELEVANT_GRADE for grade in found.values())
        return Answers(relevant / sum(needs.values()), best)


@dataclass(frozen=True)
class Answers:
    """How well items answer those who asked."""

    relevant: float
    """Items of at least `RELEVANT_GRADE`, mean over the searches."""
    grades: Mapping[int, int]
    """By item, for the need that it fits best."""


def _needs_by_query(truth: Path, samples: Path, logs: Path | None) -> dict[int, Counter[int]]:
    """Return the searches of the days mined by query id and need."""
    found: dict[int, Counter[int]] = defaultdict(Counter)
    searches = path_literal(truth / "searches.parquet")
    with open_database() as db:
        for source, days in read_mined(samples).open_logs(logs):
            logged = source.sql("search_impressions", days)
            rows = db.execute(
                "select query, need_id, count(distinct search_id) "
                f"from ({logged}) join {searches} using (search_id) group by all"
            ).fetchall()
            for query, need, count in rows:
                found[query_id(normalise_query(query))][need] += count
    return found


@dataclass(frozen=True)
class Change:
    """What changed in the first results of a query."""

    query: TrainingQuery
    new: int
    """Results that were not there before."""
    gain: float | None
    """More relevant ones for its mean searcher, by the truth."""


@dataclass(frozen=True)
class Changes:
    """What changed for the training queries that were compared."""

    compared: Sequence[Change]
    """The most searched first; so are equal ones below."""

    @property
    def mean_gain(self) -> float | None:
        """Return the mean over the queries whose gain is known; None where none is."""
        known = [one.gain for one in self.compared if one.gain is not None]
        return sum(known) / len(known) if known else None

    @property
    def gained(self) -> list[Change]:
        """Return the queries that gained, by at least `_SEEN`, the most first."""
        return self._ends(+1)

    @property
    def lost(self) -> list[Change]:
        """Return the queries that lost, by at least `_SEEN`, the most first."""
        return self._ends(-1)

    def _ends(self, sign: int) -> list[Change]:
        moved = [(sign * (one.gain or 0), one) for one in self.compared]
        return [one for by, one in sorted(moved, key=lambda each: -each[0]) if by >= _SEEN]

    @property
    def renewed(self) -> list[Change]:
        """Return the queries with new results, the most first."""
        return sorted((one for one in self.compared if one.new), key=lambda one: -one.new)


def compare_answers(
    before: Searcher, after: Searcher, evidence: TrainingEvidence, truth: Truth | None
) -> Changes:
    """Search for the most frequent training queries in two indexes, and compare what they find."""
    queries = evidence.queries[:_QUERIES]
    jobs = [Job(DEPTH, query.text, texts=False) for query in queries]
    old, new = (
        [
            answer.ids if not isinstance(answer, Exception) else []
            for start in range(0, len(jobs), _AT_ONCE)
            for answer in searcher.answer(jobs[start : start + _AT_ONCE])
        ]
        for searcher in (before, after)
    )
    compared = []
    for query, first, second in zip(queries, old, new, strict=True):
        gain = None
        if truth is not None and (answers := truth.answers(query.query_id, second)):
            known = truth.answers(query.query_id, first)
            gain = answers.relevant - known.relevant if known else None
        compared.append(Change(query, len(set(second) - set(first)), gain))
    return Changes(compared)
