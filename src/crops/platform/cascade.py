"""The search cascade: recall routes -> pre-rank -> rank -> show.

Routes and ranker are arguments, so that an experiment can swap them. What a route does not find, no later
stage can show: with a dense route that is trained on this cascade's own clicks, that is the filter bubble.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from crops.platform.corpus import Corpus
from crops.platform.users import Users
from crops.platform.world import Floats, Ints
from crops.protocols import Retriever

PAGE = 10
"""Results shown per page."""
RANKED = 40
"""Candidates that pass the pre-ranker: the ranked set."""
FILTERED = 20
"""Candidates behind them that the log keeps as `filtered`."""
DEPTH = {"bm25": 60, "dense": 40, "co_click": 30, "co_watch": 60, "popular": 30, "fresh": 15}
"""Candidates per route; a route is present when it is given (bm25, dense) or the platform's own."""
ROUTES = tuple(DEPTH)
"""Names of the bits of `search_impressions.routes`, lowest bit first."""
SEEDS = 5
"""Best candidates of each text route whose feed neighbours the co-watch route brings."""
NEIGHBOURS = 20
"""Items kept per item in the co-watch table."""
PRE_RANK_NOISE, RANK_NOISE = 0.45, 0.25
"""Strength dials: standard deviation of the error of the two rankers' relevance estimates."""
POPULARITY_WEIGHT, INTEREST_WEIGHT = 0.35, 0.30
"""Weights of popularity (both rankers) and of the user's interests (ranker) beside relevance in [0, 1]."""


