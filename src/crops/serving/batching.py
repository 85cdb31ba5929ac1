"""Requests that arrive together are answered together; what cannot wait is refused at once."""

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


class SaturatedError(Exception):
    """More is asked than can be answered in time."""


class StoppedError(Exception):
    """The server is being stopped."""


@dataclass(frozen=True)
class _Waiting(Generic[Job, Answer]):
    job: Job
    answer: asyncio.Future[Answer]
    since: float


class Batcher(Generic[Job, Answer]):
    """Runs jobs in batches, on one thread, in the order of their arrival.

    A batch is what waits when the one before it ends: alone a job waits for nothing, and under load the
    batches grow by themselves.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Job]], Sequence[Answer]],
        max_batch: int,
        max_waiting: int,
        max_wait: float = math.inf,
    ) -> None:
        """Make an idle batcher.

        Args:
            run: from jobs to their answers, in order; called on the batcher's thread.
            max_batch: jobs that are run together.
            max_waiting: jobs that may wait; more are refused.
            max_wait: seconds after which a job that still waits is refused. Batches are kept so small that
                they take half of that at the pace of the last ones: what is answered is answered in time,
                however little of the machine there is.
        """
        self._run, self._max_batch = run, max_batch
        self._max_waiting, self._max_wait = max_waiting, max_wait
        self._waiting: deque[_Waiting[Job, Answer]] = deque()
        self._paces: deque[float] = deque(maxlen=_RECENT)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="crops-batch")
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def __len__(self) -> int:
        """Return how many jobs wait."""
        return len(self._waiting)

    async def __call__(self, job: Job) -> Answer:
        """Return the answer to a job. A caller that goes away before its batch begins costs nothing.

        Raises:
            SaturatedError: too many jobs wait already, or this one waited too long.
            StoppedError: `stop` was called.
        """
        if self._stopped:
            raise StoppedError
        if len(self._waiting) >= self._max_waiting:
            raise SaturatedError
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append(_Waiting(job, answer, loop.time()))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await answer

    async def stop(self) -> None:
        """Answer what waits, refuse what comes, end the thread."""
        self._stopped = True
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def _work(self) -> None:
        try:
            while self._waiting:
                if batch := self._take():
                    await self._answer(batch)
        finally:
            self._task = None

    def _take(self) -> list[_Waiting[Job, Answer]]:
        """Return the next batch; whoever waited too long is refused, whoever gave up is left out."""
        oldest = asyncio.get_running_loop().time() - self._max_wait
        pace = statistics.median(self._paces) if self._paces else 0.0
        in_time = self._max_wait / 2 / pace if pace > 0 else math.inf
        most = max(1, int(min(self._max_batch, in_time)))
        batch: list[_Waiting[Job, Answer]] = []
        while self._waiting and len(batch) < most:
            waiting = self._waiting.popleft()
            if waiting.answer.done():
                continue
            if waiting.since < oldest:
                waiting.answer.set_exception(SaturatedError())
            else:
                batch.append(waiting)
        return batch

    async def _answer(self, batch: Sequence[_Waiting[Job, Answer]]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            answers = await loop.run_in_executor(self._thread, self._run, [one.job for one in batch])
        except Exception as error:  # whatever it is, it belongs to those who asked
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        finally:
            self._paces.append((loop.time() - start) / len(batch))
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
