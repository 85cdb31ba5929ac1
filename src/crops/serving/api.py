"""The JSON endpoints."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from crops.retrieval.filters import Filter
from crops.serving.desk import Desk
from crops.serving.inputs import (
    BadRequestError,
    ExplainRequest,
    SearchRequest,
    SimilarRequest,
    Wanted,
    check_k,
    check_query,
)
from crops.serving.replies import Because, ExplainReply, Health, Hit, Near, Problem, SearchReply, Trace
from crops.serving.searcher import Job, Result

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
