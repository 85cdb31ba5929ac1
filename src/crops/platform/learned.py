"""What the platform has learned from its own logs; it grows day by day."""

from __future__ import annotations

import copy
import hashlib
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from crops.platform.world import Floats, Ints
from crops.text import SPACELESS, terms

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import CountVectorizer

T = TypeVar("T", np.int64, np.float64)
NEIGHBOURS = 20
"""Items kept per item in the co-watch table."""
_BLOCK = 8192
"""Items whose neighbours are counted at a time."""


def best_per_group(group: Ints, item: Ints, score: Floats | Ints, k: int) -> Ints:
    """Return the positions of the k best entries of each group: by group, best first, ties by item.

    Args:
        group: [n] group of each entry.
        item: [n].
        score: [n], already rounded.
        k: entries to keep per group.
    """
    order = np.lexsort((item, -score, group))
    ordered = group[order]
    first = np.searchsorted(ordered, ordered, side="left")
    best: Ints = order[np.arange(len(order)) - first < k]
    return best


def pad_groups(group: Ints, groups: int, width: int, column: NDArray[T]) -> NDArray[T]:
    """Lay entries that are ordered by group out as a table [groups, width], padded with -1."""
    table = np.full((groups, width), -1, dtype=column.dtype)
    table[group, np.arange(len(group)) - np.searchsorted(group, group, side="left")] = column
    return table


def top_per_row(matrix: sparse.csr_array, k: int) -> Ints:
    """Return the columns of the k largest values of each row, best first, ties by column; -1 pads rows."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    column = matrix.indices.astype(np.int64)
    best = best_per_group(row, column, np.round(matrix.data.astype(np.float64), 9), k)
    return pad_groups(row[best], matrix.shape[0], k, column[best])


@dataclass
class Memory:
    """Plays, clicks and watches so far; items and queries by row."""

    plays: Ints
    """Plays per item, search and feed, [items]."""
    sense_clicks: Ints
    """Clicks per sense, [senses]."""
    queries: dict[str, int] = field(default_factory=dict)
    """Row of each query text that had a click."""
    clicks: list[tuple[Ints, Ints]] = field(default_factory=list)
    """Per day, query and item rows of clicks."""
    watched: list[tuple[Ints, Ints]] = field(default_factory=list)
    """Per day, user and item rows of feed videos that were watched at least half."""
    neighbours: dict[bytes, Ints] = field(default_factory=dict, repr=False)
    """Co-watch tables by digest of the feed so far. With `KeyedDraws` the feed does not depend on what the
    searches of its day found, so that all copies of a world watch the same and need the same tables."""

    def learn(self, impressions: pa.Table, feed: pa.Table, item_sense: Ints) -> None:
        """Add a day's clicks and watches."""
        items = len(self.plays)
        clicked = impressions.filter(impressions["clicked"])
        rows = clicked["item_id"].to_numpy() - 1
        texts = clicked["query"].combine_chunks().dictionary_encode()
        known = [self.queries.setdefault(text, len(self.queries)) for text in texts.dictionary.to_pylist()]
        self.clicks.append((np.array(known, dtype=np.int64)[texts.indices.to_numpy()], rows))
        played = feed.filter(pc.greater(feed["play_ms"], 3_000))["item_id"].to_numpy() - 1
        half = feed.filter(pc.greater(pc.multiply(feed["play_ms"], 2), feed["duration_ms"]))
        self.watched.append((half["user_id"].to_numpy() - 1, half["item_id"].to_numpy() - 1))
        self.plays += np.bincount(rows, minlength=items) + np.bincount(played, minlength=items)
        self.sense_clicks += np.bincount(item_sense[rows], minlength=len(self.sense_clicks))

    def yesterday(self) -> tuple[Ints, Ints]:
        """Return the user and item rows of the last day's watches; empty before the first day."""
        return self.watched[-1] if self.watched else (np.zeros(0, np.int64), np.zeros(0, np.int64))

    def popularity(self) -> Floats:
        """Return log plays scaled to [0, 1], [items]."""
        log = np.log1p(self.plays)
        scaled: Floats = log / max(float(log.max()), 1.0)
        return scaled

    def click_counts(self) -> sparse.csr_array:
        """Return clicks per query and item, [queries, items]."""
        query, item = _joined(self.clicks)
        shape = (len(self.queries), len(self.plays))
        return sparse.csr_array((np.ones(len(query)), (query, item)), shape=shape)

    def copy(self) -> Memory:
        """Return a memory that learns apart from this one; co-watch tables are shared."""
        own = {one.name: copy.deepcopy(getattr(self, one.name)) for one in fields(self)}
        return Memory(**{**own, "neighbours": self.neighbours})

    def co_watched(self) -> Ints:
        """Return the items most often watched by the same people, [items, NEIGHBOURS], -1 pads rows."""
        digest = hashlib.sha256()
        for part in (array for day in self.watched for array in day):
            digest.update(len(part).to_bytes(8, "big") + part.tobytes())
        key = digest.digest()
        if key not in self.neighbours:
            self.neighbours[key] = self._count_together()
        return self.neighbours[key]

    def _count_together(self) -> Ints:
        """Count by a sparse product; keep the best of each row by sorting rows, counts and items as one."""
        items = len(self.plays)
        table = np.full((items, NEIGHBOURS), -1, dtype=np.int64)
        user, item = _joined(self.watched)
        if not len(user):
            return table
        shape = (int(user.max()) + 1, items)
        watched = sparse.csr_array((np.ones(len(user), dtype=np.float32), (user, item)), shape=shape)
        watched.data[:] = 1.0
        by_item = sparse.csr_array(watched.T)
        for start in range(0, items, _BLOCK):
            together = sparse.csr_array(by_item[start : start + _BLOCK] @ watched)
            row = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
            count, other = together.data.astype(np.int64), together.indices.astype(np.int64)
            most = int(count.max(initial=0))
            pair = ((row * (most + 1) + most - count) * items + other)[other != row + start]
            pair.sort()
            row, other = pair // ((most + 1) * items), pair % items
            best = np.arange(len(row)) - np.searchsorted(row, row, side="left") < NEIGHBOURS
            table[start : start + _BLOCK] = pad_groups(row[best], together.shape[0], NEIGHBOURS, other[best])
        return table


