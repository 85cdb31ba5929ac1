"""The web application: endpoints, pages, and what stands before them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Scope

from crops.outputs import versions
from crops.serving.api import make_api
from crops.serving.desk import Desk
from crops.serving.door import Door, Refusal, failed, refusal_json
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
