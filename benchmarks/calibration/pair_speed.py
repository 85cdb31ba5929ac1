"""Pairs per second of theta on mined candidates: distinct texts once, against batches of pairs without that.

    python benchmarks/calibration/pair_speed.py SAMPLES

SAMPLES is a mining with both relevance thresholds at 0, so that its evidence holds every candidate. The rival
encodes both texts of each pair in length-bucketed batches of 64 and remembers nothing; its rate does not hang
on the number of pairs, so it gets a random choice of them. CPU time of one thread, medians of interleaved
rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import torch

from crops.relevance import CosineScorer, TextEncoder, load_calibration, local_folder, model_hash
from crops.relevance.encode import sentence_embedder
from crops.text import document_text_sql

SQL = """
select distinct q.query, {text} as text from read_parquet($evidence) e
join read_parquet($queries) q using (query_id) join read_parquet($items) i using (item_id)
where e.theta is not null order by 1, 2
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--rival-pairs", type=int, default=1500, help="default 1500")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = {name: str(arguments.samples / f"{name}.parquet") for name in ("evidence", "queries", "items")}
    rows = duckdb.execute(SQL.format(text=document_text_sql("i")), files).fetchall()
    left, right = (list(texts) for texts in zip(*rows, strict=True))
    folder = local_folder("minilm")
    calibration = load_calibration("relevance", "minilm", model_hash(folder))
    embed = sentence_embedder(folder, 64)
    embed(["load the weights"])
    batch = pa.RecordBatch.from_pydict({"left": left, "right": right})
    some = np.random.default_rng(0).permutation(len(rows))[: arguments.rival_pairs]

    def ours() -> np.ndarray:
        (scored,) = CosineScorer(TextEncoder(embed), calibration)(iter([batch]))
        return scored.column("score").to_numpy()

    def rival() -> np.ndarray:
        sides = (embed([texts[row] for row in some]) for texts in (left, right))
        return calibration.probability(np.einsum("ij,ij->i", *sides))

    rates: dict[str, list[float]] = {"distinct texts once": [], "batches of 64": []}
    scores = {}
    for _ in range(arguments.rounds):
        for name, run in zip(rates, (ours, rival), strict=True):
            start = time.process_time()
            scores[name] = run()
            rates[name].append(len(scores[name]) / (time.process_time() - start))
            print(f"{name}: {len(scores[name])} pairs, {rates[name][-1]:.0f} pairs/s")
    once, batches = (statistics.median(values) for values in rates.values())
    gap = np.abs(scores["distinct texts once"][some] - scores["batches of 64"]).max()
    texts = len(set(left)) + len(set(right))
    print(
        f"{len(rows)} pairs of {texts} distinct texts: {once / batches:.1f} times as fast, P within {gap:.6f}"
    )


if __name__ == "__main__":
    main()
