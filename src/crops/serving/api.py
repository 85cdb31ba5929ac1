"""The JSON of the server: what may be asked, what is answered, and the endpoints.

Ids are strings, as many readers of JSON round numbers above 2^53; those of items are as their source writes
them.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from fastapi import APIRouter, Response
from fastapi import Request as HTTPRequest
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from crops.engine.evidence import SourceCounts, Trail
from crops.errors import UnknownItemError
from crops.ids import numbers_of
from crops.retrieval.catalogue import Filter
from crops.serving.evidence import NearPair, NearQuery
from crops.serving.explorer import SOURCE_NAMES, source_names
from crops.serving.searcher import Job
from crops.serving.service import BadRequestError, Service, check_k, check_query

Made = TypeVar("Made")
_EXACT = 2**53 - 1
"""The largest whole number that every reader of JSON keeps."""


def _read_id(given: object) -> object:
    """Return an id of 64 bits, from the string of its digits or from a number that no reader rounds."""
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


def _read_item(given: object) -> object:
    """Return the text of an item's id: the source's own, or a whole number."""
    if not isinstance(given, str):
        return str(_read_id(given))
    if not given.strip() or any("\ud800" <= letter <= "\udfff" for letter in given):
        raise PydanticCustomError("id", "an id is a text, as the source writes it, or a whole number")
    return given


_NUMBER = {"type": "integer", "minimum": -_EXACT, "maximum": _EXACT}
_TEXT = {"type": "string", "minLength": 1}
_DIGITS = {"type": "string", "pattern": "^(0|-?[1-9][0-9]{0,18})$"}
ItemId = Annotated[str, BeforeValidator(_read_item), WithJsonSchema({"anyOf": [_TEXT, _NUMBER]})]
"""The id of an item as its source writes it, or its number."""
Id = Annotated[int, BeforeValidator(_read_id), WithJsonSchema({"anyOf": [_DIGITS, _NUMBER]})]
"""An id of 64 bits: many readers of JSON round numbers above 2^53, so it travels as a string."""
_Moment = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Request(BaseModel):
    """What every request is: JSON whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Wanted(Request):
    """Which items may be found; all that is given must hold."""

    item_ids: Annotated[list[ItemId], Field(max_length=10_000)] | None = None
    author_id: Id | None = None
    category: str | None = Field(None, max_length=200)
    uploaded_since: _Moment | None = None
    """Microseconds since 1970 UTC, inclusive."""
    uploaded_before: _Moment | None = None
    """Microseconds since 1970 UTC, exclusive."""


class ListRequest(Request):
    """What every request for a list of items may say."""

    k: int = 10
    """Length of the list."""
    where: Wanted | None = None
    index: Literal["index", "baseline"] = "index"
    """`baseline` asks the index that is compared with, where the server has one."""
    texts: bool = True
    """Whether titles and texts are wanted, or ids and scores only."""


class SearchRequest(ListRequest):
    """Find items for a text."""

    query: str


class SimilarRequest(ListRequest):
    """Find items like an item."""

    item_id: ItemId


class ExplainRequest(Request):
    """Say which training pairs speak for items as answers to a text."""

    query: str
    item_ids: list[ItemId] = Field(min_length=1, max_length=100)


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


class SourceEvidence(BaseModel):
    """What a source says; counts are null where they stand for too few people."""

    source: str
    events: int | None
    users: int | None
    items: int | None = None
    via: list[str] = []
    """Later queries of enough people under which an item was consumed (P1)."""

    @classmethod
    def of(cls, told: SourceCounts | Trail) -> Self:
        """Return what is told of a training query or a pair."""
        own = {"items": told.items} if isinstance(told, SourceCounts) else {"via": list(told.via)}
        return cls(source=SOURCE_NAMES[told.source], events=told.events, users=told.users, **own)


class SimilarQuery(BaseModel):
    """A training query near the one asked."""

    query: str
    similarity: float
    searches: int
    users: int
    positives: list[SourceEvidence]

    @classmethod
    def of(cls, near: NearQuery) -> Self:
        """Return what is told of it."""
        query = near.query
        return cls(
            query=query.text,
            similarity=near.similarity,
            searches=query.searches,
            users=query.users,
            positives=[SourceEvidence.of(counts) for counts in query.by_source],
        )


class SupportingPair(BaseModel):
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
    evidence: list[SourceEvidence]

    @classmethod
    def of(cls, near: NearPair) -> Self:
        """Return what is told of it."""
        pair = near.pair
        return cls(
            query=near.near.query.text,
            query_similarity=near.near.similarity,
            item_id=pair.shown,
            title=pair.document.title,
            item_similarity=near.similarity,
            label=pair.label,
            sources=source_names(pair.sources),
            written_by=pair.model,
            evidence=[SourceEvidence.of(trail) for trail in pair.trails],
        )


