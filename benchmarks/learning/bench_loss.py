"""The losses, forward + backward, against their matrix products and the forms people write by hand.

Ragged groups of about 16 documents (8 to 24), labels 0 to 5, one thread. All functions take turns in every
round, over an allocator that keeps its memory; the figures are medians of process CPU time over the rounds,
and peaks of memory above what the inputs hold.
    python benchmarks/learning/bench_loss.py [--sizes 64x256 512x256] [--seconds 20]
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from crops.losses import h_infonce, infonce_graded, nce, softmax_ce

SIZES = [f"{queries}x{dim}" for queries in (64, 256, 512, 1024) for dim in (64, 256, 384, 896)]
MOST_N_BY_N = 512
"""Queries up to which the paper's form is run: its memory grows with their square."""
TAU = 0.05
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def batch(queries: int, dim: int) -> Batch:
    rng = np.random.default_rng(0)
    query_index = torch.from_numpy(np.repeat(np.arange(queries), rng.integers(8, 25, queries)))
    labels = torch.from_numpy(rng.integers(0, 6, len(query_index)))
    labels[0] = 5
    torch.manual_seed(0)
    query, doc = (
        torch.nn.functional.normalize(torch.randn(n, dim), dim=1).requires_grad_()
        for n in (queries, len(query_index))
    )
    return query, doc, query_index, labels


def floor(query, doc, query_index, labels) -> None:
    with torch.no_grad():
        scores = query @ doc.T
        _ = scores @ doc
        _ = scores.T @ query


def plain(query, doc, query_index, labels) -> None:
    """Each document against all documents, its own query's row: what in-batch losses do under autograd."""
    scores = query @ doc.T / TAU
    loss = (torch.logsumexp(scores, 1)[query_index] - scores[query_index, torch.arange(len(doc))]).mean()
    loss.backward()


def n_by_n(query, doc, query_index, labels) -> None:
    """The paper's appendix: a row per anchor, a mask over all documents."""
    scores = (query @ doc.T / TAU)[query_index]
    masked = (query_index[:, None] == query_index) & (labels >= labels[:, None])
    masked.fill_diagonal_(False)
    losses = torch.logsumexp(scores.masked_fill(masked, -torch.inf), 1) - scores.diagonal()
    losses[labels >= 1].mean().backward()


def ours(loss: Callable[..., torch.Tensor], **options) -> Callable[..., None]:
    tau = torch.tensor(TAU, requires_grad=True)

    def run(*arguments: torch.Tensor) -> None:
        loss(*arguments, temperature=tau, **options).backward()

    return run


def cpu_ms(functions: dict[str, Callable[..., None]], arguments: Batch, seconds: float) -> dict[str, float]:
    """Median CPU time of each function; at least 5 interleaved rounds, at most 200."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while len(times["floor"]) < 6 or (time.perf_counter() < end and len(times["floor"]) <= 200):
        for name, function in functions.items():
            arguments[0].grad = arguments[1].grad = None
            start = time.process_time()
            function(*arguments)
            times[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def peak_mb(function: Callable[..., None], arguments: Batch) -> float:
    """Peak resident memory of one call above that before it, in 10^6 bytes; Linux with glibc."""
    arguments[0].grad = arguments[1].grad = None
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kb("VmRSS")
    function(*arguments)
    return (_status_kb("VmHWM") - before) * 1024 / 1e6


def keep_the_heap() -> None:
    """Let the allocator keep freed memory: page faults are else paid by whoever comes after a large free."""
    no_mmap, no_trim = -4, -1
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(no_mmap, 0)
    libc.mallopt(no_trim, 2**31 - 1)


def _status_kb(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def against_rivals(sizes: list[tuple[int, int]], seconds: float) -> None:
    print("| Q, d | floor ms | ours ms | plain ms | N x N ms | ours / floor | ours / plain | N x N / ours |")
    print("|---|---|---|---|---|---|---|---|")
    memory = []
    for queries, dim in sizes:
        functions = {"floor": floor, "ours": ours(h_infonce), "plain": plain}
        arguments, slow = batch(queries, dim), "-"
        ms = cpu_ms(functions, arguments, seconds)
        ratio = "-"
        functions.pop("floor")
        if queries <= MOST_N_BY_N:
            functions["n_by_n"] = n_by_n
            slowest = cpu_ms({"floor": floor, "n_by_n": n_by_n}, arguments, 0)["n_by_n"]
            slow, ratio = f"{slowest:.0f}", f"{slowest / ms['ours']:.0f}"
        row = f"{ms['floor']:.2f} | {ms['ours']:.2f} | {ms['plain']:.2f} | {slow}"
        ratios = f"{ms['ours'] / ms['floor']:.2f} | {ms['ours'] / ms['plain']:.2f} | {ratio}"
        print(f"| {queries}, {dim} | {row} | {ratios} |", flush=True)
        memory.append((queries, dim, {name: peak_mb(f, arguments) for name, f in functions.items()}))
    print("\n| Q, d | ours MB | plain MB | N x N MB | N x N / ours |\n|---|---|---|---|---|")
    for queries, dim, peak in memory:
        large = peak.get("n_by_n")
        last = f"{large:.0f} | {large / peak['ours']:.0f}" if large else "- | -"
        print(f"| {queries}, {dim} | {peak['ours']:.1f} | {peak['plain']:.1f} | {last} |")


def among_siblings(sizes: list[tuple[int, int]], seconds: float) -> None:
    functions = {
        "floor": floor,
        "h_infonce": ours(h_infonce),
        "softmax_ce": ours(softmax_ce),
        "softmax_ce own list": ours(softmax_ce, denominator="own"),
        "nce": ours(nce),
        "infonce_graded batched": ours(infonce_graded, positives="all"),
        "infonce_graded per positive": ours(infonce_graded, positives="each"),
    }
    print(
        "\n| Q, d | " + " | ".join(f"{name} ms" for name in functions) + " | h_infonce with all options ms |"
    )
    print("|---|" + "---|" * (len(functions) + 1))
    for queries, dim in sizes:
        arguments = batch(queries, dim)
        options = {
            "query_id": torch.arange(queries) % (queries - 2),
            "doc_id": torch.arange(len(arguments[1])) % (len(arguments[1]) * 9 // 10),
            "label_weights": {5: 2.0},
            "margin": 0.0,
            "log_q": torch.zeros(len(arguments[1])),
        }
        ms = cpu_ms(functions | {"all": ours(functools.partial(h_infonce, **options))}, arguments, seconds)
        print(f"| {queries}, {dim} | " + " | ".join(f"{value:.2f}" for value in ms.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="QxD", help="queries x width")
    parser.add_argument("--seconds", type=float, default=4.0, help="wall time per size and table")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    keep_the_heap()
    sizes = [tuple(map(int, size.split("x"))) for size in settings.sizes]
    against_rivals(sizes, settings.seconds)
    among_siblings([size for size in sizes if size[1] == 256] or sizes, settings.seconds)


if __name__ == "__main__":
    main()
