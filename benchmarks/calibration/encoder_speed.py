"""Texts per second of theta's encoder against SentenceTransformer.encode, float32 and bfloat16, one thread.

    python benchmarks/calibration/encoder_speed.py DATASETS

CPU time of this process; the best of two rounds in which the arms alternate. The deviation is the largest
difference of the calibrated P(relevant) from SentenceTransformer in float32, over all pairs of the first 50
texts with all texts of the set.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import numpy as np
import pairs
import torch
from sentence_transformers import SentenceTransformer

from crops.relevance import load_calibration, local_folder, model_hash
from crops.relevance.encode import MAX_TOKENS, sentence_embedder

ROUNDS = 2
BATCH = 64


def texts(folder: Path) -> dict[str, list[str]]:
    rng = np.random.default_rng(0)
    products = pairs.read(folder, "esci_mini/docs.parquet")
    sets = {
        "queries": [row["query"] for row in pairs.read(folder, "mimics_manual/queries.parquet")],
        "glosses": [row["gloss"] for row in pairs.read(folder, "wordnet_senses/polysemous.parquet")],
        "titles": [row["title"] for row in products],
        "title + description": [f"{row['title']} {row['description'] or ''}" for row in products],
    }
    sizes = {"queries": 512, "glosses": 256, "titles": 256, "title + description": 64}
    distinct = {name: sorted(set(values)) for name, values in sets.items()}
    return {name: [v[i] for i in rng.permutation(len(v))[: sizes[name]]] for name, v in distinct.items()}


def main() -> None:
    torch.set_num_threads(1)
    folder = local_folder("minilm")
    calibration = load_calibration("relevance", "minilm", model_hash(folder))
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = MAX_TOKENS
    ours = sentence_embedder(folder, BATCH)

    def reference(values: list[str]) -> np.ndarray:
        return model.encode(values, batch_size=BATCH, normalize_embeddings=True)

    half = torch.autocast("cpu", torch.bfloat16)
    arms = {
        "SentenceTransformer fp32": (reference, contextlib.nullcontext()),
        "SentenceTransformer bf16": (reference, half),
        "crops fp32": (ours, contextlib.nullcontext()),
        "crops bf16": (ours, half),
    }
    ours(["load the model"])
    print("| texts | mean tokens | arm | texts/s | largest deviation of P |\n|---|---|---|---|---|")
    for name, values in texts(Path(sys.argv[1])).items():
        tokens = float(model.preprocess(values)["attention_mask"].sum() / len(values))
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        vectors = {}
        for _ in range(ROUNDS):
            for arm, (embed, context) in arms.items():
                start = time.process_time()
                with context:
                    vectors[arm] = np.asarray(embed(values), np.float32)
                seconds[arm].append(time.process_time() - start)
        exact = calibration.probability(
            vectors["SentenceTransformer fp32"][:50] @ vectors["SentenceTransformer fp32"].T
        )
        for arm in arms:
            rate = len(values) / min(seconds[arm])
            deviation = np.abs(calibration.probability(vectors[arm][:50] @ vectors[arm].T) - exact).max()
            print(f"| {name} | {tokens:.0f} | {arm} | {rate:.0f} | {deviation:.6f} |", flush=True)


if __name__ == "__main__":
    main()
