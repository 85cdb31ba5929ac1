"""The process: a socket, uvicorn, signals."""

from __future__ import annotations

import asyncio
import signal
import socket
from functools import partial
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from crops.config import ServingConfig
from crops.errors import CropsError
from crops.outputs import console
from crops.serving.app import make_app
from crops.serving.desk import Desk
from crops.serving.reload import watching
from crops.serving.telemetry import log_event, log_to_stdout

if TYPE_CHECKING:
    from asyncio import TimerHandle

_LOCAL = ("127.0.0.1", "0.0.0.0", "::", "::1")


def run(desk: Desk, api_key: str | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way get their answers first.

    Raises:
        CropsError: the address cannot be listened on.
    """
    config = desk.service.config
    log_to_stdout()
    listening = listen(config)
    app = make_app(desk, api_key, partial(watching, desk))
    settings = uvicorn.Config(
        app,
        http=patient(config.read_timeout_s),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=list(config.trusted_proxies),
        limit_concurrency=config.max_connections,
        timeout_graceful_shutdown=round(config.grace_s) or 1,
    )
    host, port = listening.getsockname()[:2]
    log_event("listening", host=host, port=port)
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


def patient(seconds: float) -> type[HttpToolsProtocol]:
    """Return a protocol that closes a connection whose request line and headers take longer."""

    class Patient(HttpToolsProtocol):
        _timer: TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._start()

        def on_headers_complete(self) -> None:
            self._stop()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _start(self) -> None:
            self._stop()
            self._timer = self.loop.call_later(seconds, self.transport.close)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Patient
