"""`crops serve` under load on loopback: latency by index kind, saturation, hot swaps, faults.

The load is open-loop (`load.py`): searches leave at Poisson times whether or not those before are answered,
and a search's time counts from when it was due. Server and load share the machine. CPU is that of the
server (user + system), start-up from the command to the first /healthz, memory the server's resident set
after the load. Indexes are built once and kept in --work.
    python benchmarks/serving/bench_load.py table [--items 100000] [--kinds exact hnsw ivf] [--encoder static]
    python benchmarks/serving/bench_load.py saturation | swaps | faults [--items 100000] [--kind hnsw]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from faults import Fault, change, damage, kills, oversized, publish, slow, updating
from load import Client, Outcome, closed_loop, open_loop
from served import Server, prepare, server

WARM_S = 2.0


def measure(running: Server, asked: list[str], rate: float, seconds: float) -> tuple[Outcome, float]:
    """Return the outcome of an open loop, and the server's CPU milliseconds per request."""

    async def run() -> tuple[Outcome, float]:
        client = Client("127.0.0.1", running.port)
        await open_loop(client, asked, rate, WARM_S)
        before = running.cpu_s()
        outcome = await open_loop(client, asked, rate, seconds)
        client.close()
        return outcome, 1000 * (running.cpu_s() - before) / max(1, len(outcome.seconds))

    return asyncio.run(run())


