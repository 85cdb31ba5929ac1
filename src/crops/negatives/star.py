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


def star_due(step: int, warm_up: int) -> bool:
    """Return whether the index is built before a step (from 0): once, at the end of the warm-up."""
    return step == warm_up
