"""The web application: endpoints, pages, and what stands before them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from crops.outputs import versions
from crops.serving.api import make_api
from crops.serving.desk import Desk
from crops.serving.gate import Gate, failed
from crops.serving.inputs import BadRequestError
from crops.serving.pages import Explorer, make_pages

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
        async with background():
            yield
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
    )
    explorer = Explorer(desk)
    app.include_router(make_api(desk))
    app.include_router(make_pages(explorer))

    _explain_errors(app, explorer)
    return Gate(app, desk.service.config, desk.service.metrics, api_key)


def _explain_errors(app: FastAPI, explorer: Explorer) -> None:
    """Answer errors in the form that was asked for: a page to a browser, JSON to a program."""

    def refuse(request: Request, status: int, detail: str) -> Response:
        headers = {"retry-after": "1"} if status == 503 else {}
        if request.url.path in _PAGES:
            page = explorer.error(status, detail, request.query_params.get("q", ""))
            page.headers.update(headers)
            return page
        return JSONResponse({"detail": detail}, status, headers)

    @app.exception_handler(BadRequestError)
    async def bad_request(request: Request, error: BadRequestError) -> Response:
        return refuse(request, error.status, str(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return refuse(request, error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def failure(request: Request, _: Exception) -> Response:
        return refuse(request, 500, failed(request.state.id))  # the gate logs it

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        status, detail = explain_invalid(request.headers.get("content-type", ""), error)
        return refuse(request, status, detail)


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
