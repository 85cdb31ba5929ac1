"""The world of a judged collection: real documents, real queries, and human grades as the truth.

A need is a query with a relevant document. Vaguer ways to ask for it are its own words: the word that most
queries of the collection share is the head, the two most shared are the sense.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from crops.errors import CropsError
from crops.logs import Judged, load_judged
from crops.platform.world import (
    HEAD_LEVEL,
    NEED_LEVEL,
    SENSE_LEVEL,
    Corpus,
    Intents,
    Ints,
    Size,
    draw_durations,
    draw_quality,
    draw_upload_days,
    order_phrases,
    split_shares,
)

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
    """Return the world of a judged collection.

    Args:
        folder: docs.parquet, queries.parquet and qrels.parquet; see `crops.logs.load_judged`.
        size: only its number of authors counts; the collection says how many items there are.

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
    near = _best_need(need, row, grade, len(judged.texts))
    answers = np.isin(np.arange(len(near)), row[grade > 0])
    near = np.where(near < 0, rng.integers(0, len(queries), len(near)), near)
    corpus = _corpus(judged, np.where(answers, near, -1), intents.need_sense[near], size, days, rng)
    pairs = need * len(corpus) + row
    order = np.argsort(pairs)
    return JudgedWorld(intents, corpus, pairs[order], grade[order], judged.rejected)


def _arrange(texts: dict[int, str]) -> list[_Query]:
    """Give each query its head and sense, and put neighbours side by side."""
    words = {number: list(dict.fromkeys(_WORD.findall(text))) or [text] for number, text in texts.items()}
    shared = Counter(word for own in words.values() for word in own if _says_something(word))
    queries = []
    for number, text in texts.items():
        most = sorted(words[number], key=lambda word: (-shared[word], word))[:2]
        sense = " ".join(word for word in words[number] if word in most)
        queries.append(_Query(number, text, most[0], sense))
    return sorted(queries, key=lambda one: (one.head, one.sense, one.text))


def _says_something(word: str) -> bool:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # slow to import: not for --help

    return len(word) > 2 and not word.isdigit() and word not in ENGLISH_STOP_WORDS


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


def _best_need(need: Ints, item: Ints, grade: Ints, items: int) -> Ints:
    """Return the need for which each item has its best grade, ties: the first; -1 where none was judged."""
    best = np.full(items, -1, dtype=np.int64)
    order = np.lexsort((-need, grade, item))
    best[item[order]] = need[order]
    return best


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
        quality=draw_quality(items, rng),
        duration_ms=draw_durations(items, rng),
        uploaded_day=draw_upload_days(items, days, rng),
        title=tuple(title or None for title in judged.titles),
        caption=tuple(text or None for text in rest),
        tags=(None,) * items,
    )
