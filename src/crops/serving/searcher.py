"""One version of what is searched: an index with the model that made it; and searches answered in batches."""

from __future__ import annotations

import asyncio
import math
import statistics
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.protocols import Retriever
from crops.retrieval import Model, encode_texts
from crops.retrieval.catalogue import NO_ITEM, Filter
from crops.retrieval.index import VectorIndex
from crops.text import Document, document_of

_ENCODING = threading.Lock()
"""Tokenizers of the transformers library are for one thread at a time."""
_AT_ONCE = 64
"""Texts encoded before another thread may encode: a new version's evidence must not hold up the searches."""
_UNKNOWN_WORDS = "the model knows no word of this query"
_RECENT = 5
"""Batches whose median is the pace, in seconds per job: one that was slow by chance changes nothing."""
Task = TypeVar("Task")
Answer = TypeVar("Answer")


class Job(NamedTuple):
    """A search: for a text, or for what is like an item."""

    k: int
    query: str | None = None
    item_id: int | None = None
    where: Filter | None = None
    texts: bool = True
    """Whether the texts of the items are wanted too."""


class Result(NamedTuple):
    """What a job found, best first, and in which version."""

    version: str
    ids: list[int]
    scores: list[float]
    shown: list[str]
    """The ids as people read them."""
    documents: list[Document]
    """As the ids, or none where no texts were wanted."""
    note: str | None = None
    """Why nothing was found."""


class Searcher:
    """A version of an index with its model. The index is closed when nobody holds the searcher any more."""

    def __init__(
        self, name: str, index: VectorIndex, model: Model | None, words: Retriever | None = None
    ) -> None:
        """Search `index` with the model of its vectors, None where only words are searched.

        `words` searches texts in place of the vectors (bm25, hybrid); it takes no filter.
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
        blocks = []
        for start in range(0, len(rendered), _AT_ONCE):
            with _ENCODING:
                blocks.append(encode_texts(self.model.encoder, rendered[start : start + _AT_ONCE], role=role))
        return np.concatenate(blocks)

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
        known: NDArray[np.bool_] = np.ones(len(jobs), dtype=np.bool_)
        if similar:
            vectors = self.index.vectors(np.array([job.item_id for job in jobs], dtype=np.int64))
            ids, scores = self.index.search(vectors, k, where)
        elif self.words is not None:
            with _ENCODING:
                ids, scores = self.words.search([job.query or "" for job in jobs], k)
        else:
            vectors = self.encode([job.query or "" for job in jobs])
            known = np.any(vectors != 0, axis=1)
            ids, scores = self.index.search(vectors, k, where)
        lists = [
            [
                hit
                for hit in zip(own.tolist(), values.tolist(), strict=True)
                if hit[0] not in (NO_ITEM, job.item_id)
            ]
            for job, own, values in zip(jobs, ids, scores, strict=True)
        ]
        lists = [hits[: job.k] for job, hits in zip(jobs, lists, strict=True)]
        found = np.array(sorted({item for hits in lists for item, _ in hits}), dtype=np.int64)
        shown = dict(zip(found.tolist(), self.index.shown(found), strict=True))
        wanted = {item for job, hits in zip(jobs, lists, strict=True) if job.texts for item, _ in hits}
        documents = self.documents(sorted(wanted))
        return [
            Result(
                self.version,
                [item for item, _ in hits],
                [score for _, score in hits],
                [shown[item] for item, _ in hits],
                [documents[item] for item, _ in hits] if job.texts else [],
                None if told else _UNKNOWN_WORDS,
            )
            for job, hits, told in zip(jobs, lists, known, strict=True)
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


class StoppedError(Exception):
    """The server is being stopped."""


class Batcher(Generic[Task, Answer]):
    """Runs jobs in batches, on one thread, in the order of their arrival.

    A batch is what waits when the one before it ends: alone a job waits for nothing, and under load the
    batches grow by themselves. It refuses nothing: who asks `wait` first knows how long it will take.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Task]], Sequence[Answer]],
        max_batch: int,
        max_seconds: float = math.inf,
    ) -> None:
        """Make an idle batcher.

        Args:
            run: from jobs to their answers, in order; called on the batcher's thread.
            max_batch: jobs that are run together.
            max_seconds: what a batch may take at the pace of the last ones; it is made so small.
        """
        self._run, self._max_batch, self._max_seconds = run, max_batch, max_seconds
        self._waiting: deque[tuple[Task, asyncio.Future[Answer]]] = deque()
        self._running = 0
        self._paces: deque[float] = deque(maxlen=_RECENT)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="crops-batch")
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def __len__(self) -> int:
        """Return how many jobs wait."""
        return len(self._waiting)

    def wait(self) -> float:
        """Return the seconds that a job would wait for its answer, by the pace of the last batches."""
        return (len(self._waiting) + self._running) * self._pace()

    async def __call__(self, job: Task) -> Answer:
        """Return the answer to a job. A caller that goes away before its batch begins costs nothing."""
        if self._stopped:
            raise StoppedError
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await answer

    async def stop(self) -> None:
        """Refuse what waits and what comes, wait for the batch that runs, end the thread."""
        self._stopped = True
        for _, answer in self._waiting:
            if not answer.done():
                answer.set_exception(StoppedError())
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    def _pace(self) -> float:
        return statistics.median(self._paces or [0.0])

    async def _work(self) -> None:
        try:
            while self._waiting:
                pace = self._pace()
                in_time = self._max_seconds / pace if pace > 0 else math.inf
                most = max(1, int(min(self._max_batch, in_time)))
                batch: list[tuple[Task, asyncio.Future[Answer]]] = []
                while self._waiting and len(batch) < most:
                    job, answer = self._waiting.popleft()
                    if not answer.done():  # whoever gave up is left out
                        batch.append((job, answer))
                if batch:
                    await self._answer(batch)
        finally:
            self._task = None

    async def _answer(self, batch: Sequence[tuple[Task, asyncio.Future[Answer]]]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        self._running = len(batch)
        try:
            found = await loop.run_in_executor(self._thread, self._run, [job for job, _ in batch])
        except Exception as error:  # whatever it is, it belongs to those who asked
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        finally:
            self._running = 0
            self._paces.append((loop.time() - start) / len(batch))
        for (_, answer), one in zip(batch, found, strict=True):
            if not answer.done():
                answer.set_result(one)
