"""What a server knows and does, whoever asks: one queue, over indexes that may be replaced meanwhile.

It is opened from addresses; what does not fit together is refused before the server starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import sys
import time
import traceback
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from rich.markup import escape

from crops.config import ServingConfig
from crops.engine.evidence import TrainingEvidence
from crops.errors import CropsError, UnknownItemError
from crops.ids import known_numbers, number_of, numbers_of
from crops.outputs import console, recorded, timed
from crops.retrieval import IndexManifest, Model, load_model
from crops.retrieval.index import check_model
from crops.retrieval.uri import Location, current_version, locate, open_index, open_retriever
from crops.serving.evidence import Changes, Expansion, Explained, Explainer, Truth, compare_answers
from crops.serving.searcher import Batcher, Job, Result, Searcher, StoppedError
from crops.text import MINED_QUERY, normalise_query

Made = TypeVar("Made")


class BadRequestError(Exception):
    """A request that cannot be answered; the message says what to change."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.headers = status, headers or {}
        if status == 503:
            self.headers = {"retry-after": "1"}


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
    """The indexes of a server behind one queue, as they share the machine; and the evidence for results."""

    def __init__(
        self,
        slots: dict[str, Slot],
        config: ServingConfig,
        evidence: TrainingEvidence | None = None,
        truth: Truth | None = None,
        expansion: Expansion | None = None,
    ) -> None:
        """Serve `slots`.

        Args:
            slots: by the names `index` and, to compare with, `baseline`.
            evidence: of the samples that the model of `index` was trained on.
            truth: what only a simulation knows.
            expansion: the queries that joined the texts of `index`.
        """
        self.slots, self.config = slots, config
        self.evidence, self.truth, self.expansion = evidence, truth, expansion
        self.explainer: Explainer | None = None
        if evidence is not None:
            with timed({}, f"encode {len(evidence.queries):,} training queries"):
                self.explainer = Explainer(evidence, slots["index"].searcher)
        self.changes = self.compare({name: slot.searcher for name, slot in slots.items()})
        self.batcher: Batcher[Task, object] = Batcher(self._run, config.max_batch, config.max_wait_s / 2)
        self.lag = Lag()
        self.metrics = Metrics(lambda: float(len(self.batcher)), self.lag.seconds)
        self._count()

    def searcher(self, name: str) -> Searcher:
        """Return what is searched under a name.

        Raises:
            BadRequestError: the server has no such index.
        """
        if name not in self.slots:
            raise BadRequestError(404, f"this server has no {name}; start it with --{name}")
        return self.slots[name].searcher

    def compare(self, searchers: Mapping[str, Searcher]) -> Changes | None:
        """Return what changed for the training queries; None where nothing is compared."""
        if self.evidence is None or "baseline" not in searchers:
            return None
        return compare_answers(searchers["baseline"], searchers["index"], self.evidence, self.truth)

    def replace(self, name: str, searcher: Searcher) -> None:
        """Search `searcher` from the next batch on; what runs ends with the one before."""
        self.slots[name].searcher = searcher
        self._count()

    def _count(self) -> None:
        self.metrics.items.clear()
        for name, slot in self.slots.items():
            self.metrics.items.labels(name, slot.searcher.version).set(slot.searcher.index.manifest.count)

    def told(self) -> TrainingEvidence:
        """Return the evidence, or say that there is none.

        Raises:
            BadRequestError: the server has none.
        """
        if self.evidence is None:
            raise BadRequestError(404, "this server knows no training data; start it with --samples")
        return self.evidence

    def explain(self, query: str, items: Sequence[int]) -> Explained:
        """Return the evidence for items that the index finds for a normalised query.

        It computes: call it in the queue (`do`). An item that is not in the index raises `UnknownItemError`.
        """
        if self.explainer is None:
            return Explained(False, (), {})
        return self.explainer.explain(query, items)

    async def numbers(self, name: str, texts: Sequence[str]) -> list[int]:
        """Return the numbers of items from their ids as people give them (`crops.ids.known_numbers`)."""
        known = self.searcher(name).index.known
        if all(len(numbers_of(text)) == 1 for text in texts):
            return [number_of(text.strip()) for text in texts]
        found = await self.do(partial(known_numbers, texts, known))  # it looks into the index
        return cast(list[int], found.tolist())

    async def find(self, name: str, job: Job) -> Result:
        """Return what a job finds.

        Raises:
            BadRequestError: there is no such index or item (404), or the index takes no filter (422).
        """
        if self.searcher(name).words is not None and job.where is not None and job.query is not None:
            raise BadRequestError(422, "this index searches words and takes no filter")
        return cast(Result, await self._queued(Search(name, job)))

    async def do(self, work: Callable[[], Made]) -> Made:
        """Return what any other work makes, in its turn, or raise what it raises."""
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
        searches: dict[str, list[int]] = {}
        for row, task in enumerate(tasks):
            if isinstance(task, Search):
                searches.setdefault(task.name, []).append(row)
                continue
            try:
                answers[row] = task()
            except Exception as error:  # it belongs to the one who asked
                answers[row] = error
        for name, rows in searches.items():
            jobs = [cast(Search, tasks[row]).job for row in rows]
            for row, found in zip(rows, self.slots[name].searcher.answer(jobs), strict=True):
                answers[row] = found
        return answers


