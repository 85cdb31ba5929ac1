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

from functools import partial

from crops.labels import Source
from crops.negatives.base import CLICKS, Corpus, Method, Miner, Schedule, grid, mine_nearest


def mine(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return a miner of the nearest in an index that is renewed every `refresh` steps."""
    return mine_nearest(corpus, partial(due, warm_up=schedule.warm_up, every=schedule.refresh))


def due(step: int, warm_up: int, every: int) -> bool:
    """Return whether the index is built before a step (from 0): at the end of the warm-up, then every m."""
    return step >= warm_up and (step - warm_up) % every == 0


METHOD = Method(
    "ANCE",
    "Xiong et al., ICLR 2021",
    CLICKS,
    Source.CLICKED,
    "infonce_binary",
    grid({"in_batch": False, "negatives": 0}, {"in_batch": True, "negatives": 4}),
    miner=mine,
    defaults={"in_batch": False},
)