def line(name: str, outcome: Outcome, cpu_ms: float, running: Server, seconds: float) -> str:
    others = {status: count for status, count in outcome.statuses.items() if status != "200"}
    cells = (
        name,
        *(f"{outcome.percentile(share):.1f}" for share in (0.5, 0.95, 0.99)),
        f"{outcome.statuses['200'] / seconds:.0f}",
        f"{cpu_ms:.2f}",
        f"{running.rss_mb():.0f}",
        f"{running.start_s:.1f}",
        str(others or "–"),
        f"{os.getloadavg()[0]:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def table(args: argparse.Namespace) -> None:
    """Print a line for each kind of index and rate."""
    print(
        "| index | p50 ms | p95 | p99 | answers/s | CPU ms each | RSS MB | start s | not 200 | load average |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for kind in args.kinds:
        folder, asked = prepare(args.work, args.items, kind, args.encoder, int8=args.int8)
        options = ["--model", str(args.model)] if args.model else []
        with server(str(folder), args.work / "server.log", *options, threads=args.threads) as running:
            for rate in args.rates:
                outcome, cpu = measure(running, asked, rate, args.seconds)
                name = f"{args.items:,} {kind}{' int8' if args.int8 else ''}, {args.encoder}, {rate:g}/s"
                print(line(name, outcome, cpu, running, args.seconds), flush=True)


def saturation(args: argparse.Namespace) -> None:
    """Find what the server can do, then ask for `--over` times as much, from a process of its own."""
    folder, asked = prepare(args.work, args.items, args.kinds[0], args.encoder)
    bodies = args.work / "bodies"
    bodies.write_text("\n".join(json.dumps({"query": query}) for query in asked[:500]))
    with server(str(folder), args.work / "server.log", threads=args.threads) as running:

        async def closed(client: Client) -> float:
            return await closed_loop(client, asked, 16, args.seconds)

        client = Client("127.0.0.1", running.port)
        most = asyncio.run(closed(client))
        print(f"closed loop, 16 clients: {most:.0f} answers/s, load {os.getloadavg()[0]:.1f}", flush=True)
        for options in (["--bodies", bodies], ["--bodies", bodies, "--keep"]):
            before = running.cpu_s()
            command = [sys.executable, Path(__file__).with_name("flood.py"), running.port, args.over * most]
            told = subprocess.check_output([*map(str, [*command, args.seconds, *options])], text=True)
            cpu, answered = running.cpu_s() - before, json.loads(told)["statuses"].get("200", 0)
            print(
                f"{args.over:g} times = {args.over * most:.0f}/s, "
                f"{'kept connections' if '--keep' in options else 'a connection each'}: {told}; "
                f"server CPU {cpu:.1f} s, {1000 * cpu / max(1, answered):.1f} ms an answer; "
                f"RSS {running.rss_mb():.0f} MB, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )

        async def quiet() -> Outcome:
            return await open_loop(Client("127.0.0.1", running.port), asked, most / 4, args.seconds / 2)

        print(f"afterwards at {most / 4:.0f}/s: {told_of(asyncio.run(quiet()))}; alive: {running.alive()}")


def swaps(args: argparse.Namespace) -> None:
    """Publish new versions while searches run."""

    async def run(running: Server, updater: asyncio.subprocess.Process, changed: Path) -> Outcome:
        client, stop = Client("127.0.0.1", running.port), asyncio.Event()
        load = asyncio.create_task(open_loop(client, asked, args.rates[0], 3600, stop))
        for turn in range(args.swaps):
            change(changed, turn)
            before = await asyncio.to_thread(running.version)
            await publish(updater)
            while await asyncio.to_thread(running.version) == before:
                await asyncio.sleep(0.1)
        stop.set()
        return await load

    folder, asked = prepare(args.work, args.items, args.kinds[0], "static")
    with server(str(folder), args.work / "server.log", *often(args.work), threads=args.threads) as running:

        async def all_of_it() -> Outcome:
            async with updating(folder, args.work / "changed.parquet") as (updater, changed):
                return await run(running, updater, changed)

        outcome = asyncio.run(all_of_it())
        print(f"{args.swaps} swaps: {told_of(outcome)}; RSS {running.rss_mb():.0f} MB")


def faults(args: argparse.Namespace) -> None:
    """Kill publishers, damage a version, send slow and oversized requests: searches go on."""
    folder, asked = prepare(args.work, args.items, args.kinds[0], "static")
    with server(str(folder), args.work / "server.log", *often(args.work), threads=args.threads) as running:
        for name, fault in (("kill -9 while publishing", kills), ("damaged version", damage),
                            ("500 slow clients", slow), ("bodies of 10 MB", oversized)):  # fmt: skip

            async def run(fault: Fault = fault) -> tuple[Outcome, str]:
                client, stop = Client("127.0.0.1", running.port), asyncio.Event()
                load = asyncio.create_task(open_loop(client, asked, args.rates[0], 3600, stop))
                said = await fault(running, folder, args.work)
                await asyncio.sleep(2)
                stop.set()
                return await load, said

            outcome, said = asyncio.run(run())
            print(f"{name}: {said}; {told_of(outcome)}; alive: {running.alive()}", flush=True)


def often(work: Path) -> list[str]:
    """Return the options of a server that looks for new versions five times a second."""
    (work / "serve.toml").write_text("[serving]\nreload_s = 0.2\n")
    return ["--config", str(work / "serve.toml")]


def told_of(outcome: Outcome) -> str:
    failed = {status: count for status, count in outcome.statuses.items() if status != "200"}
    return (
        f"{len(outcome.seconds):,} searches, {failed or 'none'} failed, "
        f"p50 {outcome.percentile(0.5):.1f} ms, p99 {outcome.percentile(0.99):.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("table", "saturation", "swaps", "faults"))
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--kinds", nargs="+", default=["exact"], choices=("exact", "hnsw", "ivf", "ivfpq"))
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--encoder", default="static", help="static, minilm or a model folder")
    parser.add_argument("--model", type=Path, help="encodes queries: a copy of the encoder")
    parser.add_argument("--rates", type=float, nargs="+", default=[100.0], help="searches per second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--over", type=float, default=3.0, help="saturation: times the load it can take")
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of the server")
    parser.add_argument("--work", type=Path, default=Path("out/bench-serving"))
    args = parser.parse_args()
    {"table": table, "saturation": saturation, "swaps": swaps, "faults": faults}[args.what](args)


if __name__ == "__main__":
    main()
