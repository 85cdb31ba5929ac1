"""ANCE: negatives that the model itself takes for answers.

Xiong et al., "Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text Retrieval", ICLR
2021 (arXiv 2007.00808): negatives are drawn from the top of an index of the whole catalogue that is
rebuilt from a recent checkpoint every m batches; a warm-up begins with other negatives (theirs: BM25).

Kept: uniform draws from the top 200 that hold no known positive, queries and documents encoded by the same
checkpoint, refresh every m steps, a warm-up. Differs: the index is rebuilt inline and not by another machine,
so its weights are those of the step and not older; the search is exact; the warm-up has random negatives.
The paper's loss knows the drawn negatives only; whether in-batch ones join them is tuned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crops.negatives.lists import Ids, Vectors, nearest_others, take_random
from crops.retrieval import FlatIndex

DEPTH = 200
"""Length of the result lists that negatives are drawn from, as the authors take."""


def ance_due(step: int, warm_up: int, every: int) -> bool:
    """Return whether the index is built before a step (from 0): at the end of the warm-up, then every m."""
    return step >= warm_up and (step - warm_up) % every == 0


def ance_negatives(
    random: np.random.Generator,
    index: FlatIndex,
    vectors: Vectors,
    positives: Sequence[Ids],
    n: int,
    depth: int = DEPTH,
) -> Ids:
    """Return n random documents of each query's nearest that are no known positives, [Q, n]; blanks pad.

    Args:
        random: the source of chance.
        index: the catalogue as encoded at the last refresh.
        vectors: the queries as encoded then, [Q, d].
        positives: for each of Q queries the ids of its known positives.
        n: how many.
        depth: length of the list they are drawn from.
    """
    return take_random(random, nearest_others(index, vectors, positives, depth), n)
