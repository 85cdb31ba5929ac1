"""What the server does, whoever asks: all work in one queue, over indexes that may be replaced meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

from crops.config import ServingConfig
from crops.errors import UnknownItemError
from crops.serving.batching import Batcher, StoppedError
from crops.serving.inputs import BadRequestError
from crops.serving.searcher import Job, Result, Searcher
from crops.serving.telemetry import Lag, Metrics

Made = TypeVar("Made")


class Search(NamedTuple):
    """A search in one of the indexes."""

    name: str
    job: Job


Task = Search | Callable[[], object]
"""What the queue runs: searches together, anything else one by one."""


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
        self.batcher: Batcher[Task, object] = Batcher(self._run, config.max_batch, config.max_wait_s / 2)
        self.lag = Lag()
        self.metrics = Metrics(lambda: float(len(self.batcher)), self.lag.seconds)
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
            BadRequestError: there is no such index or item (404), or the index takes no filter (422).
        """
        if job.where is not None and job.query is not None and self.searcher(name).words is not None:
            raise BadRequestError(422, "this index searches words and takes no filter")
        self.searcher(name)
        return cast(Result, await self._queued(Search(name, job)))

    async def do(self, work: Callable[[], Made]) -> Made:
        """Return what any other work makes, in its turn.

        Raises:
            BadRequestError: it names an item that is not in the index (404), or whatever the work raises.
        """
        return cast(Made, await self._queued(work))

    async def _queued(self, task: Task) -> object:
        try:
            answer = await self.batcher(task)
        except StoppedError:
            raise BadRequestError(503, "the server is being stopped") from None
        if isinstance(answer, UnknownItemError):  # where the index is, is not told
            raise BadRequestError(404, f"item_id {answer.item_id} is not in the index") from answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _run(self, tasks: Sequence[Task]) -> list[object]:
        """Answer a batch; runs on the batcher's thread. An error is the answer of the task that raised it."""
        self.metrics.batches.observe(len(tasks))
        answers: list[object] = [None] * len(tasks)
        for name, slot in self.slots.items():
            jobs = {
                row: task.job
                for row, task in enumerate(tasks)
                if isinstance(task, Search) and task.name == name
            }
            if jobs:
                for row, answer in zip(jobs, slot.searcher.answer(list(jobs.values())), strict=True):
                    answers[row] = answer
        for row, task in enumerate(tasks):
            if not isinstance(task, Search):
                answers[row] = _tried(task)
        return answers

    def _count(self, name: str, searcher: Searcher) -> None:
        self.metrics.items.labels(name, searcher.version).set(searcher.index.manifest.count)


def _tried(work: Callable[[], object]) -> object:
    try:
        return work()
    except Exception as error:  # it belongs to the one who asked
        return error
