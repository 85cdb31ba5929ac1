"""Requests that arrive together are answered together, in the order of their arrival."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job")
Answer = TypeVar("Answer")
_RECENT = 5
"""Batches whose median is the pace, in seconds per job: one that was slow by chance changes nothing."""


class StoppedError(Exception):
    """The server is being stopped."""


@dataclass(frozen=True)
class _Waiting(Generic[Job, Answer]):
    job: Job
    answer: asyncio.Future[Answer]


class Batcher(Generic[Job, Answer]):
    """Runs jobs in batches, on one thread, in the order of their arrival.

    A batch is what waits when the one before it ends: alone a job waits for nothing, and under load the
    batches grow by themselves. It refuses nothing: who asks `wait` first knows how long it will take.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Job]], Sequence[Answer]],
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
        self._waiting: deque[_Waiting[Job, Answer]] = deque()
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

    async def __call__(self, job: Job) -> Answer:
        """Return the answer to a job. A caller that goes away before its batch begins costs nothing.

        Raises:
            StoppedError: `stop` was called.
        """
        if self._stopped:
            raise StoppedError
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(job, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await answer

    async def stop(self) -> None:
        """Refuse what waits and what comes, wait for the batch that runs, end the thread."""
        self._stopped = True
        for waiting in self._waiting:
            if not waiting.answer.done():
                waiting.answer.set_exception(StoppedError())
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    def _pace(self) -> float:
        return statistics.median(self._paces) if self._paces else 0.0

    async def _work(self) -> None:
        try:
            while self._waiting:
                if batch := self._take():
                    await self._answer(batch)
        finally:
            self._task = None

    def _take(self) -> list[_Waiting[Job, Answer]]:
        """Return the next batch; whoever gave up is left out."""
        pace = self._pace()
        in_time = self._max_seconds / pace if pace > 0 else math.inf
        most = max(1, int(min(self._max_batch, in_time)))
        batch: list[_Waiting[Job, Answer]] = []
        while self._waiting and len(batch) < most:
            waiting = self._waiting.popleft()
            if not waiting.answer.done():
                batch.append(waiting)
        return batch

    async def _answer(self, batch: Sequence[_Waiting[Job, Answer]]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        self._running = len(batch)
        try:
            answers = await loop.run_in_executor(self._thread, self._run, [one.job for one in batch])
        except Exception as error:  # whatever it is, it belongs to those who asked
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        finally:
            self._running = 0
            self._paces.append((loop.time() - start) / len(batch))
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