def open_service(
    indexes: Mapping[str, tuple[str, str]],
    config: ServingConfig,
    samples: Path | None = None,
    logs: Path | None = None,
    truth: Path | None = None,
    model: str | None = None,
    expanded: Path | None = None,
) -> Service:
    """Open everything that a server serves.

    Args:
        indexes: address and name of `index` and, to compare with, of `baseline`.
        samples: the mining behind the model of `index`; no evidence without it.
        logs: the logs of that mining, where they are not where it found them.
        model: encodes the queries in place of the model that an index names; only where it is the same one.
        expanded: the expansion that `index` was built with.

    Raises:
        CropsError: something is not there or does not fit, see `open_searcher` and `TrainingEvidence`.
    """
    if config.torch_threads is not None:
        import torch

        torch.set_num_threads(config.torch_threads)
    models = [load_model(model)] if model else []
    slots: dict[str, Slot] = {}
    seconds: dict[str, float] = {}
    for place, (uri, name) in indexes.items():
        with timed(seconds, f"load the index {escape(name)}"):
            slots[place] = Slot(open_searcher(uri, name, models), uri)
        if (loaded := slots[place].searcher.model) is not None:
            models.append(loaded)
    if model and slots["index"].searcher.model is not models[0]:
        check_model(slots["index"].searcher.index.manifest, models[0])
    known = Truth(truth, samples, logs) if truth else None
    expansion = Expansion(expanded, config.shown_users) if expanded else None
    if expansion and MINED_QUERY not in slots["index"].searcher.index.manifest.fields:
        raise CropsError(
            f"{indexes['index'][0]} was built without an expansion; build it with --expanded {expanded}"
        )
    evidence = None
    if samples is not None:
        with timed(seconds, "read the evidence"):
            evidence = TrainingEvidence(samples, logs, k=config.shown_users, limit=config.evidence_queries)
        if len(evidence.queries) < min(evidence.asked, config.evidence_queries):
            console.print(
                f"evidence is shown for {len(evidence.queries):,} of {evidence.asked:,} training queries, "
                f"those of at least {evidence.k} people; --shown-users N sets another limit",
                highlight=False,
            )
    return Service(slots, config, evidence, known, expansion)


def open_searcher(uri: str, name: str, known: Sequence[Model] = ()) -> Searcher:
    """Open an index with the model that it was built with; a first search loads what is loaded late.

    `uri` is `FOLDER`, or `exact:`, `faiss:`, `milvus:`, `bm25:` or `hybrid:` with what follows; `known` are
    models that are loaded already.

    Raises:
        CropsError: there is no such index, a file of it is damaged, or its model is gone or another one.
    """
    location = locate(uri)
    by_words = location.scheme in ("bm25", "hybrid")
    index = open_index(f"faiss:{location.target}" if by_words else uri)
    loaded: Model | None = None
    if location.scheme != "bm25":
        loaded = next((one for one in known if one.hash == index.manifest.model_hash), None)
        loaded = loaded or load_model(_model_of(index.manifest, location))
        check_model(index.manifest, loaded)
    searcher = Searcher(name, index, loaded, open_retriever(uri, loaded) if by_words else None)
    answer = searcher.answer([Job(1, "warm up")])[0]
    if isinstance(answer, Exception):
        raise answer
    return searcher


def _model_of(manifest: IndexManifest, location: Location) -> str:
    """Return the name of the model of an index, or the path where it is now."""
    if not Path(manifest.model).is_absolute():
        return manifest.model
    found = recorded(manifest.model, location.folder, manifest.made_in)
    if not found.is_dir():
        raise CropsError(
            f"{location.target} was built with the model {manifest.model}, and there is no such folder any "
            "more; say with --model where it is now"
        )
    return str(found)


@contextlib.asynccontextmanager
async def watching(service: Service) -> AsyncIterator[None]:
    """Look for new versions of all indexes while the block runs; they go into service while requests run."""
    tasks = [asyncio.create_task(_watch(service, name)) for name, slot in service.slots.items() if slot.uri]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(service: Service, name: str) -> None:
    slot = service.slots[name]
    failed: str | None = None
    while True:
        await asyncio.sleep(service.config.reload_s)
        version = failed
        try:
            version = await asyncio.to_thread(current_version, slot.uri or "")
            if version not in (slot.searcher.version, failed):
                await reload(service, name)
            if version == slot.searcher.version:
                failed = None
        except Exception as error:  # whatever it is, what is in service stays, and the watch continues
            if version != failed or failed is None:
                service.metrics.reloads.labels(name, "failed").inc()
                log_failure("reload", error, message=True, index=name, version=version)
            failed = version or ""


