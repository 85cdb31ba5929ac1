"""The search cascade: recall routes -> pre-rank -> rank -> show.

Routes and ranker are arguments, so that an experiment can swap them. What a route does not find, no later
stage can show: with a dense route that is trained on this cascade's own clicks, that is the filter bubble.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

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
DEPTH = {"bm25": 60, "dense": 60, "co_click": 30, "popular": 30, "fresh": 15}
"""Candidates per route; a route is present when it is given (bm25, dense) or the platform's own."""
ROUTES = tuple(DEPTH)
"""Names of the bits of `search_impressions.routes`, lowest bit first."""
OWN_ROUTE_SCORE = 0.35
"""What the pre-ranker gives to candidates of routes that come without a text score, times their order."""
POPULARITY_WEIGHT = 0.35
"""Weight of popularity in the pre-ranker."""


@dataclass
class Memory:
    """What the platform has learned from its own logs; grows day by day."""

    plays: Ints
    """Plays per item, search and feed, [items]."""
    clicks: dict[str, dict[int, int]] = field(default_factory=dict)
    """Clicks per query text and item row."""
    sense_clicks: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Clicks per sense, [senses]."""

    def popularity(self) -> Floats:
        """Return log plays scaled to [0, 1], [items]."""
        log = np.log1p(self.plays)
        scaled: Floats = log / max(float(log.max()), 1.0)
        return scaled


@dataclass(frozen=True)
class Candidates:
    """Per distinct query, best pre-rank score first; arrays [queries, RANKED + FILTERED], -1 pads rows."""

    rows: Ints
    routes: Ints
    pre_score: Floats


class Recall:
    """Recall and pre-rank of one day: the same for everybody, so each distinct text is done once."""

    def __init__(
        self, corpus: Corpus, memory: Memory, retrievers: Mapping[str, Retriever], category: Ints, day: int
    ) -> None:
        """Fix what the day knows.

        Args:
            corpus: the catalogue; items uploaded after the day's start are not yet found.
            memory: what earlier days taught.
            retrievers: text routes by name (`bm25`, `dense`).
            category: category number per item, [items].
            day: day number.
        """
        self._live = corpus.uploaded_day <= day
        self._memory = memory
        self._retrievers = retrievers
        self._category = category
        self._popularity = memory.popularity()
        fresh = np.where(self._live, corpus.uploaded_day, -np.inf)
        self._popular = _top_by_category(self._popularity * self._live, category, DEPTH["popular"])
        self._fresh = _top_by_category(fresh, category, DEPTH["fresh"])

    def __call__(self, texts: Sequence[str]) -> Candidates:
        """Return the candidates of distinct query texts."""
        found = {name: route.search(texts, DEPTH[name]) for name, route in self._retrievers.items()}
        lists = [self._one(text, {name: (ids[i] - 1, scores[i]) for name, (ids, scores) in found.items()})
                 for i, text in enumerate(texts)]  # fmt: skip
        rows, routes, scores = (np.stack(part) for part in zip(*lists, strict=True))
        return Candidates(rows, routes, scores)

    def _one(self, text: str, found: dict[str, tuple[Ints, Floats]]) -> tuple[Ints, Ints, Floats]:
        parts = [
            (name, rows[rows >= 0], _scaled(scores[rows >= 0])) for name, (rows, scores) in found.items()
        ]
        for name, rows in self._own_routes(text, parts):
            parts.append((name, rows, OWN_ROUTE_SCORE * np.linspace(1, 0.5, len(rows))))
        rows = np.concatenate([rows for _, rows, _ in parts]).astype(np.int64)
        bits = np.concatenate([np.full(len(rows), 1 << ROUTES.index(name)) for name, rows, _ in parts])
        scores = np.concatenate([scores for _, _, scores in parts])
        return self._pre_rank(rows, bits, scores)

    def _own_routes(self, text: str, parts: list[tuple[str, Ints, Floats]]) -> list[tuple[str, Ints]]:
        clicked = self._memory.clicks.get(text, {})
        most_clicked = sorted(clicked, key=lambda row: (-clicked[row], row))[: DEPTH["co_click"]]
        own = [("co_click", np.array(most_clicked, dtype=np.int64))]
        heads = np.concatenate([rows[:20] for _, rows, _ in parts])
        if len(heads):
            category = np.bincount(self._category[heads]).argmax()
            own += [("popular", self._popular[category]), ("fresh", self._fresh[category])]
        return own

    def _pre_rank(self, rows: Ints, bits: Ints, scores: Floats) -> tuple[Ints, Ints, Floats]:
        keep = self._live[rows]
        distinct, place = np.unique(rows[keep], return_inverse=True)
        routes = np.zeros(len(distinct), dtype=np.int64)
        np.bitwise_or.at(routes, place, bits[keep])
        best = np.zeros(len(distinct))
        np.maximum.at(best, place, scores[keep])
        total = np.round(best + POPULARITY_WEIGHT * self._popularity[distinct], 6)
        order = np.lexsort((distinct, -total))[: RANKED + FILTERED]
        pad = RANKED + FILTERED - len(order)
        return (
            np.pad(distinct[order], (0, pad), constant_values=-1),
            np.pad(routes[order], (0, pad)),
            np.pad(total[order], (0, pad), constant_values=-1.0),
        )


def _scaled(scores: Floats) -> Floats:
    """Scale a route's scores by its best, so that routes can be compared."""
    return scores / max(float(scores.max()), 1e-9) if len(scores) else scores


