"""The web application and its process: what every request passes, and what is said where there is no answer.

A guard is in front of the endpoints and pages: limits before a request is read, a deadline, a metric and a
line of log after it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import ipaddress
import json
import signal
import socket
import struct
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from crops.config import ServingConfig
from crops.errors import CropsError
from crops.outputs import console, versions
from crops.serving.api import make_api
from crops.serving.explorer import Explorer
from crops.serving.service import (
    LOGGER,
    BadRequestError,
    Service,
    log_event,
    log_failure,
    logging_to_stdout,
    watching,
)

_PAGES = ("/", "/group", "/judgements")
_FAULTS = 3
"""Faults of a body that are named; a list of ids may hold thousands."""
_OPEN = ("/healthz",)
"""Paths that need no key: those a load balancer asks."""
_ALWAYS = ("/healthz", "/metrics")
"""Paths that are answered by a server that is full, too: they say so."""
_CLOSE = {"connection": "close"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}
Refusal = Callable[[Scope, int, str], Response]
"""Makes the answer to a request that is refused: a page for a browser, JSON for a program."""
Background = Callable[[], AbstractAsyncContextManager[None]]


def make_app(
    service: Service, api_key: str | None = None, background: Background = contextlib.nullcontext
) -> ASGIApp:
    """Return the ASGI application over what a server knows.

    Args:
        api_key: what every request but /healthz must carry; open to all when None.
        background: a context that is entered while the application runs (the watch for new versions).
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(service.lag.watch())
        async with background():
            yield
        watching.cancel()
        await service.batcher.stop()
        if service.evidence is not None:
            service.evidence.close()

    # The pages of FastAPI that draw the OpenAPI document load scripts from elsewhere: there are none here.
    app = FastAPI(
        title="crops",
        version=versions()["crops"],
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would go wherever the Host header says
    )
    explorer = Explorer(service, keyed=api_key is not None)
    app.include_router(make_api(service))
    app.include_router(explorer.routes())

    def refusal(scope: Scope, status: int, detail: str) -> Response:
        """Answer in the form that was asked for: a page to a browser, JSON to a program."""
        request = Request(scope)
        if scope["path"] not in _PAGES and "text/html" not in request.headers.get("accept", ""):
            return refusal_json(scope, status, detail)
        if status == 404 and detail == "Not Found":
            detail = f"there is no page {scope['path']}"
        return explorer.error(status, detail, request.query_params.get("q", ""))

    _explain_errors(app, refusal)
    return Guard(app, service, api_key, refusal)


def _explain_errors(app: FastAPI, refusal: Refusal) -> None:
    """Say what is wrong with a request."""

    @app.exception_handler(BadRequestError)
    async def bad_request(request: Request, error: BadRequestError) -> Response:
        response = refusal(request.scope, error.status, str(error))
        response.headers.update(error.headers)
        return response

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        response = refusal(request.scope, error.status_code, str(error.detail))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failure(request: Request, _: Exception) -> Response:
        return refusal(request.scope, 500, failed(request.state.id))  # the guard logs it

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


class _RefusedError(BadRequestError):
    """A request that is not passed on."""

    def __init__(
        self, status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, detail, headers)
        self.reason = reason


