"""What every request passes: limits before it is read, a time, a metric and a line of log after it."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crops.config import ServingConfig
from crops.serving.limits import RateLimit, has_key
from crops.serving.telemetry import Metrics, log_event, log_failure

_OPEN = ("/healthz",)
"""Paths that need no key: those a load balancer asks."""
_DRAINED = 16
"""A body of so many times the limit is refused without being read to its end."""
_CLOSE = {"connection": "close"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


class _RefusedError(Exception):
    """A request that is not passed on."""

    def __init__(
        self, status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.reason, self.headers = status, reason, headers or {}


class Gate:
    """ASGI middleware: refuses what must not reach the application, and watches what does."""

    def __init__(self, app: ASGIApp, config: ServingConfig, metrics: Metrics, api_key: str | None) -> None:
        """Stand before `app`; with an `api_key`, only those who carry it pass."""
        self._app, self._config, self._metrics, self._key = app, config, metrics, api_key
        self._rate = RateLimit(config.rate, config.burst) if config.rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watch = _Watch(scope, send)
        with self._metrics.active.track_inprogress():
            try:
                await self._pass(scope, receive, watch)
            except _RefusedError as refused:
                self._metrics.refused.labels(refused.reason).inc()
                await watch.refuse(refused)
            except Exception as error:  # whatever the application raised: the client gets no trace of it
                log_failure("error", error, message=self._config.log_queries, request=watch.id)
                if watch.status is None:
                    await watch.refuse(_RefusedError(500, "error", failed(watch.id)))
        self._note(scope, watch)

    async def _pass(self, scope: Scope, receive: Receive, watch: _Watch) -> None:
        headers = dict(scope["headers"])
        path = scope["path"]
        if self._key is not None and path not in _OPEN and not has_key(headers, self._key):
            challenge = {"www-authenticate": 'Basic realm="crops: the password is the API key"'}
            raise _RefusedError(401, "key", "send the API key as X-API-Key or as a bearer token", challenge)
        self._check_rate(scope)
        body = await self._body(headers, receive)
        await self._app(scope, _replay(body, receive), watch.send)

    def _check_rate(self, scope: Scope) -> None:
        if self._rate is None or scope["path"] in _OPEN:
            return
        client = scope["client"][0] if scope.get("client") else ""
        wait = self._rate.wait(client, time.monotonic())
        if wait:
            detail = f"more than {self._config.rate:g} requests per second; wait {wait:.2f} s"
            raise _RefusedError(429, "rate", detail, {"retry-after": str(int(wait) + 1)})

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """Return the whole body.

        Raises:
            _RefusedError: it is too large or too slow.
        """
        limit = self._config.max_body_bytes
        length = headers.get(b"content-length", b"0")
        too_large = f"the body is larger than {limit:,} bytes"
        if not length.isdigit() or int(length) > _DRAINED * limit:
            raise _RefusedError(413, "body", too_large, _CLOSE)
        body, size, more = bytearray(), 0, True
        try:
            async with asyncio.timeout(self._config.read_timeout_s):
                # What is a little too large is read to its end: a client that is still sending would find the
                # connection reset, and not the answer.
                while more and size <= _DRAINED * limit:
                    message = await receive()
                    part = message.get("body", b"")
                    size += len(part)
                    more = message.get("more_body", False)
                    body += part if size <= limit else b""
        except TimeoutError:
            detail = f"the request was not there after {self._config.read_timeout_s:g} s"
            raise _RefusedError(408, "slow", detail, _CLOSE) from None
        if size > limit:
            raise _RefusedError(413, "body", too_large, _CLOSE)
        return bytes(body)

    def _note(self, scope: Scope, watch: _Watch) -> None:
        route = getattr(scope.get("route"), "path", "other")
        seconds = time.perf_counter() - watch.started
        self._metrics.requests.labels(route, str(watch.status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        noted: dict[str, Any] = scope.get("state", {}).get("noted", {})
        log_event(
            "request",
            request=watch.id,
            method=scope["method"],
            route=route,
            status=watch.status,
            ms=round(1000 * seconds, 2),
            **noted,
        )


def failed(request: str) -> str:
    """Return what a client is told of a failure that is none of its own."""
    return f"this failed on the server's side; its log has the reason under {request}"


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what hands the application the body that was read, then what the client does."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Message:
        return messages.pop() if messages else await receive()

    return read


class _Watch:
    """Sends the answer on, with the headers that every answer has, and remembers its status."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.started = time.perf_counter()
        self.status: int | None = None
        self._send = send
        scope.setdefault("state", {})["id"] = self.id

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = {**_HEADERS, "x-request-id": self.id}
            raw = [(name.encode(), value.encode()) for name, value in added.items()]
            message = {**message, "headers": [*message.get("headers", ()), *raw]}
        await self._send(message)

    async def refuse(self, refused: _RefusedError) -> None:
        body = json.dumps({"detail": str(refused)}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": raw})
        await self._send({"type": "http.response.body", "body": body})
