"""The world of hand-written topics: its needs, its catalogue and its truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crops.errors import CropsError
from crops.platform.corpus import draw_durations, draw_quality, draw_upload_days
from crops.platform.sizes import Size
from crops.platform.texts import Uploads, write_texts
from crops.platform.topics import Head, load_topics
from crops.platform.world import (
    HEAD_LEVEL,
    NEED_LEVEL,
    SENSE_LEVEL,
    Corpus,
    Intents,
    Ints,
    Phrases,
    order_phrases,
    split_shares,
    zipf,
)

SECOND_NEED, PARTIAL = 0.25, 0.12
"""Chances per item: touches a second need in passing, answers only in part (clickbait, low effort)."""


@dataclass(frozen=True)
class TopicsWorld:
    """A world whose grades follow from what each item is about."""

    intents: Intents
    corpus: Corpus
    second: Ints
    """A need that the item touches in passing, -1 for none, [items]."""

    def relevance(self, need: Ints, item: Ints) -> Ints:
        """Return the grade 0..3 of item rows for need rows; the arguments broadcast.

        3: the item is about the need; 2: it touches the need in passing, or answers it in part; 1: another
        need of the same sense; 0: anything else.
        """
        same_sense = self.intents.need_sense[need] == self.corpus.sense[item]
        main = np.where(self.corpus.partial[item], 2, 3)
        passing = np.where(self.second[item] == need, 2, same_sense.astype(np.int64))
        return np.where(self.corpus.need[item] == need, main, passing)


def build_topics_world(size: Size, days: int, rng: np.random.Generator) -> TopicsWorld:
    """Return the world of the first `size.heads` topics with its catalogue.

    Args:
        size: extent.
        days: simulated days; items keep arriving during them.
        rng: source of randomness.

    Raises:
        CropsError: the package has fewer topics, or there are more needs than items.
    """
    heads = load_topics(size.heads)
    intents = build_intents(heads, rng)
    items = size.items
    needs = len(intents.need_sense)
    if items < needs:
        raise CropsError(f"size: {items} items are fewer than the {needs} needs of {size.heads} heads")
    sense = rng.choice(len(intents.sense_supply), items, p=intents.sense_supply)
    need = intents.draw_needs(sense, rng)
    need[rng.permutation(items)[:needs]] = np.arange(needs)  # somebody posts about every need
    sense = intents.need_sense[need]
    other = intents.draw_needs(sense, rng)
    author = rng.integers(0, size.authors, items)
    partial = rng.random(items) < PARTIAL
    second = np.where((rng.random(items) < SECOND_NEED) & (other != need), other, -1)
    title, caption, tags = write_texts(heads, Uploads(need, author, partial), size.authors, rng)
    corpus = Corpus(
        need=need,
        sense=sense,
        partial=partial,
        author=author,
        quality=draw_quality(items, rng),
        duration_ms=draw_durations(items, rng),
        uploaded_day=draw_upload_days(items, days, rng),
        title=title,
        caption=caption,
        tags=tags,
    )
    return TopicsWorld(intents, corpus, second)


def build_intents(heads: Sequence[Head], rng: np.random.Generator) -> Intents:
    """Lay out the topics as arrays; heads follow Zipf's law, in different orders for demand and supply."""
    senses = [(h, sense) for h, head in enumerate(heads) for sense in head.senses]
    sense_head = np.array([h for h, _ in senses])
    demand, supply = (
        split_shares(sense_head, np.array([getattr(sense, name) for _, sense in senses]), rng)
        for name in ("demand", "supply")
    )
    return Intents(
        names=tuple(
            (head.name, sense.name, need.name)
            for head in heads
            for sense in head.senses
            for need in sense.needs
        ),
        sense_head=sense_head,
        sense_category=tuple(sense.category for _, sense in senses),
        sense_demand=demand,
        sense_supply=supply,
        need_sense=np.array([s for s, (_, sense) in enumerate(senses) for _ in sense.needs]),
        need_share=np.concatenate([rng.permutation(zipf(len(sense.needs), 0.7)) for _, sense in senses]),
        phrases=_phrases(heads),
    )


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
    return order_phrases(rows)
