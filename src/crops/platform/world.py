"""What a world is: intents, a catalogue, and the truth about which item answers which need.

`World` is the only thing that the rest of the platform sees of it. `relevance` is the truth that only a
simulator knows; it is written beside the logs, and nothing that mines or trains reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

HEAD_LEVEL, SENSE_LEVEL, NEED_LEVEL = 0, 1, 2
"""How much a phrase gives away: the head alone, its sense, or the need."""


@dataclass(frozen=True)
class Phrases:
    """Everything that searchers say, before modifiers and typos; arrays of shape [phrases].

    Rows are ordered by head, then sense, then need, the vaguest first.
    """

    text: tuple[str, ...]
    level: Ints
    head: Ints
    sense: Ints
    """-1 for head-level phrases."""
    need: Ints
    """-1 above need level."""


@dataclass(frozen=True)
class Intents:
    """Heads, senses and needs as flat arrays; needs of a sense and senses of a head are neighbours."""

    names: tuple[tuple[str, str, str], ...]
    """Head, sense and need by name, [needs]."""
    sense_head: Ints
    sense_category: tuple[str, ...]
    sense_demand: Floats
    """Share of searches per sense, summing to 1."""
    sense_supply: Floats
    """Share of items per sense, summing to 1."""
    need_sense: Ints
    need_share: Floats
    """Share of a need within its sense."""
    phrases: Phrases

    def draw_needs(self, sense: Ints, rng: np.random.Generator) -> Ints:
        """Draw one need per given sense, by the needs' shares."""
        first = np.searchsorted(self.need_sense, np.arange(len(self.sense_head)))
        cumulative = np.cumsum(self.need_share)
        start = np.concatenate([[0.0], cumulative])[first[sense]]
        drawn = np.searchsorted(cumulative, start + rng.random(len(sense)) * (1 - 1e-9))
        return np.clip(drawn, first[sense], first[sense] + np.bincount(self.need_sense)[sense] - 1)


@dataclass(frozen=True)
class Corpus:
    """The catalogue: arrays of shape [items]; the id of row i is i + 1."""

    need: Ints
    """The need that the item is about; -1 where it answers none."""
    sense: Ints
    """Its sense; the platform knows it as the item's leaf category."""
    partial: Flags
    """The item answers only in part, and its cover promises more."""
    author: Ints
    quality: Floats
    """Drives popularity: log-normal, independent of relevance."""
    duration_ms: Ints
    uploaded_day: Floats
    """Days since the first simulated day; negative = before it."""
    title: tuple[str | None, ...]
    caption: tuple[str | None, ...]
    tags: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.need)


class World(Protocol):
    """Intents, the catalogue and the truth."""

    @property
    def intents(self) -> Intents:
        """What people want, and how they ask for it."""
        ...

    @property
    def corpus(self) -> Corpus:
        """What there is to see."""
        ...

    def relevance(self, need: Ints, item: Ints) -> Ints:
        """Return the grade 0..3 of item rows for need rows; the arguments broadcast."""
        ...


def zipf(size: int, exponent: float = 1.0) -> Floats:
    """Return shares of ranks 1..size by Zipf's law, summing to 1."""
    weights = 1.0 / np.arange(1, size + 1) ** exponent
    shares: Floats = weights / weights.sum()
    return shares


def split_shares(sense_head: Ints, weight: Floats, rng: np.random.Generator) -> Floats:
    """Give heads Zipf shares in random order, and split each over its senses by `weight`, [senses]."""
    head_share = rng.permutation(zipf(int(sense_head.max()) + 1, 0.6))
    total = np.bincount(sense_head, weights=weight)
    shares: Floats = head_share[sense_head] * weight / total[sense_head]
    return shares


def order_phrases(rows: Sequence[tuple[str, int, int, int, int]]) -> Phrases:
    """Lay (text, level, head, sense, need) rows out as arrays."""
    text, *columns = zip(*rows, strict=True)
    return Phrases(tuple(text), *(np.array(column, dtype=np.int64) for column in columns))
