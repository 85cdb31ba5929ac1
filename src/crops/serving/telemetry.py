"""What the server says about itself: Prometheus metrics, and one line of JSON for each request."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import sys
import time
import traceback
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LOGGER = logging.getLogger("crops.serving")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_TICK = 0.05
"""Seconds between two measurements of the event loop's lag."""


class Lag:
    """How late the event loop is: what it does now should have been done so long ago."""

    def __init__(self) -> None:
        """Know of no lag until `watch` runs."""
        self._last, self._due = 0.0, math.inf

    def seconds(self) -> float:
        """Return the lag."""
        return max(self._last, time.monotonic() - self._due, 0.0)

    async def watch(self) -> None:
        """Measure for ever, by how late this is woken."""
        while True:
            self._due = time.monotonic() + _TICK
            await asyncio.sleep(_TICK)
            self._last = time.monotonic() - self._due


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self, waiting: Callable[[], float], lag: Callable[[], float]) -> None:
        """Make them all at zero.

        Args:
            waiting: how many requests wait for their turn.
            lag: how many seconds late the event loop is.
        """
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "crops_requests_total", "Requests answered.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "crops_request_seconds",
            "Time from the arrival at the machine to the end of the answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "crops_batch_requests", "Requests in a batch.", buckets=_SIZES, registry=registry
        )
        self.refused = Counter("crops_refused_total", "Requests refused.", ["reason"], registry=registry)
        self.active = Gauge("crops_active_requests", "Requests under way.", registry=registry)
        self.reloads = Counter(
            "crops_reloads_total", "New versions of an index.", ["index", "result"], registry=registry
        )
        self.items = Gauge(
            "crops_index_items", "Items of the index.", ["index", "version"], registry=registry
        )
        queue = Gauge("crops_waiting_requests", "Requests that wait for their turn.", registry=registry)
        queue.set_function(waiting)
        late = Gauge("crops_loop_lag_seconds", "How late the event loop is.", registry=registry)
        late.set_function(lag)


def log_event(event: str, **fields: object) -> None:
    """Log what happened, as JSON."""
    LOGGER.info(event, extra={"fields": fields})


def log_failure(event: str, error: BaseException, *, message: bool, **fields: object) -> None:
    """Log an error with the lines of code it came through.

    Args:
        event: what failed.
        error: the exception.
        message: whether its message is logged too; it may quote a query.
        fields: what else is known.
    """
    frames = traceback.extract_tb(error.__traceback__)
    trace = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    said = {"message": str(error)} if message else {}
    LOGGER.error(event, extra={"fields": {**fields, "error": type(error).__name__, **said, "trace": trace}})


class JsonLines(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: time (UTC), level, event, and the fields."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return json.dumps(line, ensure_ascii=True, default=str)


def log_to_stdout() -> None:
    """Send the server's log, and uvicorn's warnings, to stdout as lines of JSON."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    for name, level in (("crops.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
