"""The recall routes of the search cascade.

Text routes (`bm25`, `dense`, `sparse`) are arguments: an experiment swaps them. The others are the platform's
own and follow from its memory. What no route finds, no later stage can show.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from crops.platform.bubble import Bubble
from crops.platform.memory import Memory, best_per_group, pad_groups, top_per_row
from crops.platform.noise import mix
from crops.platform.world import Corpus, Floats, Ints
from crops.protocols import Retriever

ROUTES = (
    "bm25",
    "dense",
    "sparse",
    "co_click",
    "similar",
    "co_watch",
    "popular",
    "fresh",
    "explore",
    "personal",
)
"""Names of the bits of `search_impressions.routes`, lowest bit first."""
TEXT_MATCH = 1
"""The bit of `bm25`: the item's text visibly shows words of the query."""
OWN_PAST = ("dense", "sparse", "co_click", "similar")
"""Routes that learned from the platform's own clicks; the bubble dial sets their depth."""
DEPTH = {"bm25": 60, "co_watch": 30, "popular": 20, "fresh": 20, "personal": 25}
"""Candidates of the other routes."""
BEYOND = ("co_watch", "fresh", "personal")
"""Routes that bring what neither words nor clicks point to; the bubble dial multiplies their depth."""
SEEDS = 5
"""Best candidates of each text route whose feed neighbours the co-watch route brings."""
LEAF_EVIDENCE = 20
"""Best candidates of each text route that vote for the query's leaf category."""
KNOWN_QUERIES, SIMILAR_QUERIES, SIMILARITY = 20_000, 5, 0.4
"""The similar-query route looks among the most clicked queries for the nearest few above a cosine."""


