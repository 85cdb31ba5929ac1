"""An open-loop load: requests leave at random times that do not wait for answers (Poisson)."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What became of the requests; seconds count from when a request was due, not from when it left."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    ok_seconds: list[float] = field(default_factory=list)

    def add(self, status: str, seconds: float) -> None:
        self.statuses[status] += 1
        self.seconds.append(seconds)
        if status == "200":
            self.ok_seconds.append(seconds)

    def percentile(self, share: float) -> float:
        """Return a percentile of the answered requests, in milliseconds."""
        ordered = sorted(self.ok_seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class Client:
    """HTTP/1.1 over kept-alive connections, as many as are needed at once."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: dict[str, object]) -> tuple[str, bytes]:
        """Return status and body."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\n"
        return await self._send(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)

    async def get(self, path: str) -> tuple[str, bytes]:
        return await self._send(f"GET {path} HTTP/1.1\r\nhost: {self.host}\r\n\r\n".encode())

    async def _send(self, request: bytes) -> tuple[str, bytes]:
        while True:
            reused = bool(self._idle)
            reader, writer = (
                self._idle.pop() if reused else await asyncio.open_connection(self.host, self.port)
            )
            try:
                writer.write(request)
                status, body, keep = await _read(reader)
            except (OSError, asyncio.IncompleteReadError):
                writer.close()
                if reused:
                    continue  # an idle connection that the server has closed meanwhile
                raise
            if keep:
                self._idle.append((reader, writer))
            else:
                writer.close()
            return status, body

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> tuple[str, bytes, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = head.split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return lines[0].split()[1], body, headers.get("connection") != "close"


async def open_loop(
    client: Client, queries: Sequence[str], rate: float, seconds: float, stop: asyncio.Event | None = None
) -> Outcome:
    """Send `rate` searches per second for some seconds or until `stop`, and wait for what is under way."""
    outcome, rng, tasks = Outcome(), random.Random(0), set()
    start = due = time.perf_counter()
    while due - start < seconds and not (stop and stop.is_set()):
        due += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.add(asyncio.create_task(_one(client, rng.choice(queries), due, outcome)))
        tasks = {task for task in tasks if not task.done()}
    await asyncio.gather(*tasks)
    return outcome


async def closed_loop(client: Client, queries: Sequence[str], workers: int, seconds: float) -> float:
    """Return the answers per second of clients that ask again as soon as they are answered."""
    outcome, rng = Outcome(), random.Random(0)
    end = time.perf_counter() + seconds

    async def work() -> None:
        while time.perf_counter() < end:
            await _one(client, rng.choice(queries), time.perf_counter(), outcome)

    await asyncio.gather(*(work() for _ in range(workers)))
    return outcome.statuses["200"] / seconds


async def _one(client: Client, query: str, due: float, outcome: Outcome) -> None:
    try:
        status, _ = await client.post("/search", {"query": query})
    except (OSError, asyncio.IncompleteReadError) as error:
        status = type(error).__name__
    outcome.add(status, time.perf_counter() - due)
