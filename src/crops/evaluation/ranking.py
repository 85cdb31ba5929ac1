"""A retriever's rankings of the queries and candidate lists of a test set, as matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.evaluation.metrics import Grades, Ids, pad
from crops.outputs import console
from crops.protocols import Retriever


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
