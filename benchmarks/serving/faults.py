"""What must not stop a server: killed publishers, damaged versions, slow and oversized requests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from served import Server, compose

from crops.retrieval.uri import current_version, open_index

UPDATER = """
import sys
import numpy as np
from pathlib import Path
from crops.retrieval import load_model, update_index
model = load_model("static")
print("ready", flush=True)
for line in sys.stdin:
    update_index(sys.argv[1], model, Path(sys.argv[2]), np.empty(0, dtype=np.int64))
    print("done", flush=True)
"""
"""Publishes a version for each line it is sent."""


Fault = Callable[[Server, Path, Path], Awaitable[str]]


async def kills(running: Server, folder: Path, work: Path) -> str:
    """Kill ten publishers at random moments; the index stays whole and can be published to."""
    rng, before = random.Random(0), running.version()
    for _ in range(10):
        async with updating(folder, work / "changed.parquet") as (updater, changed):
            change(changed, rng.randrange(1000))
            updater.stdin.write(b"again\n" * 100)
            await asyncio.sleep(rng.uniform(0.1, 2.0))
            updater.kill()
    open_index(str(folder)).close()
    async with updating(folder, work / "changed.parquet") as (updater, _):
        await publish(updater)
    while running.version() != current_version(str(folder)):
        await asyncio.sleep(0.1)
    return f"10 killed, version {before} -> {running.version()}"


async def damage(running: Server, folder: Path, work: Path) -> str:
    """Put a version with a damaged file in service; the former one goes on."""
    served = running.version()
    broken = folder / "versions" / "999999"
    shutil.copytree(folder / "versions" / served, broken)
    with (broken / "vectors.faiss").open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(b"\xff" * 64)
    (folder / "current").write_text("999999\n")
    await asyncio.sleep(3)
    still = running.version()
    (folder / "current").write_text(f"{served}\n")
    shutil.rmtree(broken)
    return f"version {still} of {served} in service"


async def slow(running: Server, folder: Path, work: Path) -> str:
    """Open connections that send a letter per second: half of them in the headers, half in the body."""
    starts = (b"POST /search HTTP/1.1\r\nhost: ", b"POST /search HTTP/1.1\r\ncontent-length: 500\r\n\r\n{")
    closed = 0

    async def one(start: bytes) -> None:
        nonlocal closed
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(start)
        reading = asyncio.create_task(reader.read())
        for _ in range(15):
            done, _ = await asyncio.wait({reading}, timeout=1)
            if done:
                closed += 1
                break
            writer.write(b"a")
        reading.cancel()
        writer.close()

    await asyncio.gather(*(one(starts[number % 2]) for number in range(500)), return_exceptions=True)
    return f"{closed} of 500 closed by the server within 15 s"


async def oversized(running: Server, folder: Path, work: Path) -> str:
    """Send bodies of 10 MB, with and without their length."""
    statuses: Counter[str] = Counter()
    heads = (b"content-length: 10000000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"a" * 65_536 + b"\r\n"
    for number in range(100):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(
            b"POST /search HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n" + heads[number % 2]
        )
        try:
            for _ in range(150):
                writer.write(chunk if number % 2 else chunk[7:-2])
                await writer.drain()
            statuses[(await reader.readline()).decode()[9:12]] += 1
        except ConnectionError:
            statuses["reset while sending"] += 1
        writer.close()
    return f"answers {dict(statuses)}, RSS {running.rss_mb():.0f} MB"


@contextlib.asynccontextmanager
async def updating(folder: Path, changed: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Path]]:
    """Run the updater; it has its imports and its model when this begins."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    updater = await asyncio.create_subprocess_exec(
        sys.executable, "-c", UPDATER, str(folder), str(changed), **pipes
    )
    await updater.stdout.readline()
    try:
        yield updater, changed
    finally:
        with contextlib.suppress(ProcessLookupError):
            updater.kill()
        await updater.wait()


async def publish(updater: asyncio.subprocess.Process) -> None:
    updater.stdin.write(b"again\n")
    await updater.stdout.readline()


def change(path: Path, turn: int) -> None:
    """Write new texts for the first hundred items."""
    texts = compose(100, seed=100 + turn)
    pq.write_table(pa.table({"item_id": np.arange(1, 101), "ocr_cover": texts}), path)