@dataclass
class Memory:
    """What the platform has learned from its own logs; grows day by day."""

    plays: Ints
    """Plays per item, search and feed, [items]."""
    clicks: dict[str, dict[int, int]] = field(default_factory=dict)
    """Clicks per query text and item row."""
    sense_clicks: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Clicks per sense, [senses]."""
    watched: list[tuple[Ints, Ints]] = field(default_factory=list)
    """Per day, user and item rows of feed videos that were watched at least half."""

    def popularity(self) -> Floats:
        """Return log plays scaled to [0, 1], [items]."""
        log = np.log1p(self.plays)
        scaled: Floats = log / max(float(log.max()), 1.0)
        return scaled

    def co_watched(self) -> Ints:
        """Return the items most often watched by the same people, [items, NEIGHBOURS], -1 pads rows."""
        items = len(self.plays)
        table = np.full((items, NEIGHBOURS), -1, dtype=np.int64)
        if not self.watched:
            return table
        user, item = (np.concatenate(part) for part in zip(*self.watched, strict=True))
        watched = sparse.csr_array((np.ones(len(user)), (user, item)), shape=(int(user.max()) + 1, items))
        watched.data[:] = 1.0
        common = sparse.csr_array(watched.T @ watched)
        common.setdiag(0)
        common.eliminate_zeros()
        for row in np.flatnonzero(np.diff(common.indptr)):
            part = slice(common.indptr[row], common.indptr[row + 1])
            order = np.lexsort((common.indices[part], -common.data[part]))[:NEIGHBOURS]
            table[row, : len(order)] = common.indices[part][order]
        return table


@dataclass(frozen=True)
class Candidates:
    """Per distinct query, best pre-rank score first; arrays [queries, RANKED + FILTERED], -1 pads rows."""

    rows: Ints
    routes: Ints
    pre_score: Floats


@dataclass(frozen=True)
class RelevanceModel:
    """What a production model that saw years of clicks would know of a query and an item.

    Its estimate is the plain meaning of the query, with an error that is fixed per pair. Where the query is
    vague, it bets on the senses that were clicked so far.
    """

    corpus: Corpus
    sense_head: Ints
    belief: Floats
    """Share of clicks per sense so far, [senses]."""
    seed: int

    def __call__(self, meaning: Ints, rows: Ints, noise: float) -> Floats:
        """Return estimates in about [0, 1] plus noise, for meanings [n, 3] and item rows [n, c]."""
        return self._plain(meaning, rows) + noise * _hash_normal(meaning, rows, self.seed)

    def _plain(self, meaning: Ints, rows: Ints) -> Floats:
        head, query_sense, need = (meaning[:, i, None] for i in range(3))
        sense = self.corpus.sense[rows]
        item_head = self.sense_head[sense]
        strongest = np.zeros(int(self.sense_head.max()) + 1)
        np.maximum.at(strongest, self.sense_head, self.belief)
        relative = self.belief[sense] / np.maximum(strongest[item_head], 1e-9)
        vague = (item_head == head) * (0.3 + 0.6 * relative)
        same_sense = sense == query_sense
        main = (self.corpus.need[rows] == need) * np.where(self.corpus.partial[rows], 0.67, 1.0)
        exact = np.maximum(main, np.maximum(0.67 * (self.corpus.second[rows] == need), 0.33 * same_sense))
        plain: Floats = np.where(need >= 0, exact, np.where(query_sense >= 0, 0.8 * same_sense, vague))
        return plain


class Recall:
    """Recall and pre-rank of one day: the same for everybody, so each distinct text is done once."""

    def __init__(
        self,
        corpus: Corpus,
        memory: Memory,
        retrievers: Mapping[str, Retriever],
        model: RelevanceModel,
        category: Ints,
        day: int,
    ) -> None:
        """Fix what the day knows.

        Args:
            corpus: the catalogue; items uploaded after the day's start are not yet found.
            memory: what earlier days taught.
            retrievers: text routes by name (`bm25`, `dense`).
            model: the relevance model that the pre-ranker reads coarsely.
            category: category number per item, [items].
            day: day number.
        """
        self._live = corpus.uploaded_day <= day
        self._memory = memory
        self._retrievers = retrievers
        self._model = model
        self._category = category
        self._popularity = memory.popularity()
        self._co_watched = memory.co_watched()
        fresh = np.where(self._live, corpus.uploaded_day, -np.inf)
        self._popular = _top_by_category(self._popularity * self._live, category, DEPTH["popular"])
        self._fresh = _top_by_category(fresh, category, DEPTH["fresh"])

    def __call__(self, texts: Sequence[str], meaning: Ints) -> Candidates:
        """Return the candidates of distinct query texts with their meanings [queries, 3]."""
        found = {name: route.search(texts, DEPTH[name])[0] - 1 for name, route in self._retrievers.items()}
        lists = []
        for i, text in enumerate(texts):
            parts = {name: rows[i][rows[i] >= 0] for name, rows in found.items()}
            lists.append(self._pre_rank(meaning[i : i + 1], {**parts, **self._own_routes(text, parts)}))
        rows, routes, scores = (np.stack(part) for part in zip(*lists, strict=True))
        return Candidates(rows, routes, scores)

    def _own_routes(self, text: str, parts: Mapping[str, Ints]) -> dict[str, Ints]:
        clicked = self._memory.clicks.get(text, {})
        most_clicked = sorted(clicked, key=lambda row: (-clicked[row], row))[: DEPTH["co_click"]]
        own = {"co_click": np.array(most_clicked, dtype=np.int64)}
        best = np.concatenate([rows[:20] for rows in parts.values()])
        if len(best):
            category = np.bincount(self._category[best]).argmax()
            seeds = np.concatenate([rows[:SEEDS] for rows in parts.values()])
            own |= {
                "co_watch": _most_common(self._co_watched[seeds], DEPTH["co_watch"]),
                "popular": self._popular[category],
                "fresh": self._fresh[category],
            }
        return own

    def _pre_rank(self, meaning: Ints, parts: Mapping[str, Ints]) -> tuple[Ints, Ints, Floats]:
        rows = np.concatenate(list(parts.values())).astype(np.int64)
        bits = np.concatenate([np.full(len(part), 1 << ROUTES.index(name)) for name, part in parts.items()])
        keep = self._live[rows]
        distinct, place = np.unique(rows[keep], return_inverse=True)
        routes = np.zeros(len(distinct), dtype=np.int64)
        np.bitwise_or.at(routes, place, bits[keep])
        estimate = self._model(meaning, distinct[None, :], PRE_RANK_NOISE)[0]
        total = np.round(estimate + POPULARITY_WEIGHT * self._popularity[distinct], 6)
        order = np.lexsort((distinct, -total))[: RANKED + FILTERED]
        pad = RANKED + FILTERED - len(order)
        return (
            np.pad(distinct[order], (0, pad), constant_values=-1),
            np.pad(routes[order], (0, pad)),
            np.pad(total[order], (0, pad), constant_values=-1.0),
        )


def _most_common(rows: Ints, depth: int) -> Ints:
    """Return the most frequent rows, ties by number; -1 does not count."""
    distinct, count = np.unique(rows[rows >= 0], return_counts=True)
    return distinct[np.lexsort((distinct, -count))[:depth]]


def _top_by_category(score: Floats, category: Ints, depth: int) -> list[Ints]:
    order = np.lexsort((np.arange(len(score)), -score))
    return [order[category[order] == one][:depth] for one in range(int(category.max()) + 1)]


@dataclass(frozen=True)
class ProductionRanker:
    """The ranker: a sharp relevance estimate, popularity, and what interests the user."""

    model: RelevanceModel
    users: Users
    popularity: Floats
    meaning: Ints
    """(head, sense, need) per query of the day, [queries, 3]."""

    def score(self, query_index: Ints, user_index: Ints, candidates: Ints) -> Floats:
        """Return scores [n, c], rounded to 6 decimals; -inf for missing candidates."""
        rows = np.maximum(candidates, 0)
        total = (
            self.model(self.meaning[query_index], rows, RANK_NOISE)
            + POPULARITY_WEIGHT * self.popularity[rows]
            + INTEREST_WEIGHT * self.users.interest[user_index[:, None], self.model.corpus.sense[rows]]
        )
        return np.where(candidates < 0, -np.inf, np.round(total, 6))


def _hash_normal(meaning: Ints, rows: Ints, seed: int) -> Floats:
    """Return one fixed standard normal per meaning [n, 3] and row [n, c] (splitmix64, then Irwin-Hall)."""
    left = meaning @ np.array([1, 1_009, 1_000_003]) + seed * 7_919
    with np.errstate(over="ignore"):
        x = left.astype(np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15) + rows.astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    parts = [((x >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.float64) / 65535 for i in range(4)]
    normal: Floats = (sum(parts) - 2.0) * np.sqrt(3.0)
    return normal
