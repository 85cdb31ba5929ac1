"""Why an item is found for a query: the training pairs nearest to it; nothing is told that few users did."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from crops.engine.documents import read_expansion
from crops.engine.evidence import Pair, TrainingEvidence, TrainingQuery
from crops.errors import UnknownItemError
from crops.labels import Source
from crops.outputs import read_manifest
from crops.retrieval import FlatIndex
from crops.retrieval.encoding import narrowed
from crops.serving.searcher import Searcher
from crops.text import PLAIN, query_id

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

        Pairs are ordered by cosine of the queries times cosine of the documents: both must be near.

        Raises:
            UnknownItemError: an item is not in the index.
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
        """Read an expansion.

        Args:
            folder: output of `crops expand`.
            k: people behind whatever is told, as in `crops.engine.evidence`; `engine.k` of the mining when
                None.

        Raises:
            CropsError: there is no expansion.
        """
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
