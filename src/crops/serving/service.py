"""What the server does, whoever asks: searches in batches, over indexes that may be replaced meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from crops.config import ServingConfig
from crops.errors import CropsError
from crops.serving.batching import Batcher, SaturatedError, StoppedError
from crops.serving.inputs import BadRequestError
from crops.serving.searcher import Job, Result, Searcher
from crops.serving.telemetry import Metrics


@dataclass
class Slot:
    """A place for an index: what is searched there can be replaced while requests run."""

    searcher: Searcher
    uri: str | None = None
    """Where new versions appear; None if it never changes."""


class Service:
    """The indexes of a server behind one queue: they share the machine."""

    def __init__(self, slots: dict[str, Slot], config: ServingConfig) -> None:
        """Serve `slots`, by the names `index` and `baseline`."""
        self.slots, self.config = slots, config
        self.batcher: Batcher[tuple[str, Job], Result | CropsError] = Batcher(
            self._answer, config.max_batch, config.max_waiting, config.max_wait_s
        )
        self.metrics = Metrics(lambda: float(len(self.batcher)))
        for name, slot in slots.items():
            self._count(name, slot.searcher)

    def searcher(self, name: str) -> Searcher:
        """Return what is searched under a name.

        Raises:
            BadRequestError: the server has no such index.
        """
        if name not in self.slots:
            raise BadRequestError(404, f"this server has no {name}; start it with --{name}")
        return self.slots[name].searcher

    def replace(self, name: str, searcher: Searcher) -> None:
        """Search `searcher` from the next batch on; what runs ends with the one before."""
        self.metrics.items.clear()
        self.slots[name].searcher = searcher
        for known, slot in self.slots.items():
            self._count(known, slot.searcher)

    async def find(self, name: str, job: Job) -> Result:
        """Return what a job finds.

        Raises:
            BadRequestError: there is no such index or item (404), the index takes no filter (422), too much
                waits or the server stops (503), or it took too long (504).
        """
        if job.where is not None and job.query is not None and self.searcher(name).words is not None:
            raise BadRequestError(422, f"{self.searcher(name).name} searches words and takes no filter")
        self.searcher(name)
        try:
            async with asyncio.timeout(self.config.timeout_s):
                answer = await self.batcher((name, job))
        except SaturatedError:
            self.metrics.refused.labels("saturated").inc()
            raise BadRequestError(503, "too many searches wait; try again in a second") from None
        except StoppedError:
            raise BadRequestError(503, "the server is being stopped") from None
        except TimeoutError:
            self.metrics.refused.labels("timeout").inc()
            raise BadRequestError(504, f"no answer in {self.config.timeout_s:g} s") from None
        if isinstance(answer, CropsError):
            raise answer if job.item_id is None else BadRequestError(404, str(answer))
        return answer

    def _answer(self, jobs: Sequence[tuple[str, Job]]) -> list[Result | CropsError]:
        """Answer a batch; runs on the batcher's thread."""
        self.metrics.batches.observe(len(jobs))
        answers: dict[int, Result | CropsError] = {}
        for name, slot in self.slots.items():
            rows = [row for row, (asked, _) in enumerate(jobs) if asked == name]
            if rows:
                found = slot.searcher.answer([jobs[row][1] for row in rows])
                answers.update(zip(rows, found, strict=True))
        return [answers[row] for row in range(len(jobs))]

    def _count(self, name: str, searcher: Searcher) -> None:
        self.metrics.items.labels(name, searcher.version).set(searcher.index.manifest.count)
