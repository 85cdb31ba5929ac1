"""What a world is: intents, a catalogue, and the truth about which item answers which need.

`World` is the only thing that the rest of the platform sees of it. `relevance` is the truth that only a
simulator knows; it is written next to the logs, and nothing that mines or trains reads it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.logs import Judged, load_judged
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
    "compact": Size(heads=12, items=2_000, authors=200, users=1_000, sessions=2_000),
    "demo": Size(heads=16, items=8_000, authors=800, users=4_000, sessions=10_000),
    "small": Size(heads=24, items=20_000, authors=2_000, users=5_000, sessions=15_000),
    "base": Size(heads=120, items=100_000, authors=10_000, users=30_000, sessions=70_000),
    "large": Size(heads=120, items=1_000_000, authors=100_000, users=60_000, sessions=40_000),
}
"""`tiny` is for tests, `compact` for the demo in a language of few topics, `demo` for `crops demo`, `small`
for experiments on a laptop, `base` for published tables (about 100,000 searches and 1 million feed events
a day), `large` for a million items."""


# Which platform wrote a world: results of different platforms must not be compared.


NAME = "cpsqa-open"
VERSION = "17cf94c7eaea"
"""Changed by hand when the same settings and seed give another world, and never else.

tests/platform/test_platform_golden.py compares the tables of tiny worlds with those recorded for it.
"""


def platform_version(edition: str = "v1") -> str:
    """Return the name of an edition of the platform and the version of its worlds."""
    return f"{NAME}-{edition}+{VERSION}"


# What is true of items in every world: who posted them, how long they are, when they came, how they sell.


ARRIVAL_DAYS = 60
"""Items were uploaded over this many days before the end of the last simulated day, evenly."""
DAY_US = 86_400_000_000


def draw_fate(
    items: int, days: int, rng: np.random.Generator, arrival_days: int = ARRIVAL_DAYS
) -> dict[str, Any]:
    """Draw columns of `Corpus` that have nothing to do with what items are about.

    The appeal is log-normal, so that a few draw most of the plays; lengths are log-normal around 30 s,
    between 5 s and 10 min; upload times are even, up to the end of the last simulated day.
    """
    return {
        "quality": rng.lognormal(0.0, 1.0, items),
        "duration_ms": (np.clip(rng.lognormal(np.log(30), 0.8, items), 5, 600) * 1000).astype(np.int64),
        "uploaded_day": rng.uniform(days - arrival_days, days, items),
    }


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
    schema = ITEMS.arrow(own_ids=False)
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


# The world of a judged collection: real documents, real queries, and human grades as the truth. A need is a
# query with a relevant document. Vaguer ways to ask for it are its own words: the word that most queries of
# the collection share is the head, the two most shared are the sense.


TOP_GRADE = 3
RELEVANT = 2
"""Lowest grade that makes a document an answer."""
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class JudgedWorld:
    """A world whose grades are human judgements; a pair without one has grade 0."""

    intents: Intents
    corpus: Corpus
    pairs: Ints
    """need * items + item of each judged pair, ascending, [judgements]."""
    grades: Ints
    """[judgements]"""
    rejected: pa.Table
    """Rows of the collection that were left out: table, row, reason."""

    def relevance(self, need: Ints, item: Ints) -> Ints:
        """Return the grade 0..3 of item rows for need rows; the arguments broadcast."""
        wanted = np.asarray(need * len(self.corpus) + item)
        place = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        return np.where(self.pairs[place] == wanted, self.grades[place], 0)


@dataclass(frozen=True)
class _Query:
    """A query as a need: its words from the most shared to the rarest give head and sense."""

    number: int
    text: str
    head: str
    sense: str


def read_judged_world(folder: Path, size: Size, days: int, rng: np.random.Generator) -> JudgedWorld:
    """Return the world of a judged collection in a folder (`crops.logs.load_judged`).

    Of the size only the number of authors counts; the collection says how many items there are.

    Raises:
        CropsError: a file or column is missing, a grade is above 3, or no query has a relevant document.
    """
    judged = load_judged(folder)
    query, item, grade = (judged.judgements[name].to_numpy() for name in ("query_id", "item_id", "grade"))
    if grade.max() > TOP_GRADE:
        raise CropsError(f"{folder / 'qrels.parquet'}, column grade: {grade.max()} is above {TOP_GRADE}")
    answered = np.unique(query[grade >= RELEVANT])
    if not len(answered):
        raise CropsError(f"{folder / 'qrels.parquet'}: no query has a document of grade {RELEVANT} or more")
    queries = _arrange({number: judged.queries[number - 1] for number in answered.tolist()})
    need_of = np.full(len(judged.queries) + 1, -1, dtype=np.int64)
    need_of[[one.number for one in queries]] = np.arange(len(queries))
    known = need_of[query] >= 0
    need, row, grade = need_of[query[known]], item[known] - 1, grade[known]
    intents = _intents(queries, rng)
    # The need for which each item has its best grade, ties: the first; -1 where none was judged.
    near = np.full(len(judged.texts), -1, dtype=np.int64)
    by_grade = np.lexsort((-need, grade, row))
    near[row[by_grade]] = need[by_grade]
    answers = np.isin(np.arange(len(near)), row[grade > 0])
    near = np.where(near < 0, rng.integers(0, len(queries), len(near)), near)
    corpus = _corpus(judged, np.where(answers, near, -1), intents.need_sense[near], size, days, rng)
    pairs = need * len(corpus) + row
    order = np.argsort(pairs)
    return JudgedWorld(intents, corpus, pairs[order], grade[order], judged.rejected)


def _arrange(texts: dict[int, str]) -> list[_Query]:
    """Give each query its head and sense, and put neighbours side by side."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # slow to import: not for --help

    def says_something(word: str) -> bool:
        return len(word) > 2 and not word.isdigit() and word not in ENGLISH_STOP_WORDS

    words = {number: list(dict.fromkeys(_WORD.findall(text))) or [text] for number, text in texts.items()}
    shared = Counter(word for own in words.values() for word in own if says_something(word))
    queries = []
    for number, text in texts.items():
        most = sorted(words[number], key=lambda word: (-shared[word], word))[:2]
        sense = " ".join(word for word in words[number] if word in most)
        queries.append(_Query(number, text, most[0], sense))
    return sorted(queries, key=lambda one: (one.head, one.sense, one.text))


