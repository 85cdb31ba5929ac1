"""The day's queries with what is found for them, when arms search with different routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from crops.platform import Platform
from crops.platform.cascade import Candidates, ProductionRanker, RelevanceModel, recall, recall_for_users
from crops.platform.day import Searches
from crops.platform.routes import Routes
from crops.platform.speech import Speech
from crops.platform.world import Ints
from crops.protocols import Ranker, Retriever


@dataclass(frozen=True)
class Served:
    """Which text routes serve whom."""

    retrievers: tuple[Mapping[str, Retriever], ...]
    """Text routes by name (`bm25`, `dense`, `sparse`), one mapping per way of being served."""
    way: Ints
    """The way of each user, [users]."""


def same_for_all(retrievers: Mapping[str, Retriever], users: int) -> Served:
    """Return one way for everybody."""
    return Served((retrievers,), np.zeros(users, dtype=np.int64))


@dataclass
class Board:
    """Looks each distinct text up once per way; all that is not a text route is the same in every way.

    It is the platform's own board but for the ways: what a text means is decided by all who type it, and the
    platform's clicks, popularity and rankers know nothing of arms.
    """

    platform: Platform
    day: int
    served: Served
    speech: Speech
    _row: dict[tuple[int, str], int] = field(default_factory=dict)
    _meant: dict[str, Ints] = field(default_factory=dict)
    _found: list[Candidates] = field(default_factory=list)

    def __post_init__(self) -> None:
        platform = self.platform
        intents = platform.world.intents
        clicks = platform.memory.sense_clicks + 20 * intents.sense_demand
        self._model = RelevanceModel(
            platform.world, clicks / clicks.sum(), platform.ranker_noise, platform.seed
        )
        self._current: dict[str, Retriever] = {}
        self.routes = Routes(
            platform.world.corpus,
            platform.memory,
            self._current,
            platform.bubble,
            len(intents.sense_head),
            self.day,
            platform.seed,
        )
        self._meaning: Ints = np.empty((0, 3), dtype=np.int64)
        self._leaf: Ints = np.empty(0, dtype=np.int64)

    def look_up(self, now: Searches, user: Ints) -> tuple[Ints, Candidates]:
        """Return the query number of each search [n], and what is found for the searcher."""
        # Of those who type the same, the one who says least decides what it means.
        vaguest_last = np.argsort(-self.speech.level(now.phrase), kind="stable").tolist()
        unheard = {now.text[row]: row for row in vaguest_last if now.text[row] not in self._meant}
        if unheard:
            meaning = self.speech.meanings(list(unheard), now.phrase[list(unheard.values())])
            self._meant.update(zip(unheard, meaning, strict=True))
        keys = list(zip(self.served.way[user].tolist(), now.text, strict=True))
        fresh = dict.fromkeys(keys[row] for row in vaguest_last if keys[row] not in self._row)
        for way in sorted({way for way, _ in fresh}):
            self._recall(way, [text for one, text in fresh if one == way])
        query = np.array([self._row[key] for key in keys])
        (all_,) = self._found
        shared = Candidates(all_.rows[query], all_.routes[query], all_.pre_score[query])
        bubble, meaning, leaf = self.platform.bubble, self._meaning[query], self._leaf[query]
        return query, recall_for_users(self.routes, self._model, bubble, shared, meaning, leaf, user)

    def ranker(self) -> Ranker:
        """Return the ranker of the queries so far."""
        platform = self.platform
        return ProductionRanker(
            self._model, platform.users, self.routes.popularity, platform.bubble, self._meaning
        )

    def _recall(self, way: int, texts: list[str]) -> None:
        """Look texts up by the routes of a way: the other routes are shared, their tables built once."""
        self._current.clear()
        self._current.update(self.served.retrievers[way])
        self._row.update({(way, text): len(self._row) + i for i, text in enumerate(texts)})
        meaning = np.stack([self._meant[text] for text in texts])
        added, leaf = recall(self.routes, self._model, self.platform.bubble, texts, meaning)
        self._found = [Candidates.join([*self._found, added])]
        self._meaning = np.concatenate([self._meaning, meaning])
        self._leaf = np.concatenate([self._leaf, leaf])
