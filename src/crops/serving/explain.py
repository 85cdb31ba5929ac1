"""Why an item is found for a query: the training pairs nearest to it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.retrieval import FlatIndex
from crops.retrieval.encoding import narrowed
from crops.serving.evidence import Evidence, Pair, TrainingQuery
from crops.serving.searcher import Searcher
from crops.text import PLAIN, query_id

NEAREST = 6
"""Training queries that are looked at beside the query itself."""
FAR = 0.3
"""Training queries of a smaller cosine with the query asked say nothing about it."""
PAIRS = 4
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

    def __init__(self, evidence: Evidence, searcher: Searcher) -> None:
        """Encode the training queries with the model of `searcher`."""
        self._evidence, self._searcher = evidence, searcher
        self._written: OrderedDict[int, NDArray[np.float32]] = OrderedDict()
        self._index: FlatIndex | None = None
        if evidence.queries and searcher.model is not None:
            vectors = searcher.encode([query.text for query in evidence.queries])
            self._index = FlatIndex(np.arange(len(vectors)), vectors)

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

        Args:
            query: normalised.
            items: ids of real items.

        Raises:
            CropsError: an item is not in the index.
        """
        near = self._near(query)
        pairs = self._evidence.positives([one.query.query_id for one in near])
        own = {one.query.query_id: one for one in near}
        similar = self._similarities(items, pairs)
        named = {}
        for row, item in enumerate(items):
            weights = [
                own[pair.query_id].similarity * similar[row, column] for column, pair in enumerate(pairs)
            ]
            best = np.argsort(np.array(weights), kind="stable")[::-1][:PAIRS].tolist()
            named[item] = tuple(
                NearPair(own[pairs[column].query_id], pairs[column], float(similar[row, column]))
                for column in best
                if weights[column] > 0
            )
        known = bool(near) and near[0].query.query_id == query_id(query)
        return Explained(known, tuple(near), named)

    def _near(self, query: str) -> list[NearQuery]:
        """Return the query itself, if it is a training query, and the nearest others."""
        same = self._evidence.query(query_id(query))
        near = [] if same is None else [NearQuery(same, 1.0)]
        if self._index is None:
            return near
        rows, scores = self._index.nearest(self._searcher.encode([query]), NEAREST + len(near))
        for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True):
            if row < 0 or self._evidence.queries[row].query_id == query_id(query) or score < FAR:
                continue
            found = self._evidence.query(self._evidence.queries[row].query_id)
            if found is not None and len(near) < NEAREST:
                near.append(NearQuery(found, score))
        return near

    def _similarities(self, items: Sequence[int], pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Return the cosines [items, pairs] of items with the documents of pairs; 0 where one is unknown."""
        same = np.array([[item == pair.item_id for pair in pairs] for item in items], dtype=np.float32)
        if self._index is None or not pairs or not items:
            return same.reshape(len(items), len(pairs))
        vectors = self._searcher.index.vectors(np.array(items, dtype=np.int64))
        documents = np.stack([self._vector(pair, vectors.shape[1]) for pair in pairs])
        near: NDArray[np.float32] = np.where(same == 1, np.float32(1), vectors @ documents.T)
        return near

    def _vector(self, pair: Pair, width: int) -> NDArray[np.float32]:
        """Return the vector of a pair's document; zeros where there is none."""
        nothing = np.zeros(width, dtype=np.float32)
        if pair.model is not None:
            return self._written_vector(pair, width) if self._reads_texts() else nothing
        try:
            found = self._searcher.index.vectors(np.array([pair.item_id], dtype=np.int64))
        except CropsError:  # it has left the index
            return nothing
        return found.reshape(width)

    def _reads_texts(self) -> bool:
        """Return whether the model reads texts, and not ids, which what is written has none of."""
        return self._searcher.model is not None and self._searcher.model.rendering is PLAIN

    def _written_vector(self, pair: Pair, width: int) -> NDArray[np.float32]:
        """Return the vector of a generated document, encoded when it is first asked for."""
        vector = self._written.get(pair.item_id)
        if vector is None:
            text = " ".join([pair.document.title, *pair.document.text.split(" · ")]).strip()
            vector = narrowed(self._searcher.encode([text], role="document"), width)[0]
            self._written[pair.item_id] = vector
            if len(self._written) > _WRITTEN:
                self._written.popitem(last=False)
        return vector