class Routes:
    """All routes of one day: the same for everybody, so each distinct text is looked up once."""

    def __init__(
        self,
        corpus: Corpus,
        memory: Memory,
        retrievers: Mapping[str, Retriever],
        bubble: Bubble,
        senses: int,
        day: int,
        seed: int,
    ) -> None:
        """Fix what the day knows.

        Args:
            corpus: the catalogue; items uploaded after the day's start are not found yet.
            memory: what earlier days taught.
            retrievers: text routes by name (`bm25`, `dense`, `sparse`).
            bubble: depth of the routes.
            senses: number of leaf categories.
            day: day number.
            seed: of what is drawn at random.
        """
        self.live = corpus.uploaded_day <= day
        self.popularity = memory.popularity()
        self._corpus, self._memory, self._retrievers = corpus, memory, retrievers
        self._senses, self._day, self._seed = senses, day, seed
        beyond = {name: round(bubble.beyond * DEPTH[name]) for name in BEYOND}
        own_past = dict.fromkeys(OWN_PAST, bubble.own_past)
        self._depth = {**DEPTH, **beyond, **own_past, "explore": bubble.explore}

    def __call__(self, texts: Sequence[str]) -> tuple[dict[str, Ints], Ints]:
        """Look up distinct texts.

        Returns:
            Item rows by route, each [texts, depth], -1 where it found less; and the leaf categories [texts],
            -1 where no words led anywhere.
        """
        found = {
            name: np.maximum(route.search(texts, self._depth[name])[0] - 1, -1)
            for name, route in self._retrievers.items()
        }
        leaf = self._leaf([rows[:, :LEAF_EVIDENCE] for rows in found.values()])
        found |= self._from_clicks(texts)
        seeds = np.concatenate(
            [rows[:, :SEEDS] for name, rows in found.items() if name in self._retrievers], 1
        )
        found["co_watch"] = self._neighbours(seeds)
        for name, table in (("popular", self._popular), ("fresh", self._fresh)):
            found[name] = np.where(leaf[:, None] >= 0, table[leaf], -1)
        if self._depth["explore"]:
            key = np.array([zlib.crc32(text.encode()) for text in texts]) * 1_009 + self._day
            found["explore"] = self._draw_from_leaf(key, leaf, self._depth["explore"])
        return found, leaf

    def personal(self, user: Ints, leaf: Ints) -> Ints:
        """Return what a user's own history points to in leaf categories, [n, depth]; the same every day.

        It stands for the routes that start from a person and not from the words of the query.
        """
        return self._draw_from_leaf(user * 7_919 + leaf, leaf, self._depth["personal"])

    def _leaf(self, votes: list[Ints]) -> Ints:
        """Return the leaf category most common among the best candidates (ties: the smaller), -1 without."""
        rows = np.concatenate(votes, axis=1)
        text, at = np.nonzero(rows >= 0)
        shape = (len(rows), self._senses)
        cell = text * self._senses + self._corpus.sense[rows[text, at]]
        counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
        return np.where(counts.any(axis=1), counts.argmax(axis=1), -1)

    def _from_clicks(self, texts: Sequence[str]) -> dict[str, Ints]:
        """Items clicked for the same text before (`co_click`), and for texts spelt alike (`similar`)."""
        if not self._memory.queries:
            return {}
        depth = self._depth["co_click"]
        known = np.array([self._memory.queries.get(text, -1) for text in texts])
        own = np.full((len(texts), depth), -1, dtype=np.int64)
        own[known >= 0] = top_per_row(self._clicks[known[known >= 0]], depth)
        spelling, spelt, most = self._spelling
        like = sparse.csr_array(spelling.transform(texts) @ spelt)
        row = np.repeat(np.arange(len(texts)), np.diff(like.indptr))
        like.data[(like.data < SIMILARITY) | (most[like.indices] == known[row])] = 0.0
        like.eliminate_zeros()
        row = np.repeat(np.arange(len(texts)), np.diff(like.indptr))
        best = best_per_group(row, like.indices.astype(np.int64), np.round(like.data, 9), SIMILAR_QUERIES)
        nearest = sparse.csr_array((like.data[best], (row[best], like.indices[best])), shape=like.shape)
        similar = top_per_row(sparse.csr_array(nearest @ self._clicks[most]), depth)
        return {"co_click": own, "similar": similar}

    @cached_property
    def _clicks(self) -> sparse.csr_array:
        return self._memory.click_counts()

    @cached_property
    def _spelling(self) -> tuple[TfidfVectorizer, sparse.csr_array, Ints]:
        """The most clicked queries as character n-grams, [n-grams, queries], and their rows."""
        texts = list(self._memory.queries)
        total = self._clicks.sum(axis=1)
        most = np.lexsort((np.arange(len(texts)), -total))[:KNOWN_QUERIES]
        spelling = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4))
        spelt = spelling.fit_transform([texts[row] for row in most])
        return spelling, sparse.csr_array(spelt.T), most

    def _neighbours(self, seeds: Ints) -> Ints:
        """Return the most frequent feed neighbours of each row's seeds."""
        text, at = np.nonzero(seeds >= 0)
        near = self._co_watched[seeds[text, at]]
        text, near = np.repeat(text, near.shape[1]), near.ravel()
        text, near = text[near >= 0], near[near >= 0]
        shape = (len(seeds), len(self._corpus))
        return top_per_row(
            sparse.csr_array((np.ones(len(near)), (text, near)), shape=shape), self._depth["co_watch"]
        )

    @cached_property
    def _co_watched(self) -> Ints:
        return self._memory.co_watched()

    @cached_property
    def _popular(self) -> Ints:
        return self._best_of_leaf(self.popularity, self._depth["popular"])

    @cached_property
    def _fresh(self) -> Ints:
        return self._best_of_leaf(self._corpus.uploaded_day, self._depth["fresh"])

    def _best_of_leaf(self, score: Floats, depth: int) -> Ints:
        live = np.flatnonzero(self.live)
        leaf = self._corpus.sense[live]
        best = best_per_group(leaf, live, score[live], depth)
        return pad_groups(leaf[best], self._senses, depth, live[best])

    def _draw_from_leaf(self, key: Ints, leaf: Ints, depth: int) -> Ints:
        """Return items of leaf categories [n, depth], the same for the same key; -1 where not online."""
        items, bounds = self._by_leaf
        size = np.where(leaf < 0, 0, np.diff(bounds)[leaf])[:, None]
        ticket = mix(key[:, None] + self._seed * 15_485_863, np.arange(depth)[None, :])
        draw = ticket % np.maximum(size, 1).astype(np.uint64)
        row = items[np.minimum(bounds[leaf][:, None] + draw.astype(np.int64), len(items) - 1)]
        return np.where((size > 0) & self.live[row], row, -1)

    @cached_property
    def _by_leaf(self) -> tuple[Ints, Ints]:
        """All items by leaf category, and where each category begins."""
        items = np.argsort(self._corpus.sense, kind="stable")
        return items, np.searchsorted(self._corpus.sense[items], np.arange(self._senses + 1))
