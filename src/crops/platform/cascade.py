"""The search cascade: recall routes -> pre-rank -> rank -> show.

With a dense route that is trained on this cascade's own clicks, what is not found cannot be clicked, and what
is not clicked will not be found: that is the filter bubble.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crops.platform.bubble import Bubble
from crops.platform.memory import best_per_group, pad_groups
from crops.platform.noise import normal
from crops.platform.routes import ROUTES, TEXT_MATCH, Routes
from crops.platform.users import Users
from crops.platform.world import Floats, Ints, World

PAGE = 10
"""Results shown per page."""
RANKED = 40
"""Candidates that pass the pre-ranker: the ranked set."""
FILTERED = 20
"""Candidates behind them that the log keeps as `filtered`."""
PRE_RANK_NOISE = 1.8
"""Error of the pre-ranker's relevance estimate, in units of the ranker's."""
INTEREST_WEIGHT, TASTE_WEIGHT, MATCH_WEIGHT = 0.30, 0.15, 0.08
"""Weights beside relevance in [0, 1]: the user's interests, the user's taste for the author (a standard
normal per pair), and visible words of the query (both rankers)."""
_BLOCK = 4096
"""Texts recalled at a time."""


@dataclass(frozen=True)
class Candidates:
    """Per distinct query, best pre-rank score first; arrays [queries, RANKED + FILTERED], -1 pads rows."""

    rows: Ints
    routes: Ints
    pre_score: Floats

    @classmethod
    def join(cls, blocks: Sequence[Candidates]) -> Candidates:
        """Stack the candidates of several blocks of queries."""
        fields = ("rows", "routes", "pre_score")
        return cls(*(np.concatenate([getattr(block, name) for block in blocks]) for name in fields))


@dataclass(frozen=True)
class RelevanceModel:
    """What a production model that saw years of clicks would know of a query and an item.

    Its estimate is the plain meaning of the query, with an error that is fixed per pair. Where the query is
    vague, it bets on the senses that were clicked so far.
    """

    world: World
    belief: Floats
    """Share of clicks per sense so far, [senses]."""
    noise: float
    """Standard deviation of the ranker's error: the strength dial of the production system."""
    seed: int

    def __call__(self, meaning: Ints, rows: Ints, noise_factor: float = 1.0) -> Floats:
        """Return estimates in about [0, 1] plus noise.

        Args:
            meaning: (head, sense, need) that the query says, [..., 3]; -1 where it does not say.
            rows: item rows; broadcasts with `meaning[..., 0]`.
            noise_factor: multiplies the error.
        """
        key = meaning @ np.array([1, 1_009, 1_000_003]) + self.seed * 7_919
        return self._plain(meaning, rows) + noise_factor * self.noise * normal(key, rows)

    def _plain(self, meaning: Ints, rows: Ints) -> Floats:
        head, query_sense, need = (meaning[..., i] for i in range(3))
        intents, sense = self.world.intents, self.world.corpus.sense[rows]
        item_head = intents.sense_head[sense]
        strongest = np.zeros(int(intents.sense_head.max()) + 1)
        np.maximum.at(strongest, intents.sense_head, self.belief)
        relative = self.belief[sense] / np.maximum(strongest[item_head], 1e-9)
        vague = (item_head == head) * (0.3 + 0.6 * relative)
        exact = self.world.relevance(np.maximum(need, 0), rows) / 3
        plain: Floats = np.where(
            need >= 0, exact, np.where(query_sense >= 0, 0.8 * (sense == query_sense), vague)
        )
        return plain


def recall(
    routes: Routes, model: RelevanceModel, bubble: Bubble, texts: Sequence[str], meaning: Ints
) -> tuple[Candidates, Ints]:
    """Return what is found for distinct query texts, and their leaf categories [queries].

    Args:
        routes: the routes of the day.
        model: the relevance model.
        bubble: weight of popularity.
        texts: the queries.
        meaning: (head, sense, need) of each, [queries, 3].
    """
    blocks, leaves = [], []
    for start in range(0, len(texts), _BLOCK):
        part = slice(start, start + _BLOCK)
        found, leaf = routes(texts[part])
        blocks.append(_pre_rank(routes, model, bubble, found, meaning[part]))
        leaves.append(leaf)
    return Candidates.join(blocks), np.concatenate(leaves)


