"""STAR: hard negatives that never change, held steady by random ones.

Zhan et al., "Optimizing Dense Retrieval Model Training with Hard Negatives", SIGIR 2021 (arXiv
2104.08051), STAR: static hard negatives are the top results of a warmed-up model, retrieved once; random
negatives of the same batch are added with a weight, at no cost, since the static ones alone make the training
unstable.

Kept: one retrieval with the warmed-up model, a uniform draw from its top 200 for each step, random negatives
from the batch and from the hard negatives of other queries. Differs: one softmax over both kinds, as for all
methods here, in place of a weighted sum of pairwise losses (RankNet); the warm-up is part of the step budget.
"""

from __future__ import annotations

from crops.labels import Source
from crops.negatives.base import CLICKS, MINED, Corpus, Method, Miner, Schedule, mine_nearest


def mine(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return a miner of the nearest in one index, built at the end of the warm-up."""
    return mine_nearest(corpus, lambda step: step == schedule.warm_up)


METHOD = Method(
    "STAR",
    "Zhan et al., SIGIR 2021 (arXiv 2104.08051), STAR",
    CLICKS,
    Source.CLICKED,
    "infonce_binary",
    MINED,
    miner=mine,
    defaults={"negatives": 4},
)