def _intents(queries: Sequence[_Query], rng: np.random.Generator) -> Intents:
    heads = sorted({one.head for one in queries})
    senses = sorted({(one.head, one.sense) for one in queries})
    sense_head = np.array([heads.index(head) for head, _ in senses])
    need_sense = np.array([senses.index((one.head, one.sense)) for one in queries])
    needs = np.bincount(need_sense)
    rows: list[tuple[str, int, int, int, int]] = [
        (head, HEAD_LEVEL, number, -1, -1) for number, head in enumerate(heads)
    ]
    rows += [(text, SENSE_LEVEL, heads.index(head), number, -1) for number, (head, text) in enumerate(senses)]
    rows += [
        (one.text, NEED_LEVEL, heads.index(one.head), int(need_sense[number]), number)
        for number, one in enumerate(queries)
    ]
    return Intents(
        names=tuple((one.head, one.sense, one.text) for one in queries),
        sense_head=sense_head,
        sense_category=tuple(head for head, _ in senses),
        sense_demand=split_shares(sense_head, needs.astype(np.float64), rng),
        sense_supply=needs / needs.sum(),
        need_sense=need_sense,
        need_share=1 / needs[need_sense],
        phrases=order_phrases(rows),
    )


def _corpus(
    judged: Judged, need: Ints, sense: Ints, size: Size, days: int, rng: np.random.Generator
) -> Corpus:
    items = len(judged.texts)
    rest = [text.removeprefix(title).strip() for text, title in zip(judged.texts, judged.titles, strict=True)]
    return Corpus(
        need=need,
        sense=sense,
        partial=np.zeros(items, dtype=bool),
        author=rng.integers(0, size.authors, items),
        **draw_fate(items, days, rng),
        title=tuple(title or None for title in judged.titles),
        caption=tuple(text or None for text in rest),
        tags=(None,) * items,
    )
