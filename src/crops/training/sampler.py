"""Batches of groups: what a step sees depends on the data, the settings, the seed and its number alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crops.config import TrainingConfig
from crops.training.groups import Groups, GroupStore

ROUND_BATCHES = 64
"""Batches between two shuffles, at least, of data that fits the buffer whole."""


class Batch(NamedTuple):
    """Q queries with N drawn documents, and the K positives that were not drawn; texts are rows of a pool."""

    query_id: NDArray[np.int64]
    """[Q]"""
    query_text: NDArray[np.int64]
    """[Q]"""
    query_index: NDArray[np.int64]
    """[N] which of the Q is each document's query."""
    doc_id: NDArray[np.int64]
    """[N]"""
    doc_text: NDArray[np.int64]
    """[N]"""
    label: NDArray[np.int64]
    """[N]"""
    known_index: NDArray[np.int64]
    """[K] which of the Q is each left-out positive's query."""
    known_id: NDArray[np.int64]
    """[K]"""


class _Round(NamedTuple):
    """Batches drawn from one buffer: `first` is the step it begins with."""

    first: int
    batches: int
    number: int
    row_groups: NDArray[np.int64]


class GroupSampler:
    """Draws each group searches^beta times as often as one of a single search, and few documents of each.

    A pass puts the row groups of the data in random order and cuts them into buffers of about `buffer_groups`
    groups. A buffer gives its share of batches by stride scheduling (Waldspurger & Weihl 1995): a group is
    due at intervals of searches^-beta from a random start, and a batch takes the groups that are due first.
    So a group is in a batch at most once, and comes within one of its exact number of times in a pass (at
    most once per batch of its buffer).

    Clicks are rarer than what feeds and generation add, and filtered documents outnumber both: without the
    caps per (label, source) the many would drown the few.
    """

    def __init__(self, source: GroupStore, config: TrainingConfig, seed: int) -> None:
        """Keep what all steps share."""
        self._source, self._config, self._seed = source, config, seed
        self._size = min(config.batch_queries, source.groups)
        self._rounds: list[_Round] = []
        self._pass = -1
        self._buffer: _Buffer | None = None

    def draw(self, step: int) -> Batch:
        """Return the batch of a step; steps in order cost least.

        Raises:
            CropsError: a shard of the data is damaged.
        """
        turn = self._find_round(step)
        if self._buffer is None or self._buffer.turn != turn.first or self._buffer.drawn > step - turn.first:
            self._buffer = _Buffer(
                turn.first, self._source.read(np.sort(turn.row_groups)), self._config.beta, self._seed
            )
        group = self._buffer.batch(step - turn.first, self._size)
        groups = self._buffer.groups
        random = np.random.default_rng([self._seed, step])
        sizes = np.diff(groups.offsets)[group]
        row = np.repeat(np.arange(len(group)), sizes)
        pair = np.arange(len(row)) + np.repeat(groups.offsets[group] - (np.cumsum(sizes) - sizes), sizes)
        drawn = self._draw_pairs(random, groups, row, pair)
        known = ~drawn & (groups.label[pair] >= self._config.positive_label)
        taken = pair[drawn]
        return Batch(
            groups.query_id[group],
            groups.query_text[group],
            row[drawn],
            groups.doc_id[taken],
            groups.doc_text[taken],
            groups.label[taken],
            row[known],
            groups.doc_id[pair[known]],
        )

    def _find_round(self, step: int) -> _Round:
        """Return the round of a step; passes are laid out one after the other."""
        if not self._rounds or step < self._rounds[0].first:
            self._pass, self._rounds = 0, self._lay_out(0, 0)
        while step >= (end := self._rounds[-1].first + self._rounds[-1].batches):
            self._pass += 1
            self._rounds = self._lay_out(self._pass, end)
        starts = [turn.first for turn in self._rounds]
        return self._rounds[int(np.searchsorted(starts, step, side="right")) - 1]

    def _lay_out(self, number: int, first: int) -> list[_Round]:
        """Return the rounds of a pass: the row groups in random order, cut where a buffer is full."""
        order = np.random.default_rng([self._seed, number, 1]).permutation(len(self._source.row_groups))
        filled = np.cumsum(self._source.row_groups[order])
        buffers = max(1, round(filled[-1] / self._config.buffer_groups))
        cuts = np.searchsorted(filled, filled[-1] * np.arange(1, buffers) / buffers)
        draws_per_rate = self._source.groups / self._source.row_searches.sum()
        rounds = []
        for chosen in np.split(order, np.unique(cuts)):
            if len(chosen) == 0:
                continue
            rate = self._source.row_searches[chosen].sum()
            batches = max(1, round(rate * draws_per_rate / self._size))
            batches = max(batches, ROUND_BATCHES) if buffers == 1 else batches
            rounds.append(_Round(first, batches, number, chosen))
            first += batches
        return rounds

    def _draw_pairs(
        self,
        random: np.random.Generator,
        groups: Groups,
        row: NDArray[np.int64],
        pair: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Return which pairs are drawn.

        At most `docs_per_source` of a stratum, then at most `docs_per_query` of a group, one of each stratum
        in turn; the highest stratum has the first turn, so that no group loses its best label.
        """
        stratum = groups.label[pair] * (1 << 16) + groups.source[pair]
        times = random.exponential(size=len(pair)) / groups.weight[pair]
        turn = _places(np.lexsort((times, stratum, row)), row, stratum)
        best = np.zeros(row[-1] + 1, dtype=np.int64)
        np.maximum.at(best, row, stratum)
        first = (turn == 0) & (stratum == best[row])
        capped = turn < self._config.docs_per_source
        place = _places(np.lexsort((times, turn - first, ~capped, row)), row)
        return capped & (place < self._config.docs_per_query)


class _Buffer:
    """Groups in memory and when each of them is due."""

    def __init__(self, turn: int, groups: Groups, beta: float, seed: int) -> None:
        self.turn, self.groups, self.drawn = turn, groups, 0
        self._interval = groups.searches**-beta
        self._due = np.random.default_rng([seed, turn, 2]).random(len(groups)) * self._interval

    def batch(self, number: int, size: int) -> NDArray[np.int64]:
        """Return the rows of the `number`-th batch, ascending; it must not have been drawn before."""
        while True:
            chosen = np.argpartition(self._due, min(size, len(self._due)) - 1)[:size]
            self._due[chosen] += self._interval[chosen]
            self.drawn += 1
            if self.drawn > number:
                return np.sort(chosen)


def _places(order: NDArray[np.int64], *keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the 0-based place of each element among those of equal keys, in `order` (sorted by the keys)."""
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = np.logical_or.reduce([key[order][1:] != key[order][:-1] for key in keys])
    starts = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    places = np.empty_like(order)
    places[order] = np.arange(len(order)) - starts
    return places
