"""Batches of groups: what a step sees depends on the data, the settings, the seed and its number alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crops.config import TrainingConfig
from crops.training.data import TrainingData


@dataclass(frozen=True)
class Batch:
    """Q drawn groups with N drawn documents; numbers are rows of the TrainingData."""

    group: NDArray[np.int64]
    """[Q]"""
    query_index: NDArray[np.int64]
    """[N] row in `group` of each document's query."""
    pair: NDArray[np.int64]
    """[N] the drawn pairs."""
    known_index: NDArray[np.int64]
    """[K] row in `group` of each positive that was not drawn."""
    known_pair: NDArray[np.int64]
    """[K] those pairs."""


class GroupSampler:
    """Draws groups with weight searches^beta, and few documents of each (label, source) of a group.

    Clicks are rarer than what feeds and generation add, and filtered documents outnumber both: without the
    caps the many would drown the few.
    """

    def __init__(self, data: TrainingData, config: TrainingConfig, seed: int) -> None:
        """Keep what all steps share."""
        self._data, self._config, self._seed = data, config, seed
        self._rates = data.searches**config.beta
        self._rates /= self._rates.mean()
        _, self._stratum = np.unique(data.label * (data.source.max() + 1) + data.source, return_inverse=True)

    def draw(self, step: int) -> Batch:
        """Return the batch of a step."""
        random = np.random.default_rng([self._seed, step])
        group = self._draw_groups(random)
        sizes = np.diff(self._data.offsets)[group]
        row = np.repeat(np.arange(len(group)), sizes)
        pair = np.arange(len(row)) + np.repeat(self._data.offsets[group] - (np.cumsum(sizes) - sizes), sizes)
        drawn = self._draw_pairs(random, row, pair)
        known = ~drawn & (self._data.label[pair] >= self._config.positive_label)
        return Batch(group, row[drawn], pair[drawn], row[known], pair[known])

    def _draw_groups(self, random: np.random.Generator) -> NDArray[np.int64]:
        """Draw without replacement: the earliest of exponential times (Efraimidis & Spirakis 2006)."""
        size = min(self._config.batch_queries, self._data.groups)
        times = random.exponential(size=self._data.groups) / self._rates
        return np.sort(np.argpartition(times, size - 1)[:size])

    def _draw_pairs(
        self, random: np.random.Generator, row: NDArray[np.int64], pair: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Return which pairs are drawn.

        At most `docs_per_source` of a stratum, then at most `docs_per_query` of a group, one of each stratum
        in turn; the highest stratum has the first turn, so that no group loses its best label.
        """
        stratum = self._stratum[pair]
        times = random.exponential(size=len(pair)) / self._data.weight[pair]
        turn = _places(np.lexsort((times, stratum, row)), row, stratum)
        best = np.zeros(row[-1] + 1, dtype=np.int64)
        np.maximum.at(best, row, stratum)
        first = (turn == 0) & (stratum == best[row])
        capped = turn < self._config.docs_per_source
        place = _places(np.lexsort((times, turn - first, ~capped, row)), row)
        return capped & (place < self._config.docs_per_query)


def _places(order: NDArray[np.int64], *keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the 0-based place of each element among those of equal keys, in `order` (sorted by the keys)."""
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = np.logical_or.reduce([key[order][1:] != key[order][:-1] for key in keys])
    starts = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    places = np.empty_like(order)
    places[order] = np.arange(len(order)) - starts
    return places