def _top_by_category(score: Floats, category: Ints, depth: int) -> list[Ints]:
    order = np.lexsort((np.arange(len(score)), -score))
    return [order[category[order] == one][:depth] for one in range(int(category.max()) + 1)]


@dataclass(frozen=True)
class ProductionRanker:
    """A ranker of adjustable strength: what a large model that saw years of clicks would know of a pair.

    Its estimate of relevance is the query's plain meaning with noise; where the query is vague, it bets on
    the senses that were clicked so far. Popularity and the user's interests come on top.
    """

    corpus: Corpus
    users: Users
    sense_head: Ints
    popularity: Floats
    belief: Floats
    """Share of clicks per sense so far, [senses]."""
    meaning: Ints
    """(head, sense, need) per query of the day, [queries, 3]."""
    noise_seed: int
    noise: float = 0.25
    """Strength dial: standard deviation of the error of the relevance estimate."""
    popularity_weight: float = 0.35
    interest_weight: float = 0.30

    def score(self, query_index: Ints, user_index: Ints, candidates: Ints) -> Floats:
        """Return scores [n, c], rounded to 6 decimals; -inf for missing candidates."""
        rows = np.maximum(candidates, 0)
        sense = self.corpus.sense[rows]
        estimate = self._estimate(self.meaning[query_index], rows, sense)
        error = _hash_normal(query_index[:, None] * 1_000_003 + self.noise_seed, rows)
        interest = self.users.interest[user_index[:, None], sense]
        total = (
            estimate
            + self.noise * error
            + self.popularity_weight * self.popularity[rows]
            + self.interest_weight * interest
        )
        return np.where(candidates < 0, -np.inf, np.round(total, 6))

    def _estimate(self, meaning: Ints, rows: Ints, sense: Ints) -> Floats:
        head, query_sense, need = (meaning[:, i, None] for i in range(3))
        item_head = self.sense_head[sense]
        strongest = np.zeros(int(self.sense_head.max()) + 1)
        np.maximum.at(strongest, self.sense_head, self.belief)
        relative = self.belief[sense] / np.maximum(strongest[item_head], 1e-9)
        vague = (item_head == head) * (0.3 + 0.6 * relative)
        same_sense = sense == query_sense
        main = (self.corpus.need[rows] == need) * np.where(self.corpus.partial[rows], 0.67, 1.0)
        exact = np.maximum(main, np.maximum(0.67 * (self.corpus.second[rows] == need), 0.33 * same_sense))
        estimate: Floats = np.where(need >= 0, exact, np.where(query_sense >= 0, 0.8 * same_sense, vague))
        return estimate


def _hash_normal(left: Ints, right: Ints) -> Floats:
    """Return one fixed standard normal per pair of integers (splitmix64, then Irwin-Hall)."""
    with np.errstate(over="ignore"):
        x = left.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + right.astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    parts = [((x >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.float64) / 65535 for i in range(4)]
    normal: Floats = (sum(parts) - 2.0) * np.sqrt(3.0)
    return normal
