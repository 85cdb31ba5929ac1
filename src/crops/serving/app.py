"""The web application: endpoints, pages, and what stands before them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.resources
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Self

import numpy as np
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Scope

from crops.engine.evidence import TrainingEvidence
from crops.errors import UnknownItemError
from crops.labels import POSITIVE_ORIGINS, Source
from crops.outputs import versions
from crops.report.render import label_meanings
from crops.retrieval.catalogue import Filter
from crops.serving.door import Door, Refusal, failed, refusal_json
from crops.serving.evidence import Explained, NearPair, NearQuery
from crops.serving.opening import Desk
from crops.serving.searcher import Job, Result
from crops.serving.service import (
    BadRequestError,
    ExplainRequest,
    SearchRequest,
    SimilarRequest,
    Wanted,
    check_k,
    check_query,
)
from crops.serving.view import SOURCE_NAMES, SOURCE_TONES, State, columns, filtered, headline, source_names
from crops.text import query_id

_PAGES = ("/", "/group")

_FAULTS = 3

"""Faults of a body that are named; a list of ids may hold thousands."""

Background = Callable[[], AbstractAsyncContextManager[None]]


def make_app(
    desk: Desk, api_key: str | None = None, background: Background = contextlib.nullcontext
) -> ASGIApp:
    """Return the ASGI application over what a server knows.

    Args:
        desk: the indexes and the evidence.
        api_key: what every request but /healthz must carry; open to all when None.
        background: a context that is entered while the application runs (the watch for new versions).
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(desk.service.lag.watch())
        async with background():
            yield
        watching.cancel()
        await desk.service.batcher.stop()
        if desk.evidence is not None:
            desk.evidence.close()

    # The pages of FastAPI that draw the OpenAPI document load scripts from elsewhere: there are none here.
    app = FastAPI(
        title="crops",
        version=versions()["crops"],
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would go wherever the Host header says
    )
    explorer = Explorer(desk)
    app.include_router(make_api(desk))
    app.include_router(make_pages(explorer))

    def refusal(scope: Scope, status: int, detail: str) -> Response:
        """Answer in the form that was asked for: a page to a browser, JSON to a program."""
        if scope["path"] not in _PAGES:
            return refusal_json(scope, status, detail)
        return explorer.error(status, detail, Request(scope).query_params.get("q", ""))

    _explain_errors(app, refusal)
    return Door(app, desk.service, api_key, refusal)


def _explain_errors(app: FastAPI, refusal: Refusal) -> None:
    """Say what is wrong with a request."""

    @app.exception_handler(BadRequestError)
    async def bad_request(request: Request, error: BadRequestError) -> Response:
        response = refusal(request.scope, error.status, str(error))
        if error.status == 503:
            response.headers["retry-after"] = "1"
        return response

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        response = refusal(request.scope, error.status_code, str(error.detail))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failure(request: Request, _: Exception) -> Response:
        return refusal(request.scope, 500, failed(request.state.id))  # the door logs it

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refusal(request.scope, *explain_invalid(request.headers.get("content-type", ""), error))


def explain_invalid(content_type: str, error: RequestValidationError) -> tuple[int, str]:
    """Return the status and the text for a body that is not what an endpoint takes."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        given = content_type[:80] or "no content type"
        return 415, f"the body came as {given}; send JSON with content-type: application/json"
    faults = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"][1:])
        faults.append(f"{where}: {fault['msg']}" if where else str(fault["msg"]))
    more = [f"and {len(faults) - _FAULTS:,} more"] if len(faults) > _FAULTS else []
    return 422, "; ".join(faults[:_FAULTS] + more)


class Problem(BaseModel):
    """Why there is no answer, and what to change."""

    detail: str


# ------------------------------------------------------------------------------
# The JSON endpoints.


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 404, 408, 413, 415, 422, 431, 500, 503, 504)
}


def make_api(desk: Desk) -> APIRouter:
    """Return the endpoints over what a server knows."""
    router = APIRouter(responses=_PROBLEMS)
    service, config = desk.service, desk.service.config

    @router.post("/search", summary="Find items for a text")
    async def search(asked: SearchRequest, request: Request) -> SearchReply:
        query = check_query(asked.query, config)
        job = Job(check_k(asked.k, config.max_k), query, where=_filter(asked.where), texts=asked.texts)
        result = await service.find(asked.index, job)
        facts = {"query": query} if config.log_queries else {}
        _note(request, index=asked.index, version=result.version, k=asked.k, letters=len(query), **facts)
        return _reply(asked.index, result)

    @router.post("/similar", summary="Find items like an item")
    async def similar(asked: SimilarRequest, request: Request) -> SearchReply:
        where = _filter(asked.where)
        job = Job(check_k(asked.k, config.max_k), item_id=asked.item_id, where=where, texts=asked.texts)
        result = await service.find(asked.index, job)
        _note(request, index=asked.index, version=result.version, k=asked.k)
        return _reply(asked.index, result)

    @router.post("/explain", summary="Say which training pairs speak for items")
    async def explain(asked: ExplainRequest) -> ExplainReply:
        return await _explain(desk, check_query(asked.query, config), asked.item_ids)

    @router.get("/healthz", summary="Whether the server answers, and with which versions")
    async def health() -> Health:
        return Health(
            status="ok", versions={name: slot.searcher.version for name, slot in service.slots.items()}
        )

    @router.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


async def _explain(desk: Desk, query: str, items: list[int]) -> ExplainReply:
    if desk.evidence is None:
        raise BadRequestError(404, "this server knows no training data; start it with --samples")
    explained = await desk.service.do(partial(desk.explain, query, items))
    traces = [
        Trace(item_id=str(item), pairs=[Because.of(pair) for pair in explained.pairs[item]]) for item in items
    ]
    queries = [Near.of(near) for near in explained.queries]
    return ExplainReply(k=desk.evidence.k, known=explained.known, queries=queries, items=traces)


def _filter(wanted: Wanted | None) -> Filter | None:
    if wanted is None:
        return None
    values = wanted.model_dump()
    if wanted.item_ids is not None:
        values["item_ids"] = np.array(wanted.item_ids, dtype=np.int64)
    return Filter(**values)


def _note(request: Request, **facts: object) -> None:
    """Add facts to the request's line of log."""
    request.scope["state"]["noted"] = facts