async def reload(service: Service, name: str) -> None:
    """Open the version of an index that is current now, and search it from the next batch on.

    Where it cannot be opened, the former one stays in service.

    Raises:
        CropsError: it cannot be opened; the former one stays in service.
    """

    def opened() -> tuple[Searcher, Explainer | None, Changes | None]:  # beside the requests
        slot = service.slots[name]
        models = [one.searcher.model for one in service.slots.values() if one.searcher.model]
        searcher = open_searcher(slot.uri or "", slot.searcher.name, models)
        explainer = service.explainer if name == "index" else None
        others = {place: one.searcher for place, one in service.slots.items()}
        return searcher, explainer and explainer.on(searcher), service.compare({**others, name: searcher})

    searcher, explainer, changes = await asyncio.to_thread(opened)
    service.replace(name, searcher)
    service.changes = changes
    service.explainer = explainer or service.explainer
    service.metrics.reloads.labels(name, "done").inc()
    log_event("reload", index=name, version=searcher.version, items=searcher.index.manifest.count)


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
    """Return k, if it is a length of a list that the server gives.

    Raises:
        BadRequestError: it is no length of a list that the server gives.
    """
    if not 1 <= k <= most:
        raise BadRequestError(422, f"k = {k}: ask for 1 to {most:,} results")
    return k


# What the server says about itself: Prometheus metrics, and one line of JSON for each request.

LOGGER = logging.getLogger("crops.serving")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_TICK = 0.05
"""Seconds between two measurements of the event loop's lag."""


class Lag:
    """How late the event loop is: what it does now should have been done so long ago."""

    def __init__(self) -> None:
        """Know of no lag until `watch` runs."""
        self._last, self._due = 0.0, math.inf

    def seconds(self) -> float:
        """Return the lag."""
        return max(self._last, time.monotonic() - self._due, 0.0)

    async def watch(self) -> None:
        """Measure for ever, by how late this is woken."""
        while True:
            self._due = time.monotonic() + _TICK
            await asyncio.sleep(_TICK)
            self._last = time.monotonic() - self._due


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self, waiting: Callable[[], float], lag: Callable[[], float]) -> None:
        """Make them all at zero; `waiting` is the number of requests that do, `lag` that of the loop."""
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        counted = ["route", "status"]
        self.requests = Counter("crops_requests_total", "Requests answered.", counted, **own)
        told = "Time from the arrival at the machine to the end of the answer."
        self.seconds = Histogram("crops_request_seconds", told, ["route"], buckets=_SECONDS, **own)
        self.batches = Histogram("crops_batch_requests", "Requests in a batch.", buckets=_SIZES, **own)
        self.refused = Counter("crops_refused_total", "Requests refused.", ["reason"], **own)
        self.active = Gauge("crops_active_requests", "Requests under way.", **own)
        done = ["index", "result"]
        self.reloads = Counter("crops_reloads_total", "New versions of an index.", done, **own)
        self.items = Gauge("crops_index_items", "Items of the index.", ["index", "version"], **own)
        queue = Gauge("crops_waiting_requests", "Requests that wait for their turn.", **own)
        queue.set_function(waiting)
        Gauge("crops_loop_lag_seconds", "How late the event loop is.", **own).set_function(lag)


def log_event(event: str, **fields: object) -> None:
    """Log what happened, as JSON."""
    LOGGER.info(event, extra={"fields": fields})


def log_failure(event: str, error: BaseException, *, message: bool, **fields: object) -> None:
    """Log an error with the lines of code it came through, and its `message`, which may quote a query."""
    frames = traceback.extract_tb(error.__traceback__)
    trace = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    said = {"message": str(error)} if message else {}
    LOGGER.error(event, extra={"fields": {**fields, "error": type(error).__name__, **said, "trace": trace}})


class JsonLines(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: time (UTC), level, event, and the fields."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return json.dumps(line, ensure_ascii=True, default=str)


@contextlib.contextmanager
def logging_to_stdout() -> Iterator[None]:
    """Send the server's log, and uvicorn's warnings, to stdout as lines of JSON, until the end of the block.

    A handler that is left keeps this module alive until the process is gone, which DuckDB reports as leaks.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    before = []
    for name, level in (("crops.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        before.append((logger, logger.handlers[:], logger.level, logger.propagate))
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, handlers, level, logger.propagate in before:
            logger.handlers[:] = handlers
            logger.setLevel(level)
