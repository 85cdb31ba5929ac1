"""The world: needs, the ways to ask for them, and which item answers which need.

`relevance` is the truth that only a simulator knows. It is written beside the logs, and nothing that
mines or trains reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crops.platform.topics import Head

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

HEAD_LEVEL, SENSE_LEVEL, NEED_LEVEL = 0, 1, 2
"""How much a phrase gives away: the head alone, its sense, or the need."""


@dataclass(frozen=True)
class Phrases:
    """Everything that searchers say, before modifiers and typos; arrays of shape [phrases]."""

    text: tuple[str, ...]
    level: Ints
    head: Ints
    sense: Ints
    """-1 for head-level phrases."""
    need: Ints
    """-1 above need level."""


@dataclass(frozen=True)
class World:
    """Heads, senses and needs as flat arrays."""

    heads: tuple[Head, ...]
    sense_head: Ints
    sense_demand: Floats
    """Share of searches per sense, summing to 1."""
    sense_supply: Floats
    """Share of items per sense, summing to 1."""
    need_sense: Ints
    need_share: Floats
    """Share of a need within its sense."""
    phrases: Phrases


def _zipf(size: int, exponent: float = 1.0) -> Floats:
    weights = 1.0 / np.arange(1, size + 1) ** exponent
    shares: Floats = weights / weights.sum()
    return shares


def build_world(heads: Sequence[Head], rng: np.random.Generator) -> World:
    """Lay out the topics as arrays; heads follow Zipf's law, in different orders for demand and supply."""
    senses = [(h, sense) for h, head in enumerate(heads) for sense in head.senses]
    sense_head = np.array([h for h, _ in senses])
    demand, supply = (
        _shares(sense_head, np.array([getattr(sense, name) for _, sense in senses]), rng)
        for name in ("demand", "supply")
    )
    needs = [(s, need) for s, (_, sense) in enumerate(senses) for need in sense.needs]
    return World(
        heads=tuple(heads),
        sense_head=sense_head,
        sense_demand=demand,
        sense_supply=supply,
        need_sense=np.array([s for s, _ in needs]),
        need_share=np.concatenate([rng.permutation(_zipf(len(sense.needs), 0.7)) for _, sense in senses]),
        phrases=_phrases(heads),
    )


def _shares(sense_head: Ints, weight: Floats, rng: np.random.Generator) -> Floats:
    """Split a Zipf share per head over its senses by `weight`."""
    head_share = rng.permutation(_zipf(int(sense_head.max()) + 1, 0.6))
    total = np.bincount(sense_head, weights=weight)
    return head_share[sense_head] * weight / total[sense_head]


def _phrases(heads: Sequence[Head]) -> Phrases:
    rows: list[tuple[str, int, int, int, int]] = []
    sense_row = need_row = -1
    for head_row, head in enumerate(heads):
        rows.append((head.name, HEAD_LEVEL, head_row, -1, -1))
        for sense in head.senses:
            sense_row += 1
            rows.extend((text, SENSE_LEVEL, head_row, sense_row, -1) for text in sense.search)
            for need in sense.needs:
                need_row += 1
                rows.extend((text, NEED_LEVEL, head_row, sense_row, need_row) for text in need.search)
    text, *columns = zip(*rows, strict=True)
    return Phrases(tuple(text), *(np.array(column, dtype=np.int64) for column in columns))


def relevance(
    world: World, need: Ints, item_need: Ints, item_second: Ints, item_partial: NDArray[np.bool_]
) -> Ints:
    """Return the grade 0..3 of items for needs; the arguments broadcast.

    3: the item is about the need; 2: it touches the need in passing, or answers it in part; 1: another
    need of the same sense; 0: anything else.

    Args:
        world: the world.
        need: need row.
        item_need: main need of the item.
        item_second: a need that the item touches in passing, -1 for none.
        item_partial: the item answers its main need only in part (clickbait, low effort).
    """
    same_sense = world.need_sense[need] == world.need_sense[item_need]
    main = np.where(item_partial, 2, 3)
    return np.where(item_need == need, main, np.where(item_second == need, 2, same_sense.astype(np.int64)))