def recall_for_users(
    routes: Routes,
    model: RelevanceModel,
    bubble: Bubble,
    shared: Candidates,
    meaning: Ints,
    leaf: Ints,
    user: Ints,
) -> Candidates:
    """Add what each searcher's own history points to, and keep the best of both.

    Args:
        routes: the routes of the day.
        model: the relevance model.
        bubble: weight of popularity.
        shared: what is found for everybody, per search [n, RANKED + FILTERED].
        meaning: of each search's query, [n, 3].
        leaf: leaf category of each search's query, [n].
        user: who searches, [n].
    """
    own = np.sort(routes.personal(user, leaf), axis=1)
    bit = 1 << ROUTES.index("personal")
    same = own[:, :, None] == shared.rows[:, None, :]
    repeated = np.pad(own[:, 1:] == own[:, :-1], ((0, 0), (1, 0))) | same.any(axis=2)
    own = np.where(repeated, -1, own)
    estimate = model(meaning[:, None, :], np.maximum(own, 0), PRE_RANK_NOISE)
    score = np.round(estimate + bubble.popularity * routes.popularity[own], 6)
    rows = np.concatenate([shared.rows, own], axis=1)
    masks = np.concatenate([shared.routes | bit * same.any(axis=1), np.full(own.shape, bit)], axis=1)
    scores = np.concatenate([shared.pre_score, score], axis=1)
    rank = np.argsort(np.where(rows < 0, np.inf, -scores), axis=1, kind="stable")[:, : RANKED + FILTERED]
    return Candidates(*(np.take_along_axis(table, rank, 1) for table in (rows, masks, scores)))


def _pre_rank(
    routes: Routes, model: RelevanceModel, bubble: Bubble, found: dict[str, Ints], meaning: Ints
) -> Candidates:
    """Merge what the routes found and keep the best by a coarse estimate and popularity."""
    table = np.concatenate(list(found.values()), axis=1)
    bits = np.concatenate([np.full(rows.shape[1], 1 << ROUTES.index(name)) for name, rows in found.items()])
    query, at = np.nonzero((table >= 0) & routes.live[table])
    pair = query * len(routes.live) + table[query, at]
    order = np.argsort(pair, kind="stable")
    distinct, first = np.unique(pair[order], return_index=True)
    mask = np.bitwise_or.reduceat(bits[at][order], first) if len(first) else np.zeros(0, np.int64)
    query, row = np.divmod(distinct, len(routes.live))
    estimate = model(meaning[query], row, PRE_RANK_NOISE)
    matches = MATCH_WEIGHT * ((mask & TEXT_MATCH) > 0)
    score = np.round(estimate + matches + bubble.popularity * routes.popularity[row], 6)
    best = best_per_group(query, row, score, RANKED + FILTERED)
    shape = (query[best], len(table), RANKED + FILTERED)
    return Candidates(
        pad_groups(*shape, row[best]), pad_groups(*shape, mask[best]), pad_groups(*shape, score[best])
    )


@dataclass(frozen=True)
class ProductionRanker:
    """The ranker: a sharper relevance estimate, popularity, and what interests the user."""

    model: RelevanceModel
    users: Users
    popularity: Floats
    bubble: Bubble
    meaning: Ints
    """(head, sense, need) per query of the day, [queries, 3]."""

    def score(self, query_index: Ints, user_index: Ints, candidates: Ints, routes: Ints) -> Floats:
        """Return scores [n, c], rounded to 6 decimals; -inf for missing candidates."""
        rows = np.maximum(candidates, 0)
        corpus = self.model.world.corpus
        total = (
            self.model(self.meaning[query_index][:, None, :], rows)
            + self.bubble.popularity * self.popularity[rows]
            + INTEREST_WEIGHT * self.users.interest[user_index[:, None], corpus.sense[rows]]
            + TASTE_WEIGHT * normal(user_index[:, None] + self.model.seed * 104_729, corpus.author[rows])
            + MATCH_WEIGHT * ((routes & TEXT_MATCH) > 0)
        )
        return np.where(candidates < 0, -np.inf, np.round(total, 6))
