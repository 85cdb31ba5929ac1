"""From what was listed and clicked to `search_impressions` and the catalogue's counters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from crops.platform.behaviour import Clicks
from crops.platform.cascade import PAGE, RANKED, Candidates
from crops.platform.memory import Memory, best_per_group
from crops.platform.world import Floats, Ints
from crops.schema import SEARCH_IMPRESSIONS, STAGES
from crops.text import normalise_query

CLICK_QUERIES = 3
"""Queries kept per item in `click_query`."""


def log_searches(
    search_id: Ints,
    user: Ints,
    text: Sequence[str],
    at_us: Ints,
    page: Ints,
    listed: Candidates,
    clicks: Clicks,
    duration_ms: Ints,
) -> pa.Table:
    """Return one impression per document that was considered; earlier pages were logged before.

    Args:
        search_id: of n searches, [n].
        user: user rows, [n].
        text: what was typed, n.
        at_us: when, microseconds UTC, [n].
        page: page number from 0, [n].
        listed: candidates in the order of the ranked list, [n, c].
        clicks: what people did with the page, [n, PAGE].
        duration_ms: length of every item of the catalogue, [items].
    """
    position = np.arange(listed.rows.shape[1])[None, :] - PAGE * page[:, None]
    event, at = np.nonzero((listed.rows >= 0) & (position >= 0))
    place = position[event, at]
    exposed = (place < PAGE) & (at < RANKED)
    slot = np.where(exposed, place, 0)
    clicked = exposed & clicks.clicked[event, slot]
    rows = listed.rows[event, at]
    columns = {
        "user_id": user[event] + 1,
        "search_id": search_id[event],
        "query": pa.array(text, pa.string()).take(event),
        "searched_at": at_us[event],
        "item_id": rows + 1,
        "stage": pa.array(STAGES).take(np.where(exposed, 0, np.where(at < RANKED, 1, 2))),
        "rank": pa.array(place + 1, pa.int32(), mask=~exposed),
        "pre_score": listed.pre_score[event, at],
        "routes": listed.routes[event, at],
        "arm": pa.nulls(len(event), pa.string()),
        "clicked": clicked,
        "liked": clicked & clicks.liked[event, slot],
        "play_ms": pa.array(clicks.play_ms[event, slot], pa.int64(), mask=~clicked),
        "duration_ms": duration_ms[rows],
    }
    schema = SEARCH_IMPRESSIONS.arrow()
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, schema.field(n).type) for n, c in columns.items()]
    return pa.table(arrays, schema=schema)


def click_queries(memory: Memory) -> list[str | None]:
    """Return the queries with most clicks per item, '|'-separated, None where there is none; ties by text."""
    names = sorted({normalise_query(text) for text in memory.queries})
    place = {name: row for row, name in enumerate(names)}
    normal = np.array([place[normalise_query(text)] for text in memory.queries], dtype=np.int64)
    counts = memory.click_counts().tocoo()
    pairs, inverse = np.unique(
        np.stack([counts.coords[1], normal[counts.coords[0]]], axis=1), axis=0, return_inverse=True
    )
    clicks = np.bincount(inverse, weights=counts.data)
    best = best_per_group(pairs[:, 0], pairs[:, 1], clicks, CLICK_QUERIES)
    result: list[list[str]] = [[] for _ in memory.plays]
    for item, query in pairs[best].tolist():
        result[item].append(names[query])
    return ["|".join(found) or None for found in result]


def counters(memory: Memory, rng: np.random.Generator) -> dict[str, Ints]:
    """Return the item counters as of now, from plays."""
    plays = memory.plays
    shares: dict[str, Floats | float] = {"like_cnt": 0.06, "long_view_cnt": 0.35, "download_cnt": 0.01}
    return {"play_cnt": plays.copy(), **{name: rng.binomial(plays, share) for name, share in shares.items()}}
