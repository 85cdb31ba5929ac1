"""One version of what is searched: an index with the model that made it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.protocols import Retriever
from crops.retrieval import Model, encode_texts
from crops.retrieval.catalogue import NO_ITEM
from crops.retrieval.filters import Filter
from crops.retrieval.index import VectorIndex
from crops.text import DOCUMENT_FIELDS

_ENCODING = threading.Lock()
"""Tokenizers of the transformers library are for one thread at a time."""
_AT_ONCE = 64
"""Texts encoded before another thread may encode: a new version's evidence must not hold up the searches."""
UNKNOWN_WORDS = "the model knows no word of this query"


class Job(NamedTuple):
    """A search: for a text, or for what is like an item."""

    k: int
    query: str | None = None
    item_id: int | None = None
    where: Filter | None = None
    texts: bool = True
    """Whether the texts of the items are wanted too."""


class Document(NamedTuple):
    """What is shown of an item."""

    title: str
    text: str
    category: str | None


class Result(NamedTuple):
    """What a job found, best first, and in which version."""

    version: str
    ids: list[int]
    scores: list[float]
    documents: list[Document]
    """As the ids, or none where no texts were wanted."""
    note: str | None = None
    """Why nothing was found."""


class Searcher:
    """A version of an index with its model. The index is closed when nobody holds the searcher any more."""

    def __init__(
        self, name: str, index: VectorIndex, model: Model | None, words: Retriever | None = None
    ) -> None:
        """Put the parts together.

        Args:
            name: what people call it.
            index: the vectors and items.
            model: what made the vectors; None where only words are searched.
            words: searches texts in place of the vectors (bm25, hybrid); it takes no filter.
        """
        self.name, self.index, self.model, self.words = name, index, model, words
        self.version = index.manifest.version
        weakref.finalize(self, index.close)

    def same_model(self, other: Searcher) -> bool:
        """Return whether the vectors of both compare."""
        mine, others = self.index.manifest, other.index.manifest
        return (mine.model_hash, mine.dim) == (others.model_hash, others.dim)

    def encode(self, texts: Sequence[str], role: str = "query") -> NDArray[np.float32]:
        """Return the unit vectors [n, d] of queries or of document texts.

        Raises:
            CropsError: there is no model, or it gave NaN.
        """
        if self.model is None:
            raise CropsError(f"{self.name} searches words: it has no vectors")
        rendered = [self.model.rendering.query(text) for text in texts] if role == "query" else texts
        parts = []
        for start in range(0, len(rendered), _AT_ONCE):
            with _ENCODING:
                parts.append(encode_texts(self.model.encoder, rendered[start : start + _AT_ONCE], role=role))
        return np.concatenate(parts)

    def answer(self, jobs: Sequence[Job]) -> list[Result | Exception]:
        """Return what each job found, or what is wrong with it.

        Jobs that may find the same items are encoded and searched together; a shorter list is the head of a
        longer one.
        """
        answers: list[Result | Exception] = [CropsError("not answered")] * len(jobs)
        alike: dict[Hashable, list[int]] = {}
        for row, job in enumerate(jobs):
            alike.setdefault((job.query is None, job.where and job.where.key()), []).append(row)
        for rows in alike.values():
            try:
                found: Sequence[Result | Exception] = self._found([jobs[row] for row in rows])
            except CropsError as error:  # one of them is wrong: the others get their answers
                found = [error] if len(rows) == 1 else [self.answer([jobs[row]])[0] for row in rows]
            except Exception as error:
                found = [error] * len(rows)
            for row, answer in zip(rows, found, strict=True):
                answers[row] = answer
        return answers

    def _found(self, jobs: Sequence[Job]) -> list[Result]:
        """Search for jobs of one kind."""
        similar = jobs[0].query is None
        k = max(job.k for job in jobs) + similar  # an item is most like itself
        where = jobs[0].where
        said: list[bool] = [True] * len(jobs)
        if similar:
            vectors = self.index.vectors(np.array([job.item_id for job in jobs], dtype=np.int64))
            ids, scores = self.index.search(vectors, k, where)
        elif self.words is not None:
            with _ENCODING:
                ids, scores = self.words.search([job.query or "" for job in jobs], k)
        else:
            vectors = self.encode([job.query or "" for job in jobs])
            said = np.any(vectors != 0, axis=1).tolist()
            ids, scores = self.index.search(vectors, k, where)
        lists = [
            _cut(job, own.tolist(), values.tolist())
            for job, own, values in zip(jobs, ids, scores, strict=True)
        ]
        wanted = {item for job, (own, _) in zip(jobs, lists, strict=True) if job.texts for item in own}
        documents = self.documents(sorted(wanted))
        return [
            Result(
                self.version,
                own,
                values,
                [documents[item] for item in own] if job.texts else [],
                None if known else UNKNOWN_WORDS,
            )
            for job, (own, values), known in zip(jobs, lists, said, strict=True)
        ]

    def documents(self, ids: Sequence[int]) -> dict[int, Document]:
        """Return what is shown of items.

        Raises:
            CropsError: an id is not in the index.
        """
        if not ids:
            return {}
        rows = self.index.items(np.array(ids, dtype=np.int64)).to_pylist()
        return {row["item_id"]: document_of(row) for row in rows}


def document_of(row: Mapping[str, Any]) -> Document:
    """Return what is shown of a row of items or of generated items: the first text is the title."""
    texts = [text for field in DOCUMENT_FIELDS if (text := (row.get(field) or "").strip())]
    title, *rest = texts or ["(no text)"]
    return Document(title, " · ".join(rest), row.get("category"))


def _cut(job: Job, ids: list[int], scores: list[float]) -> tuple[list[int], list[float]]:
    """Return the job's share of a row of results."""
    kept = [(i, s) for i, s in zip(ids, scores, strict=True) if i not in (NO_ITEM, job.item_id)][: job.k]
    return [item for item, _ in kept], [score for _, score in kept]
