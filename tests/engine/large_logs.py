"""Logs of any size from arrays: skewed users and queries, times on a coarse grid so that ties abound."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from handmade import NOON

from crops.logs import Logs, open_logs

PER_SEARCH = 20
GRID_US = 5_000_000
STAGES = np.array(["exposed"] * 4 + ["unexposed"] * 6 + ["filtered"] * 10)


def large_logs(folder: Path, searches: int, seed: int = 0, hot_user: float = 0.05) -> Logs:
    """Write three days of logs; the last holds one search and no feed, the first most of both.

    Args:
        folder: the logs folder to make.
        searches: query events of 20 documents each; as many feed events as documents.
        seed: of everything random.
        hot_user: share of the searches and feed events that user 1 has.
    """
    rng = np.random.default_rng(seed)
    users, items = max(searches // 15, 5), max(searches // 5, 50)
    user = _skewed(rng, searches, users, hot_user)
    day = np.where(np.arange(searches) < searches // 8, 1, 0)
    day[-1] = 2
    start = NOON + day * 86_400_000_000
    at = start + rng.integers(0, 2500, searches) * GRID_US
    query = rng.integers(0, searches // 3 + 2, searches) * rng.integers(0, 2, searches)
    texts = np.array(["Query  {}", "query {}", "ｑｕｅｒｙ {}"])[rng.integers(0, 3, searches)]
    text = np.array(
        [form.format(number) for form, number in zip(texts.tolist(), query.tolist(), strict=True)]
    )
    rows = np.repeat(np.arange(searches), PER_SEARCH)
    stage = np.tile(STAGES, searches)
    shown = stage == "exposed"
    pool = query[rows] * 31 + np.tile(np.arange(PER_SEARCH), searches) * 3 + rng.integers(0, 3, len(rows))
    impressions = pa.table(
        {
            "user_id": user[rows],
            "search_id": rows + 1,
            "query": text[rows],
            "searched_at": at[rows],
            "item_id": pool % items + 1,
            "stage": stage,
            "clicked": shown & (rng.random(len(rows)) < 0.25),
            "play_ms": pa.array(rng.integers(0, 30_000, len(rows)), mask=~shown),
            "duration_ms": rng.integers(5_000, 60_000, len(rows)),
        }
    )
    watches = len(rows)
    feed_day = np.where(rng.random(watches) < 0.1, 1, 0)
    feed = pa.table(
        {
            "user_id": _skewed(rng, watches, users, hot_user),
            "item_id": rng.integers(1, items + 1, watches),
            "watched_at": NOON + feed_day * 86_400_000_000 + rng.integers(0, 2600, watches) * GRID_US,
            "play_ms": rng.integers(0, 26_000, watches),
            "duration_ms": rng.integers(5_000, 60_000, watches),
        }
    )
    ids = np.arange(1, items + 1)
    titles = pa.table({"item_id": ids, "ocr_cover": [f" doc {item}" for item in ids.tolist()]})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(titles, folder / "items.parquet")
    _write_days(folder / "search_impressions", "searched_at", _first_of(impressions))
    _write_days(folder / "feed_events", "watched_at", feed)
    return open_logs(folder)


def _skewed(rng: np.random.Generator, n: int, users: int, hot_user: float) -> np.ndarray:
    user = 2 + (users * rng.random(n) ** 1.5).astype(np.int64)
    return np.where(rng.random(n) < hot_user, 1, user)


def _first_of(impressions: pa.Table) -> pa.Table:
    """Return one row for each search and item."""
    keys = impressions["search_id"].to_numpy() * 2**31 + impressions["item_id"].to_numpy()
    return impressions.take(np.unique(keys, return_index=True)[1])


def _write_days(folder: Path, time: str, table: pa.Table) -> None:
    days = table[time].to_numpy() // 86_400_000_000
    for number in np.unique(days).tolist():
        day = datetime.fromtimestamp(number * 86_400, UTC).date().isoformat()
        target = folder / f"day={day}"
        target.mkdir(parents=True)
        today = table.filter(pc.equal(pa.array(days), number))
        half = today.num_rows // 2
        for part, rows in enumerate((today.slice(0, half), today.slice(half))):
            pq.write_table(rows, target / f"part-{part}.parquet")  # half of one row: an empty file