def _joined(days: list[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    empty = np.zeros(0, dtype=np.int64)
    left, right = zip((empty, empty), *days, strict=True)
    return np.concatenate(left), np.concatenate(right)


# The route `sparse`: latent semantic analysis (Deerwester et al. 1990) of the table of query terms and
# clicked items. It knows items by their ids alone, so it cannot find what was never clicked.


DIM = 64


@dataclass(frozen=True)
class IdModel:
    """Vectors of terms and of clicked items."""

    words: CountVectorizer
    term_vectors: NDArray[np.float32]
    """[terms, d]"""
    item_rows: Ints
    """[n] rows of the items that were clicked."""
    item_vectors: NDArray[np.float32]
    """[n, d] unit rows."""

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Return unit vectors [texts, d]; zero where no term is known."""
        from sklearn.preprocessing import normalize  # slow to import: not for --help

        vectors: NDArray[np.float32] = normalize(self.words.transform(texts) @ self.term_vectors)
        return vectors


def _terms(text: str) -> list[str]:
    """Return what stands between spaces, and the terms of what holds a script without spaces."""
    return [
        term
        for token in re.findall(r"\S+", text.lower())
        for term in (terms(token) if re.search(f"[{SPACELESS}]", token) else [token])
    ]


def fit_id_model(memory: Memory, seed: int) -> IdModel:
    """Learn from the clicks so far."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
    from sklearn.preprocessing import normalize
    from sklearn.utils.extmath import randomized_svd

    words = CountVectorizer(analyzer=_terms)
    clicks = memory.click_counts()
    clicks.data = np.log1p(clicks.data)
    terms = sparse.csr_array(words.fit_transform(list(memory.queries)))
    table = sparse.csr_array(TfidfTransformer(norm=None).fit_transform((terms.T @ clicks).T).T)
    item_rows = np.unique(table.indices).astype(np.int64)
    clicked = sparse.csc_array(table)[:, item_rows]
    dim = min(DIM, min(clicked.shape) - 1)
    left, values, right = randomized_svd(clicked, n_components=dim, random_state=seed)
    scale = np.sqrt(values)
    return IdModel(
        words, (left * scale).astype(np.float32), item_rows, normalize(right.T * scale).astype(np.float32)
    )