def _reply(index: str, result: Result) -> SearchReply:
    titles: list[tuple[str, str] | tuple[None, None]]
    titles = [(one.title, one.text) for one in result.documents] or [(None, None)] * len(result.ids)
    hits = [
        Hit(rank=rank, item_id=str(item), score=score, title=title, text=text)
        for rank, (item, score, (title, text)) in enumerate(
            zip(result.ids, result.scores, titles, strict=True), 1
        )
    ]
    return SearchReply(index=index, version=result.version, hits=hits, note=result.note)


# ------------------------------------------------------------------------------
# The explorer: pages made on the server, without a script; the address holds all of their state.


_EXAMPLES = 12

"""Training queries that the first page offers."""

_LENGTHS = (10, 20, 50)

"""Results that a page offers to show; more than the last are too much for one."""

_FOREVER = "public, max-age=31536000, immutable"


class Explorer:
    """Makes the pages."""

    def __init__(self, desk: Desk) -> None:
        """Make pages of what `desk` knows."""
        self._desk = desk
        self.style = _style()
        self._environment = _environment(hashlib.sha256(self.style.encode()).hexdigest()[:12])

    async def explore(self, request: Request) -> HTMLResponse:
        """Return the page of a search, or the first page where nothing is searched."""
        state, config = State.read(request.query_params), self._desk.service.config
        if not state.q.strip():
            examples = self._desk.evidence.queries[:_EXAMPLES] if self._desk.evidence else ()
            return self._page("start.html", state=State(), examples=examples)
        query = check_query(state.q, config)
        job = Job(check_k(state.k, min(config.max_k, _LENGTHS[-1])), query)
        return await self._desk.service.do(partial(self._results, state, job))

    def _results(self, state: State, job: Job) -> HTMLResponse:
        """Return the page of a search; runs in the queue."""
        desk, query = self._desk, job.query or ""
        results = {
            name: (slot.searcher.name, _found(slot.searcher.answer([job])[0]))
            for name, slot in desk.service.slots.items()
        }
        explained = self._explained(query, state.open)
        stages = desk.evidence.stages(query_id(query)) if desk.evidence else None
        full = columns(results, explained, stages, desk.senses)
        compared = len(full) == 2
        about = "senses" if desk.senses else "categories"
        return self._page(
            "results.html",
            state=state,
            columns=[filtered(column, state, compared=compared) for column in full],
            compared=compared,
            topics=sorted({entry.topic for column in full for entry in column.entries if entry.topic}),
            headline=headline(full[0], full[1], about) if compared else None,
            explained=explained,
        )

    def _explained(self, query: str, opened: int | None) -> Explained:
        """Return the evidence near the query, and that of the result that is open."""
        try:
            return self._desk.explain(query, [] if opened is None else [opened])
        except UnknownItemError:  # an old link: the item has left the index
            return self._desk.explain(query, [])

    async def group(self, request: Request) -> HTMLResponse:
        """Return the page of a query's training group.

        Raises:
            BadRequestError: there are no samples, or the query is none of at least k users.
        """
        query = check_query(request.query_params.get("q", ""), self._desk.service.config)
        if self._desk.evidence is None:
            raise BadRequestError(404, "this server knows no training data; start it with --samples")
        return await self._desk.service.do(partial(self._group, self._desk.evidence, query))

    def _group(self, evidence: TrainingEvidence, query: str) -> HTMLResponse:
        """Return the page of a training group; runs in the queue."""
        known = evidence.query(query_id(query))
        if known is None:
            raise BadRequestError(404, f"“{query}” is no training query of at least {evidence.k} people")
        pairs = evidence.group(known.query_id)
        labels = sorted({pair.label for pair in pairs}, reverse=True)
        return self._page(
            "group.html",
            state=State(q=query),
            known=known,
            levels=[(label, [pair for pair in pairs if pair.label == label]) for label in labels],
            meanings=label_meanings(),
        )

    def error(self, status: int, detail: str, asked: str = "") -> HTMLResponse:
        """Return the page that says what is wrong with a request."""
        return self._page("error.html", status, state=State(q=asked), detail=detail)

    def _page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:  # noqa: ANN401 (any template)
        text = self._environment.get_template(name).render(desk=self._desk, lengths=_LENGTHS, **values)
        page = HTMLResponse(status_code=status, headers={"cache-control": "no-store"})
        # A broken letter in a stored title is no reason to fail.
        page.body = text.encode(errors="replace")
        page.headers["content-length"] = str(len(page.body))
        return page


