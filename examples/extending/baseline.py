"""A baseline of your own in one file: negatives that are near the query but not nearest (Rank 20 to 60).

python examples/extending/baseline.py SAMPLES MODEL
"""

import sys
from pathlib import Path

from crops.config import TrainingConfig
from crops.labels import Source
from crops.negatives.base import (
    CLICKS,
    MINED,
    Corpus,
    Ids,
    Method,
    Miner,
    Moment,
    Schedule,
    nearest_others,
    noise,
    take_random,
    viewer,
)
from crops.training.methods import METHODS, fit_method


def mine(corpus: Corpus, schedule: Schedule) -> Miner:
    """Return a miner of ranks 20 to 60 in an index that is built once, at the end of the warm-up."""
    view = viewer(corpus, lambda step: step == schedule.warm_up)

    def mine(now: Moment) -> Ids:
        seen = view(now.step)
        if seen is None:
            return noise(now.random, corpus.ids, now.positives, now.negatives)
        near = nearest_others(seen.items, seen.queries[now.queries], now.positives, depth=60)
        return take_random(now.random, near[:, 20:], now.negatives)

    return mine


METHODS["middle_ranks"] = Method(
    "Middle ranks",
    "ours",
    CLICKS,
    Source.CLICKED,
    "infonce_binary",
    MINED,
    miner=mine,
    defaults={"negatives": 4},
)

if __name__ == "__main__":
    samples, model = map(Path, sys.argv[1:3])
    learned = fit_method("middle_ranks", samples, model, TrainingConfig(), seed=0)
    print(f"loss {learned['loss']:.3f} after {learned['steps']} steps")  # noqa: T201
