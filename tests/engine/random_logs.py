"""Random small logs, dense enough that every source and every tie occurs."""

from __future__ import annotations

import numpy as np
from handmade import Row, shown, watched

STAGES = ("exposed", "exposed", "unexposed", "filtered")


def random_logs(seed: int, searches: int = 80) -> tuple[list[Row], list[Row]]:
    """Return search impressions and feed events of 5 users, 8 queries, 30 items over about half an hour."""
    rng = np.random.default_rng(seed)
    impressions = []
    for search in range(1, searches + 1):
        user, query = int(rng.integers(1, 6)), int(rng.integers(8))
        text = f"Query  {query}" if rng.random() < 0.3 else f"query {query}"
        at = int(rng.integers(0, 2000))
        for item in rng.choice(np.arange(1, 31), 6, replace=False).tolist():
            stage = STAGES[int(rng.integers(4))]
            hit = stage == "exposed" and rng.random() < 0.4
            play = int(rng.integers(0, 40_000)) if stage == "exposed" else None
            impressions.append(
                shown(search, user, text, at, item, stage, clicked=hit, play_ms=play, duration_ms=30_000)
            )
    feed = [
        watched(
            int(rng.integers(1, 6)), int(rng.integers(1, 31)), int(rng.integers(-500, 2500)), play_ms=play
        )
        for play in rng.integers(0, 40_000, 300).tolist()
    ]
    return impressions, feed