def _found(answer: Result | Exception) -> Result:
    if isinstance(answer, Exception):
        raise answer
    return answer


def make_pages(explorer: Explorer) -> APIRouter:
    """Return the routes of the pages."""
    router = APIRouter(include_in_schema=False)
    router.add_api_route("/", explorer.explore, response_class=HTMLResponse)
    router.add_api_route("/group", explorer.group, response_class=HTMLResponse)

    @router.get("/static/explorer.css")
    async def style() -> Response:
        return Response(explorer.style, media_type="text/css", headers={"cache-control": _FOREVER})

    return router


def _style() -> str:
    """Return the report's style sheet and the explorer's own."""
    sheets = (("crops.report", "style.css"), ("crops.serving", "explorer.css"))
    folders = ((importlib.resources.files(package) / "templates", name) for package, name in sheets)
    return "\n".join((folder / name).read_text(encoding="utf-8") for folder, name in folders)


def _environment(style_version: str) -> Environment:
    environment = Environment(
        loader=PackageLoader("crops.serving"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["source_names"] = source_names
    environment.globals.update(
        style_version=style_version,
        source_choices=list(SOURCE_NAMES.values()),
        source_tones=SOURCE_TONES,
        source_meanings={SOURCE_NAMES[row.bit]: row.meaning for row in POSITIVE_ORIGINS},
    )
    return environment


# ------------------------------------------------------------------------------
# What is answered, as JSON; ids are strings, as many readers round numbers above 2^53.


class Hit(BaseModel):
    """An item that was found."""

    rank: int
    item_id: str
    score: float
    title: str | None
    text: str | None


class SearchReply(BaseModel):
    """What was found, best first, and in which version of the index."""

    index: str
    version: str
    hits: list[Hit]
    note: str | None = None
    """Why nothing was found, where that is known."""


class Told(BaseModel):
    """What a source says; counts are null where they stand for too few people."""

    source: str
    events: int | None
    users: int | None
    items: int | None = None
    via: list[str] = []
    """Later queries of enough people under which an item was consumed (P1)."""


class Near(BaseModel):
    """A training query near the one asked."""

    query: str
    similarity: float
    searches: int
    users: int
    positives: list[Told]

    @classmethod
    def of(cls, near: NearQuery) -> Self:
        """Return what is told of it."""
        totals = [
            Told(source=_name(total.source), events=total.events, users=total.users, items=total.items)
            for total in near.query.by_source
        ]
        query = near.query
        return cls(
            query=query.text,
            similarity=near.similarity,
            searches=query.searches,
            users=query.users,
            positives=totals,
        )


class Because(BaseModel):
    """A training pair that speaks for an item."""

    query: str
    query_similarity: float
    item_id: str
    """Negative: a document that a language model wrote."""
    title: str
    item_similarity: float
    label: int
    sources: list[str]
    written_by: str | None
    evidence: list[Told]

    @classmethod
    def of(cls, near: NearPair) -> Self:
        """Return what is told of it."""
        pair = near.pair
        told = [
            Told(source=_name(trail.source), events=trail.events, users=trail.users, via=list(trail.via))
            for trail in pair.trails
        ]
        return cls(
            query=near.near.query.text,
            query_similarity=near.near.similarity,
            item_id=str(pair.item_id),
            title=pair.document.title,
            item_similarity=near.similarity,
            label=pair.label,
            sources=source_names(pair.sources),
            written_by=pair.model,
            evidence=told,
        )


class Trace(BaseModel):
    """An item with the training pairs that speak for it, the nearest first."""

    item_id: str
    pairs: list[Because]


class ExplainReply(BaseModel):
    """Why items are found for a query."""

    k: int
    """Whatever is named or counted stands for at least this many people."""
    known: bool
    """Whether the query itself is a training query of at least k people."""
    queries: list[Near]
    items: list[Trace]


class Health(BaseModel):
    """That the server answers."""

    status: str
    versions: dict[str, str]


def _name(source: Source) -> str:
    return SOURCE_NAMES[source]
