"""H-InfoNCE forward + backward against its three matrix products and a plain in-batch softmax.

Interleaved rounds in one process, medians of process CPU time, ragged groups of about 16 documents.
    python benchmarks/learning/bench_loss.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from crops.losses import h_infonce

SIZES = ((64, 256), (256, 384), (512, 256), (1024, 256))
ROUNDS = 7


def batch(queries: int, dim: int) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(0)
    query_index = torch.from_numpy(np.repeat(np.arange(queries), rng.integers(8, 25, queries)))
    labels = torch.from_numpy(rng.integers(0, 6, len(query_index)))
    labels[0] = 5
    torch.manual_seed(0)
    query, doc = (
        torch.nn.functional.normalize(torch.randn(n, dim), dim=1) for n in (queries, len(query_index))
    )
    return query, doc, query_index, labels


def floor(query, doc, query_index, labels) -> None:
    scores = query @ doc.T
    _ = scores @ doc
    _ = scores.T @ query


def plain_softmax(query, doc, query_index, labels) -> None:
    """Each document against all documents, its own query's row: what in-batch losses do under autograd."""
    query, doc = query.clone().requires_grad_(), doc.clone().requires_grad_()
    scores = query @ doc.T / 0.05
    loss = (torch.logsumexp(scores, 1)[query_index] - scores[query_index, torch.arange(len(doc))]).mean()
    loss.backward()


def ours(query, doc, query_index, labels) -> None:
    query, doc = query.clone().requires_grad_(), doc.clone().requires_grad_()
    tau = torch.tensor(0.05, requires_grad=True)
    h_infonce(query, doc, query_index, labels, temperature=tau).backward()


def main() -> None:
    torch.set_num_threads(1)
    print("| Q, d | three products ms | h_infonce ms | ratio | plain in-batch ms | plain / ours |")
    print("|---|---|---|---|---|---|")
    for queries, dim in SIZES:
        arguments = batch(queries, dim)
        times: dict[str, list[float]] = {f.__name__: [] for f in (floor, ours, plain_softmax)}
        for _ in range(ROUNDS + 1):
            for function in (floor, ours, plain_softmax):
                start = time.process_time()
                function(*arguments)
                times[function.__name__].append(1000 * (time.process_time() - start))
        base, own, plain = (statistics.median(values[1:]) for values in times.values())
        ratios = f"{own:.1f} | {own / base:.2f} | {plain:.1f} | {plain / own:.2f}"
        print(f"| {queries}, {dim} | {base:.1f} | {ratios} |")


if __name__ == "__main__":
    main()