class AddedQuery(BaseModel):
    """A query that an expansion joined to the text of an item."""

    query: str
    sources: list[str]
    via: str | None
    """The later query of most people, under which the item was consumed (P1)."""
    users: int | None


class ItemExplanation(BaseModel):
    """An item with the training pairs that speak for it, the nearest first."""

    item_id: str
    pairs: list[SupportingPair]
    added: list[AddedQuery] = []


class ExplainReply(BaseModel):
    """Why items are found for a query."""

    k: int
    """Whatever is named or counted stands for at least this many people."""
    known: bool
    """Whether the query itself is a training query of at least k people."""
    queries: list[SimilarQuery]
    items: list[ItemExplanation]


class Health(BaseModel):
    """That the server answers."""

    status: str
    versions: dict[str, str]


class Problem(BaseModel):
    """Why there is no answer, and what to change."""

    detail: str


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 404, 408, 413, 415, 422, 431, 500, 503, 504)
}


def make_api(service: Service) -> APIRouter:
    """Return the endpoints over what a server knows."""
    router = APIRouter(responses=_PROBLEMS)
    config = service.config

    @router.post("/search", summary="Find items for a text")
    async def search(asked: SearchRequest, request: HTTPRequest) -> SearchReply:
        query = check_query(asked.query, config)
        noted = {"letters": len(query), **({"query": query} if config.log_queries else {})}
        return await find(asked, request, noted, query=query)

    @router.post("/similar", summary="Find items like an item")
    async def similar(asked: SimilarRequest, request: HTTPRequest) -> SearchReply:
        (number,) = await service.numbers(asked.index, [asked.item_id])
        return await _naming({number: asked.item_id}, find(asked, request, {}, item_id=number))

    async def find(
        asked: ListRequest,
        request: HTTPRequest,
        noted: dict[str, object],
        query: str | None = None,
        item_id: int | None = None,
    ) -> SearchReply:
        where = None
        if asked.where is not None:
            values = asked.where.model_dump()
            if asked.where.item_ids is not None:
                numbers = [number for text in asked.where.item_ids for number in numbers_of(text)]
                values["item_ids"] = np.array(numbers, dtype=np.int64)
            where = Filter(**values)
        job = Job(check_k(asked.k, config.max_k), query, item_id, where, asked.texts)
        result = await service.find(asked.index, job)
        known = {"index": asked.index, "version": result.version, "k": asked.k}
        request.scope["state"]["noted"] = known | noted  # for the request's line of log
        texts: list[tuple[str | None, str | None]]
        texts = [(one.title, one.text) for one in result.documents] or [(None, None)] * len(result.ids)
        found = zip(result.shown, result.scores, texts, strict=True)
        hits = [
            Hit(rank=rank, item_id=item, score=score, title=title, text=text)
            for rank, (item, score, (title, text)) in enumerate(found, 1)
        ]
        return SearchReply(index=asked.index, version=result.version, hits=hits, note=result.note)

    @router.post("/explain", summary="Say which training pairs speak for items")
    async def explain(asked: ExplainRequest) -> ExplainReply:
        query = check_query(asked.query, config)
        evidence = service.told()
        numbers = await service.numbers("index", asked.item_ids)
        given = dict(zip(numbers, asked.item_ids, strict=True))
        explained = await _naming(given, service.do(partial(service.explain, query, numbers)))
        items = [
            ItemExplanation(
                item_id=given[item],
                pairs=[SupportingPair.of(pair) for pair in explained.pairs[item]],
                added=[
                    AddedQuery(**{**vars(one), "sources": source_names(one.sources)})
                    for one in (service.expansion.of(item) if service.expansion else ())
                ],
            )
            for item in numbers
        ]
        queries = [SimilarQuery.of(near) for near in explained.queries]
        return ExplainReply(k=evidence.k, known=explained.known, queries=queries, items=items)

    @router.get("/healthz", summary="Whether the server answers, and with which versions")
    async def health() -> Health:
        versions = {name: slot.searcher.version for name, slot in service.slots.items()}
        return Health(status="ok", versions=versions)

    @router.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


async def _naming(given: Mapping[int, str], answer: Awaitable[Made]) -> Made:
    """Return an answer; an item that is not there is named as it was given."""
    try:
        return await answer
    except BadRequestError as error:
        if isinstance(unknown := error.__cause__, UnknownItemError):
            detail = f"item_id {given[unknown.item_id]} is not in the index"
            raise BadRequestError(error.status, detail) from unknown
        raise
