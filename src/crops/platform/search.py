"""The search cascade: recall routes -> pre-rank -> rank -> show.

With a dense route that is trained on this cascade's own clicks, what is not found cannot be clicked, and what
is not clicked will not be found: that is the filter bubble.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from scipy import sparse

from crops.platform.learned import Memory, best_per_group, pad_groups, top_per_row
from crops.platform.people import Clicks, Users
from crops.platform.world import Corpus, Floats, Ints, World, mix, normal
from crops.protocols import Retriever
from crops.schema import SEARCH_IMPRESSIONS, STAGES
from crops.text import normalise_query

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

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
    """Return what is found for distinct texts, and their leaf categories [queries].

    `meaning` is the (head, sense, need) of each, [queries, 3].
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

    `shared` is what is found for everybody, per search [n, RANKED + FILTERED]; the others are the meaning
    [n, 3] and the leaf category [n] of each search's query, and who searches [n].
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


# The dial of the filter bubble: how much a list follows popularity and its own past, how much it explores.
# Its effect is read off the logs alone (`crops platform-report`): concentration of exposure, senses shown per
# ambiguous query, share of relevant items ever shown, share of clicks on items that were never shown before.


@dataclass(frozen=True)
class Bubble:
    """One position of the dial."""

    popularity: float
    """Weight of popularity in [0, 1] beside relevance in [0, 1], in both rankers."""
    own_past: int
    """Candidates of each route that learned from the own clicks: dense, sparse, co-click, similar."""
    beyond: float
    """Factor on the routes that need no words and no clicks on this text: co-watch, fresh, personal."""
    explore: int
    """Candidates per query that are drawn at random from the query's leaf category, again each day."""
    boost: float
    """Chance of a ranked candidate to be lifted to the top of a list, whatever its score: epsilon-greedy."""


BUBBLES = {
    "weak": Bubble(popularity=0.10, own_past=10, beyond=2.0, explore=30, boost=0.02),
    "default": Bubble(popularity=0.35, own_past=20, beyond=1.0, explore=15, boost=0.005),
    "strong": Bubble(popularity=1.00, own_past=60, beyond=0.1, explore=0, boost=0.0),
}


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


# The recall routes of the search cascade. Text routes (`bm25`, `dense`, `sparse`) are arguments: an
# experiment swaps them. The others are the platform's own and follow from its memory. What no route finds, no
# later stage can show.


ROUTES = (
    "bm25", "dense", "sparse", "co_click", "similar", "co_watch", "popular", "fresh",
    "explore", "personal",
)  # fmt: skip
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
        """Fix what the day knows; items that were uploaded after its start are not found yet."""
        self.live = corpus.uploaded_day <= day
        self.popularity = memory.popularity()
        self._corpus, self._memory, self._retrievers = corpus, memory, retrievers
        self._senses, self._day, self._seed = senses, day, seed
        beyond = {name: round(bubble.beyond * DEPTH[name]) for name in BEYOND}
        own_past = dict.fromkeys(OWN_PAST, bubble.own_past)
        self._depth = {**DEPTH, **beyond, **own_past, "explore": bubble.explore}

    def __call__(self, texts: Sequence[str]) -> tuple[dict[str, Ints], Ints]:
        """Return item rows by route, each [texts, depth], and the leaf categories [texts] of distinct texts.

        -1 stands where a route found less, and where no words led anywhere.
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
        from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import: not for --help

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


# From what was listed and clicked to `search_impressions` and the catalogue's counters.


CLICK_QUERIES = 3
"""Queries kept per item in `click_query`."""


def log_searches(
    search_id: Ints,
    user: Ints,
    text: Sequence[str],
    at_us: Ints,
    page: Ints,
    listed: Candidates,
    clicks: Clicks,
    duration_ms: Ints,
) -> pa.Table:
    """Return one impression per document that n searches considered; earlier pages were logged before.

    Args:
        at_us: when, microseconds UTC, [n].
        page: page number from 0, [n].
        listed: candidates in the order of the ranked list, [n, c].
        clicks: what people did with the page, [n, PAGE].
        duration_ms: length of every item of the catalogue, [items].
    """
    position = np.arange(listed.rows.shape[1])[None, :] - PAGE * page[:, None]
    event, at = np.nonzero((listed.rows >= 0) & (position >= 0))
    place = position[event, at]
    exposed = (place < PAGE) & (at < RANKED)
    slot = np.where(exposed, place, 0)
    clicked = exposed & clicks.clicked[event, slot]
    rows = listed.rows[event, at]
    columns = {
        "user_id": user[event] + 1,
        "search_id": search_id[event],
        "query": pa.array(text, pa.string()).take(event),
        "searched_at": at_us[event],
        "item_id": rows + 1,
        "stage": pa.array(STAGES).take(np.where(exposed, 0, np.where(at < RANKED, 1, 2))),
        "rank": pa.array(place + 1, pa.int32(), mask=~exposed),
        "pre_score": listed.pre_score[event, at],
        "routes": listed.routes[event, at],
        "arm": pa.nulls(len(event), pa.string()),
        "clicked": clicked,
        "liked": clicked & clicks.liked[event, slot],
        "play_ms": pa.array(clicks.play_ms[event, slot], pa.int64(), mask=~clicked),
        "duration_ms": duration_ms[rows],
    }
    schema = SEARCH_IMPRESSIONS.arrow(own_ids=False)
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, schema.field(n).type) for n, c in columns.items()]
    return pa.table(arrays, schema=schema)


def click_queries(memory: Memory) -> list[str | None]:
    """Return the queries with most clicks per item, '|'-separated, None where there is none; ties by text."""
    names = sorted({normalise_query(text) for text in memory.queries})
    place = {name: row for row, name in enumerate(names)}
    normal = np.array([place[normalise_query(text)] for text in memory.queries], dtype=np.int64)
    counts = memory.click_counts().tocoo()
    pairs, inverse = np.unique(
        np.stack([counts.coords[1], normal[counts.coords[0]]], axis=1), axis=0, return_inverse=True
    )
    clicks = np.bincount(inverse, weights=counts.data)
    best = best_per_group(pairs[:, 0], pairs[:, 1], clicks, CLICK_QUERIES)
    result: list[list[str]] = [[] for _ in memory.plays]
    for item, query in pairs[best].tolist():
        result[item].append(names[query])
    return ["|".join(found) or None for found in result]


def counters(memory: Memory, rng: np.random.Generator) -> dict[str, Ints]:
    """Return the item counters as of now, from plays."""
    plays = memory.plays
    shares: dict[str, Floats | float] = {"like_cnt": 0.06, "long_view_cnt": 0.35, "download_cnt": 0.01}
    return {"play_cnt": plays.copy(), **{name: rng.binomial(plays, share) for name, share in shares.items()}}
