"""The process: a socket, uvicorn, signals."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import signal
import socket
import struct
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from crops.config import ServingConfig
from crops.errors import CropsError
from crops.outputs import console
from crops.serving.app import make_app
from crops.serving.door import DRAINED, check_key, too_long
from crops.serving.opening import Desk, watching
from crops.serving.telemetry import LOGGER, log_event, log_to_stdout

if TYPE_CHECKING:
    from asyncio import TimerHandle

_TCP_INFO = struct.Struct("=52xI")
"""Of Linux' struct tcp_info: tcpi_last_data_recv, the milliseconds since data last came."""
_LINGER_S = 0.5
"""How long a connection that was refused is read to no use."""
_LOCAL = ("127.0.0.1", "0.0.0.0", "::", "::1")


def run(desk: Desk, api_key: str | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way get their answers first.

    Raises:
        CropsError: the address cannot be listened on, or no header can carry the key.
    """
    config = desk.service.config
    if api_key is not None:
        check_key(api_key)
    log_to_stdout()
    listening = listen(config)
    settings = uvicorn.Config(
        make_app(desk, api_key, partial(watching, desk)),
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
    if api_key is None and not _is_local(host):
        console.print(
            f"[yellow]whoever reaches {host} can search here: there is no API key[/yellow]; set CROPS_API_KEY"
        )
        LOGGER.warning("no API key", extra={"facts": {"host": host}})
    console.print(
        f"open [bold]http://{'localhost' if host in _LOCAL else host}:{port}[/bold]; Ctrl-C ends it"
    )
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn stops, then raises it again: that is no failure
        signal.signal(number, lambda *_: None)
    uvicorn.Server(settings).run(sockets=[listening])
    log_event("stopped")


def _is_local(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


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
    """uvicorn's protocol with bounds on what it leaves open: connections, and bytes and time of each.

    A connection that has not sent its request in time, or does not read its answer, is closed. It tells when
    a request reached the machine, however long that was before the event loop saw it.
    """

    bounds: ServingConfig

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._received, self._limit = 0, self.bounds.max_header_bytes
        self._in_head, self._refused = True, False
        self._reading: TimerHandle | None = None
        self._writing: TimerHandle | None = None
        self._expect_more(self.bounds.read_timeout_s)
        if len(self.connections) > self.bounds.max_connections:
            self._refuse(503, "too many connections; try again in a second", "retry-after: 1\r\n")

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._received += len(data)
        super().data_received(data)
        if self._received > self._limit and not self.transport.is_closing():
            if self._in_head:
                self._refuse(431, too_long(self._limit))
            else:
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_more(self.bounds.read_timeout_s)

    def on_headers_complete(self) -> None:
        self._expect_more(self.bounds.read_timeout_s + _LINGER_S)  # the application answers 408 before
        self._in_head = False
        self._received, self._limit = 0, DRAINED * self.bounds.max_body_bytes
        self.scope["state"]["arrived"] = arrival(self.transport)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        _stop(self._reading)
        self._in_head = True
        self._received, self._limit = 0, self.bounds.max_header_bytes
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        _stop(self._writing)

    def shutdown(self) -> None:
        super().shutdown()
        self.loop.call_later(self.bounds.grace_s, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        _stop(self._reading)
        _stop(self._writing)
        super().connection_lost(exc)

    def _expect_reading(self, left: float = math.inf) -> None:
        """Abort the connection when its client has read nothing of what was `left` for too long."""
        size = self.transport.get_write_buffer_size()
        if size >= left:
            self.transport.abort()
        else:
            self._writing = self.loop.call_later(self.bounds.read_timeout_s, self._expect_reading, size)

    def _expect_more(self, seconds: float) -> None:
        _stop(self._reading)
        self._reading = self.loop.call_later(seconds, self.transport.close)

    def _refuse(self, status: int, detail: str, headers: str = "") -> None:
        """Answer without the application, and read on for a moment: what is reset is not read."""
        body = json.dumps({"detail": detail})
        length = f"content-length: {len(body)}\r\n"
        head = f"content-type: application/json\r\n{length}{headers}connection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + (head + body).encode())
        self.transport.write_eof()
        self._refused = True
        self._expect_more(_LINGER_S)


def _stop(timer: TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def arrival(transport: asyncio.Transport) -> float | None:
    """Return when the last bytes of a connection reached the machine, by the monotonic clock.

    They may have waited since for the event loop, in the queue of connections too. None where the system does
    not say (Linux does).
    """
    connection = transport.get_extra_info("socket")
    if connection is None or sys.platform != "linux":
        return None
    facts = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    return time.monotonic() - float(_TCP_INFO.unpack(facts)[0]) / 1000
