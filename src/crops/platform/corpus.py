"""What is true of items in every world: who posted them, how long they are, when they came, how they sell."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from crops.platform.world import Floats, Ints, World
from crops.schema import ITEMS

ARRIVAL_DAYS = 60
"""Items were uploaded over this many days before the end of the last simulated day, evenly."""
DAY_US = 86_400_000_000


def draw_quality(items: int, rng: np.random.Generator) -> Floats:
    """Draw the appeal of items: log-normal, so that a few draw most of the plays."""
    return rng.lognormal(0.0, 1.0, items)


def draw_durations(items: int, rng: np.random.Generator) -> Ints:
    """Draw lengths in ms: log-normal around 30 s, between 5 s and 10 min."""
    return (np.clip(rng.lognormal(np.log(30), 0.8, items), 5, 600) * 1000).astype(np.int64)


def draw_upload_days(items: int, days: int, rng: np.random.Generator) -> Floats:
    """Draw upload times in days since the first simulated day, evenly up to the end of the last."""
    return rng.uniform(days - ARRIVAL_DAYS, days, items)


def items_table(
    world: World, first_day_us: int, counters: dict[str, Ints], click_query: list[str | None]
) -> pa.Table:
    """Return the catalogue as the `items` table.

    Args:
        world: the world.
        first_day_us: start of the first simulated day, microseconds UTC.
        counters: play_cnt, like_cnt, long_view_cnt and download_cnt, each [items].
        click_query: queries that led to clicks, '|'-separated, per item.
    """
    corpus = world.corpus
    columns = {
        "item_id": np.arange(1, len(corpus) + 1),
        "ocr_cover": corpus.title,
        "photo_caption": corpus.caption,
        "keyword": corpus.tags,
        "click_query": click_query,
        **counters,
        "duration_ms": corpus.duration_ms,
        "uploaded_at": first_day_us + (corpus.uploaded_day * DAY_US).astype(np.int64),
        "author_id": corpus.author + 1,
        "category": pa.array(world.intents.sense_category).take(corpus.sense),
    }
    schema = ITEMS.arrow()
    return pa.table(
        [
            c if isinstance(c := columns[n], pa.Array) else pa.array(c, schema.field(n).type)
            for n in schema.names
        ],
        schema=schema,
    )
