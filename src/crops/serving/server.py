"""The process: a socket, uvicorn, signals."""

from __future__ import annotations

import asyncio
import ipaddress
import json
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
from crops.serving.app import check_key, make_app, too_long
from crops.serving.service import LOGGER, Service, log_event, logging_to_stdout, watching

if TYPE_CHECKING:
    from asyncio import TimerHandle

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
    config = service.config
    if api_key is not None:
        check_key(api_key)
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
