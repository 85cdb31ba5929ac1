"""What a world is: intents, a catalogue, and the truth about which item answers which need.

`World` is the only thing that the rest of the platform sees of it. `relevance` is the truth that only a
simulator knows; it is written next to the logs, and nothing that mines or trains reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.schema import ITEMS
from crops.text import DOCUMENT_FIELDS, document_text

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

    def document_texts(self) -> list[str]:
        """Return the document text of every item."""
        rows = zip(self.title, self.caption, self.tags, strict=True)
        return [document_text(dict(zip(DOCUMENT_FIELDS, row, strict=True))) for row in rows]


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


# How large a simulated platform is.


@dataclass(frozen=True)
class Size:
    """Extent of a platform; smaller ones use fewer heads, so that each head keeps several hundred items."""

    heads: int
    items: int
    authors: int
    users: int
    sessions: int
    """Search sessions per day; a session is one need and one to a few searches."""


SIZES: dict[str, Size] = {
    "tiny": Size(heads=4, items=2_000, authors=200, users=150, sessions=300),
    "demo": Size(heads=16, items=8_000, authors=800, users=4_000, sessions=10_000),
    "small": Size(heads=24, items=20_000, authors=2_000, users=5_000, sessions=15_000),
    "base": Size(heads=120, items=100_000, authors=10_000, users=30_000, sessions=70_000),
    "large": Size(heads=120, items=1_000_000, authors=100_000, users=60_000, sessions=40_000),
}
"""`tiny` is for tests, `demo` for `crops demo`, `small` for experiments on a laptop, `base` for published
tables (about 100,000 searches and 1 million feed events a day), `large` for a million items."""


# Which platform wrote a world: results of different platforms must not be compared.


NAME = "cpsqa-open-v1"
VERSION = "17cf94c7eaea"
"""Changed by hand when the same settings and seed give another world, and never else.

tests/platform/test_platform_golden.py compares the tables of tiny worlds with those recorded for it.
"""


def platform_version() -> str:
    """Return the name of the platform and the version of its worlds."""
    return f"{NAME}+{VERSION}"


# What is true of items in every world: who posted them, how long they are, when they came, how they sell.


ARRIVAL_DAYS = 60
"""Items were uploaded over this many days before the end of the last simulated day, evenly."""
DAY_US = 86_400_000_000


def draw_quality(items: int, rng: np.random.Generator) -> Floats:
    """Draw the appeal of items: log-normal, so that a few draw most of the plays."""
    return rng.lognormal(0.0, 1.0, items)


def draw_durations(items: int, rng: np.random.Generator) -> Ints:
    """Draw lengths in ms: log-normal around 30 s, between 5 s and 10 min."""
    return (np.clip(rng.lognormal(np.log(30), 0.8, items), 5, 600) * 1000).astype(np.int64)


def draw_upload_days(items: int, days: int, rng: np.random.Generator) -> Floats:
    """Draw upload times in days since the first simulated day, evenly up to the end of the last."""
    return rng.uniform(days - ARRIVAL_DAYS, days, items)


def items_table(
    world: World, first_day_us: int, counters: dict[str, Ints], click_query: list[str | None]
) -> pa.Table:
    """Return the catalogue as the `items` table.

    Args:
        first_day_us: start of the first simulated day, microseconds UTC.
        counters: play_cnt, like_cnt, long_view_cnt and download_cnt, each [items].
        click_query: queries that led to clicks, '|'-separated, per item.
    """
    corpus = world.corpus
    columns = {
        "item_id": np.arange(1, len(corpus) + 1),
        "ocr_cover": corpus.title,
        "photo_caption": corpus.caption,
        "keyword": corpus.tags,
        "click_query": click_query,
        **counters,
        "duration_ms": corpus.duration_ms,
        "uploaded_at": first_day_us + (corpus.uploaded_day * DAY_US).astype(np.int64),
        "author_id": corpus.author + 1,
        "category": pa.array(world.intents.sense_category).take(corpus.sense),
    }
    schema = ITEMS.arrow()
    return pa.table(
        [
            c if isinstance(c := columns[n], pa.Array) else pa.array(c, schema.field(n).type)
            for n in schema.names
        ],
        schema=schema,
    )


# Fixed random numbers for pairs of keys: the same pair always gets the same number.


def mix(left: Ints, right: Ints) -> NDArray[np.uint64]:
    """Return 64 well-mixed bits per pair (splitmix64); the arguments broadcast."""
    with np.errstate(over="ignore"):
        x = left.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + right.astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(left: Ints, right: Ints) -> Floats:
    """Return one number in [0, 1) per pair."""
    drawn: Floats = (mix(left, right) >> np.uint64(11)).astype(np.float64) / 2**53
    return drawn


def normal(left: Ints, right: Ints) -> Floats:
    """Return one nearly normal number, mean 0 and variance 1, per pair (sum of four uniforms)."""
    x = mix(left, right)
    parts = [((x >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.float64) / 65535 for i in range(4)]
    drawn: Floats = (sum(parts) - 2.0) * np.sqrt(3.0)
    return drawn
