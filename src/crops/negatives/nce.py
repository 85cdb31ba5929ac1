"""NCE: random negatives, each query's own.

Gutmann & Hyvärinen, "Noise-contrastive estimation: A new estimation principle for unnormalized statistical
models", AISTATS 2010: each data point is contrasted with k noise samples by logistic regression.

Kept: k samples of noise of its own for each query, independent of it, and of the model. Differs: the noise is
uniform over the catalogue (the paper leaves its distribution open), without replacement, and without the
query's known positives. The loss is `crops.losses.nce` without in-batch negatives.
"""

from __future__ import annotations

from crops.labels import Source
from crops.negatives.base import CLICKS, Corpus, Method, Miner, Schedule, grid, noise


def mine(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return a miner of noise of each query's own."""
    return lambda now: noise(now.random, corpus.ids, now.positives, now.negatives)


METHOD = Method(
    "NCE",
    "Gutmann & Hyvärinen, AISTATS 2010",
    CLICKS,
    Source.CLICKED,
    "nce",
    grid({"temperature": 0.05}, {"temperature": 0.1}, {"temperature": 0.2}),
    miner=mine,
    defaults={"in_batch": False},
)
