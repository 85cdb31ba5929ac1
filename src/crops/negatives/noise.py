"""Random negatives: the noise of NCE, and the documents that fill a step up.

Gutmann & Hyvärinen, "Noise-contrastive estimation: A new estimation principle for unnormalized statistical
models", AISTATS 2010: each data point is told from k noise samples by logistic regression.

Kept: k samples of noise of its own for each query, independent of it, and of the model. Differs: the noise is
uniform over the catalogue (the paper leaves its distribution open), without replacement, and without the
query's known positives. The loss is `crops.losses.nce` without in-batch negatives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crops.negatives.lists import Ids, take_first, without
from crops.retrieval.catalogue import NO_ITEM


def nce_noise(random: np.random.Generator, catalogue: Ids, positives: Sequence[Ids], n: int) -> Ids:
    """Return n random documents of the catalogue for each query, none of them a known positive, [Q, n].

    Args:
        random: the source of chance.
        catalogue: distinct ids [D]; where it holds fewer than n others, blanks (NO_ITEM) pad the row.
        positives: for each of Q queries the ids of its known positives.
        n: how many.
    """
    drawn = np.full((len(positives), n + max(map(len, positives), default=0)), NO_ITEM, dtype=np.int64)
    for row, own in zip(drawn, positives, strict=True):
        # As many more as could turn out to be positives.
        size = min(len(catalogue), n + len(own))
        row[:size] = catalogue[random.choice(len(catalogue), size, replace=False)]
    return take_first(without(drawn, positives), n)


def shared_noise(random: np.random.Generator, catalogue: Ids, n: int) -> Ids:
    """Return at most n distinct random documents of the catalogue, for all queries alike."""
    return catalogue[random.choice(len(catalogue), min(n, len(catalogue)), replace=False)]