class Guard:
    """ASGI middleware: refuses what must not reach the application, and watches what does."""

    def __init__(self, app: ASGIApp, service: Service, api_key: str | None, refusal: Refusal) -> None:
        """Stand before `app`; with an `api_key`, only those who carry it pass."""
        self._app, self._service, self._key, self._refusal = app, service, api_key, refusal
        self._config, self._metrics = service.config, service.metrics
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived = scope.setdefault("state", {}).get("arrived")  # at the machine, as its connection knows
        watch = _Watch(
            scope, send, time.monotonic() - self._service.lag.seconds() if arrived is None else arrived
        )
        if scope["method"] == "HEAD":  # the answer to GET, without its body
            scope = {**scope, "method": "GET"}
        try:
            await self._pass(scope, receive, watch)
        except _RefusedError as refused:
            self._metrics.refused.labels(refused.reason).inc()
            await self._refuse(scope, receive, watch, refused)
        except Exception as error:  # whatever the application raised: the client gets no trace of it
            log_failure("error", error, message=self._config.log_queries, request=watch.id)
            await self._refuse(scope, receive, watch, _RefusedError(500, "error", failed(watch.id)))
        finally:
            self._note(scope, watch)

    async def _pass(self, scope: Scope, receive: Receive, watch: _Watch) -> None:
        """Pass a request on; what may not pass, or would be answered too late, is refused before it costs."""
        config, headers, path = self._config, dict(scope["headers"]), scope["path"]
        line = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        size = line + sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > config.max_header_bytes:
            raise _RefusedError(431, "header", too_long(config.max_header_bytes), _CLOSE)
        if self._key is not None and path not in _OPEN and not has_key(headers, self._key):
            challenge = {"www-authenticate": 'Basic realm="crops: the password is the API key"'}
            raise _RefusedError(401, "key", "send the API key as X-API-Key or as a bearer token", challenge)
        body = await self._body(receive, watch)
        if body is None:  # the client has gone
            return
        if path not in _ALWAYS:  # only now: who is slow to send holds no place
            wait = time.monotonic() - watch.arrived + self._service.batcher.wait()
            if self._active >= config.max_requests or wait > config.max_wait_s:
                detail = "more is asked than can be answered in time; try again in a second"
                raise _RefusedError(503, "saturated", detail)
        self._count(+1)
        try:
            async with asyncio.timeout_at(watch.arrived + config.timeout_s) as deadline:
                watch.deadline = deadline
                try:
                    await self._app(scope, _replay(body, receive), watch.send)
                finally:
                    watch.deadline = None
                    self._count(-1)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise _RefusedError(504, "timeout", f"no answer in {config.timeout_s:g} s") from None

    def _count(self, more: int) -> None:
        self._active += more
        self._metrics.active.set(self._active)

    async def _body(self, receive: Receive, watch: _Watch) -> bytes | None:
        """Return the whole body; None if the client went away while it sent it.

        What is too large is read to its end and not kept: a client that is still sending would find the
        connection reset, and not the answer.
        """
        limit, seconds = self._config.max_body_bytes, self._config.read_timeout_s
        body, size, more = bytearray(), 0, True
        try:
            async with asyncio.timeout(seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    received = message.get("body", b"")
                    size += len(received)
                    body += received if size <= limit else b""
                    more = message.get("more_body", False)
                    if more:  # the deadline is for the server, not for the client
                        watch.arrived = time.monotonic()
        except TimeoutError:
            if size <= limit:
                detail = f"the request was not there after {seconds:g} s"
                raise _RefusedError(408, "slow", detail, _CLOSE) from None
        if size > limit:
            raise _RefusedError(413, "body", f"the body is larger than {limit:,} bytes", _CLOSE)
        return bytes(body)

    async def _refuse(self, scope: Scope, receive: Receive, watch: _Watch, refused: _RefusedError) -> None:
        """Answer with a refusal, unless an answer has begun."""
        if watch.status is not None:
            return
        no_page = refused.status in (401, 431)  # for who has shown no key
        response = (refusal_json if no_page else self._refusal)(scope, refused.status, str(refused))
        response.headers.update(refused.headers)
        await response(scope, receive, watch.send)

    def _note(self, scope: Scope, watch: _Watch) -> None:
        route = getattr(scope.get("route"), "path", "other")
        seconds = time.monotonic() - watch.arrived
        self._metrics.requests.labels(route, str(watch.status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        noted: dict[str, Any] = scope["state"].get("noted", {})
        log_event(
            "request",
            request=watch.id,
            method=watch.method,
            route=route,
            status=watch.status,
            ms=round(1000 * seconds, 2),
            **noted,
        )


def refusal_json(_: Scope, status: int, detail: str) -> Response:
    """Return a refusal for a program."""
    return JSONResponse({"detail": detail}, status)


def failed(request: str) -> str:
    """Return what a client is told of a failure that is none of its own."""
    return f"this failed on the server's side; its log has the reason under {request}"


def too_long(limit: int) -> str:
    """Return what a client is told whose headers are too long."""
    return f"the request line and headers are longer than {limit:,} bytes"


def check_key(key: str) -> None:
    """Raise `CropsError` unless a client can send the key."""
    if not key or key != key.strip() or not key.isprintable():
        raise CropsError(
            "the API key (--api-key or CROPS_API_KEY) is empty, or holds a line break or spaces at its ends, "
            "which no header carries; give another one, or unset CROPS_API_KEY to serve without a key"
        )


def has_key(headers: Mapping[bytes, bytes], key: str) -> bool:
    """Return whether a request carries the API key.

    It may come as `Authorization: Bearer KEY`, as `X-API-Key: KEY`, or as the password of HTTP Basic, which
    is what a browser can send.
    """
    given = headers.get(b"x-api-key") or _credentials(headers.get(b"authorization", b""))
    return hmac.compare_digest(given, key.encode())


def _credentials(header: bytes) -> bytes:
    scheme, _, value = header.partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what hands the application the body that was read, then what the client does."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Message:
        return messages.pop() if messages else await receive()

    return read


class _Watch:
    """Sends the answer on, with the headers that every answer has, and remembers its status."""

    def __init__(self, scope: Scope, send: Send, arrived: float) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.method, self.arrived = scope["method"], arrived
        self.status: int | None = None
        self.deadline: asyncio.Timeout | None = None
        """Ends the request, unless its answer has begun."""
        self._send = send
        scope["state"]["id"] = self.id

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self.deadline is not None and not self.deadline.expired():
                self.deadline.reschedule(None)
            self.status = message["status"]
            added = {**_HEADERS, "x-request-id": self.id}
            raw = [(name.encode(), value.encode()) for name, value in added.items()]
            message = {**message, "headers": [*message.get("headers", ()), *raw]}
        elif self.method == "HEAD":
            message = {**message, "body": b""}
        await self._send(message)


if TYPE_CHECKING:
    from asyncio import TimerHandle

# The process: a socket, uvicorn, signals.

_TCP_INFO = struct.Struct("=52xI")
"""Of Linux' struct tcp_info: tcpi_last_data_recv, the milliseconds since data last came."""
_LINGER_S = 0.5
"""How long a connection that was refused is read to no use."""
_LOCAL = ("127.0.0.1", "0.0.0.0", "::", "::1")


@logging_to_stdout()
def run(service: Service, api_key: str | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way get their answers first.

    Raises:
        CropsError: the address cannot be listened on, or no header can carry the key.
    """
    if api_key is not None:
        check_key(api_key)
    config = service.config
    listening = listen(config)
    settings = uvicorn.Config(
        make_app(service, api_key, partial(watching, service)),
        http=type("Bounded", (_Bounded,), {"bounds": config}),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(config.grace_s) or 1,
    )
    host, port = listening.getsockname()[:2]
    log_event("listening", host=host, port=port)
    if api_key is None and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        console.print(
            f"[yellow]no API key: anyone who reaches {host} can search here[/yellow]; set CROPS_API_KEY"
        )
        LOGGER.warning("no API key", extra={"fields": {"host": host}})
    console.print(
        f"open [bold]http://{'localhost' if host in _LOCAL else host}:{port}[/bold]; Ctrl-C ends it"
    )
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn stops, then raises it again: that is no failure
        signal.signal(number, lambda *_: None)
    uvicorn.Server(settings).run(sockets=[listening])
    log_event("stopped")


def listen(config: ServingConfig) -> socket.socket:
    """Return a socket that listens where the settings say.

    Raises:
        CropsError: another program does, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        raise CropsError(
            f"cannot listen on {config.host} port {config.port}: {error}; choose another --host or --port"
        ) from error


class _Bounded(HttpToolsProtocol):
    """uvicorn's protocol with bounds on connections, on the bytes of a head, and on the time to send it all.

    It tells when a request reached the machine, however long that was before the event loop saw it.
    """

    bounds: ServingConfig

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._received, self._in_head, self._refused = 0, True, False
        self._timer: TimerHandle | None = None
        self._expect_more(self.bounds.read_timeout_s)
        if len(self.connections) > self.bounds.max_connections:
            self._refuse(503, "too many connections; try again in a second", "retry-after: 1\r\n")

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._received += len(data)
        super().data_received(data)
        too_many = self._in_head and self._received > self.bounds.max_header_bytes
        if too_many and not self.transport.is_closing():
            self._refuse(431, too_long(self.bounds.max_header_bytes))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_more(self.bounds.read_timeout_s)

    def on_headers_complete(self) -> None:
        self._expect_more(self.bounds.read_timeout_s + _LINGER_S)  # the application answers 408 before
        self._in_head = False
        self.scope["state"]["arrived"] = arrival(self.transport)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop()
        self._received, self._in_head = 0, True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _expect_more(self, seconds: float) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _refuse(self, status: int, detail: str, headers: str = "") -> None:
        """Answer without the application, and read on for a moment: what is reset is not read."""
        body = json.dumps({"detail": detail})
        length = f"content-length: {len(body)}\r\n"
        head = f"content-type: application/json\r\n{length}{headers}connection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + (head + body).encode())
        self.transport.write_eof()
        self._refused = True
        self._expect_more(_LINGER_S)


def arrival(transport: asyncio.Transport) -> float | None:
    """Return when the last bytes of a connection reached the machine, by the monotonic clock.

    They may have waited since for the event loop, in the queue of connections too. None where the system does
    not say (Linux does).
    """
    connection = transport.get_extra_info("socket")
    if connection is None or sys.platform != "linux":
        return None
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    return time.monotonic() - float(_TCP_INFO.unpack(info)[0]) / 1000
