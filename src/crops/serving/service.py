"""What the server does, whoever asks: all work in one queue, over indexes that may be replaced meanwhile."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from crops.config import ServingConfig
from crops.errors import UnknownItemError
from crops.serving.searcher import Batcher, Job, Result, Searcher, StoppedError
from crops.serving.telemetry import Lag, Metrics
from crops.text import normalise_query

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


# ------------------------------------------------------------------------------
# What may be asked, and what is said to a request that cannot be answered.


_EXACT = 2**53 - 1

"""The largest whole number that every reader of JSON keeps."""


def _read_id(given: object) -> object:
    """Return an id of 64 bits, from the string of its digits or from a number that no reader rounds.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(given, str) and re.fullmatch("0|-?[1-9][0-9]{0,18}", given):
        if -(2**63) <= int(given) < 2**63:
            return int(given)
    elif isinstance(given, int) and not isinstance(given, bool):
        if abs(given) <= _EXACT:
            return given
        raise PydanticCustomError(
            "id",
            "a number above 2^53 may have been rounded on its way; send the id as a string of digits",
        )
    raise PydanticCustomError("id", "an id is a string of digits, within 64 bits")


Id = Annotated[
    int,
    BeforeValidator(_read_id),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": "^(0|-?[1-9][0-9]{0,18})$"},
                {"type": "integer", "minimum": -_EXACT, "maximum": _EXACT},
            ]
        }
    ),
]

"""An id of 64 bits: many readers of JSON round numbers above 2^53, so it travels as a string."""

Moment = Annotated[int, Field(ge=-(2**63), lt=2**63)]

Which = Literal["index", "baseline"]


class BadRequestError(Exception):
    """A request that cannot be answered; the message says what to change."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Request(BaseModel):
    """What every request is: JSON whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Wanted(Request):
    """Which items may be found; all that is given must hold."""

    item_ids: Annotated[list[Id], Field(max_length=10_000)] | None = None
    author_id: Id | None = None
    category: str | None = Field(None, max_length=200)
    uploaded_since: Moment | None = None
    """Microseconds since 1970 UTC, inclusive."""
    uploaded_before: Moment | None = None
    """Microseconds since 1970 UTC, exclusive."""


class ListRequest(Request):
    """What every request for a list of items may say."""

    k: int = 10
    """Length of the list."""
    where: Wanted | None = None
    index: Which = "index"
    """`baseline` asks the index that is compared with, where the server has one."""
    texts: bool = True
    """Whether titles and texts are wanted, or ids and scores only."""


class SearchRequest(ListRequest):
    """Find items for a text."""

    query: str


class SimilarRequest(ListRequest):
    """Find items like an item."""

    item_id: Id


class ExplainRequest(Request):
    """Say which training pairs speak for items as answers to a text."""

    query: str
    item_ids: list[Id] = Field(min_length=1, max_length=100)


def check_query(text: str, config: ServingConfig) -> str:
    """Return a query as it is searched: normalised.

    Raises:
        BadRequestError: it is empty, too long, or holds half of a surrogate pair.
    """
    if len(text) > config.max_query_chars:
        raise BadRequestError(
            422, f"the query has {len(text):,} characters; at most {config.max_query_chars:,} are searched"
        )
    half = next((letter for letter in text if unicodedata.category(letter) == "Cs"), None)
    if half is not None:
        raise BadRequestError(
            422, f"the query holds U+{ord(half):04X}, half of a character; send the text that was typed"
        )
    query = normalise_query(text)
    if not query:
        raise BadRequestError(422, "the query is empty; give at least one word")
    return query


def check_k(k: int, most: int) -> int:
    """Return k.

    Raises:
        BadRequestError: it is no length of a list that the server gives.
    """
    if not 1 <= k <= most:
        raise BadRequestError(422, f"k = {k}: ask for 1 to {most:,} results")
    return k
