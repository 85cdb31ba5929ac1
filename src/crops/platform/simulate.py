"""Build a platform and write its days: logs for everybody, truth for evaluation only."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crops.platform.behaviour import Behaviour
from crops.platform.cascade import Memory
from crops.platform.corpus import build_corpus, items_table
from crops.platform.day import DayLogs, Platform, click_queries, counters
from crops.platform.sizes import Size
from crops.platform.topics import load_topics
from crops.platform.users import build_users
from crops.platform.world import build_world, relevance

FIRST_DAY = dt.date(2026, 1, 5)
PLAYS_BEFORE = 5.0
"""Mean plays per unit of quality that items had before the first day."""


def build_platform(size: Size, days: int, seed: int, behaviour: Behaviour | None = None) -> Platform:
    """Return a platform before its first day."""
    rng = np.random.default_rng([seed, 1_000_000])
    world = build_world(load_topics(size.heads), rng)
    corpus = build_corpus(world, size.items, size.authors, days, rng)
    memory = Memory(
        plays=rng.poisson(PLAYS_BEFORE * corpus.quality) * (corpus.uploaded_day <= 0),
        sense_clicks=np.zeros(len(world.sense_head), dtype=np.int64),
    )
    midnight = dt.datetime.combine(FIRST_DAY, dt.time(), dt.UTC)
    return Platform(
        world=world,
        corpus=corpus,
        users=build_users(world, size.users, rng),
        memory=memory,
        behaviour=behaviour or Behaviour(),
        first_day_us=int(midnight.timestamp()) * 1_000_000,
        seed=seed,
    )


def day_name(day: int) -> str:
    """Return the date of a simulated day, YYYY-MM-DD."""
    return (FIRST_DAY + dt.timedelta(days=day)).isoformat()


def write_day(logs: Path, day: int, result: DayLogs) -> None:
    """Write one day's partitions of the two event tables."""
    for name, table in (("search_impressions", result.impressions), ("feed_events", result.feed)):
        folder = logs / name / f"day={day_name(day)}"
        folder.mkdir(parents=True)
        pq.write_table(table, folder / "part-0.parquet", compression="zstd")


def write_items(logs: Path, platform: Platform) -> pa.Table:
    """Write and return the catalogue with the counters and click queries of this moment."""
    rng = np.random.default_rng([platform.seed, 2_000_000])
    table = items_table(
        platform.world,
        platform.corpus,
        platform.first_day_us,
        counters(platform, rng),
        click_queries(platform.memory, len(platform.corpus)),
    )
    logs.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, logs / "items.parquet", compression="zstd")
    return table


def write_truth(truth: Path, platform: Platform, days: list[DayLogs]) -> None:
    """Write what only a simulator knows: needs, the need behind each search, and grades 1..3."""
    truth.mkdir(parents=True)
    world, corpus = platform.world, platform.corpus
    names = [
        (head.name, sense.name, need.name)
        for head in world.heads
        for sense in head.senses
        for need in sense.needs
    ]
    head, sense, need = (pa.array(column) for column in zip(*names, strict=True))
    tables = {
        "needs": {
            "need_id": pa.array(range(len(names)), pa.int64()),
            "head": head,
            "sense": sense,
            "need": need,
        },
        "searches": {
            "search_id": np.concatenate([day.search_ids for day in days]),
            "need_id": np.concatenate([day.search_needs for day in days]),
        },
        "items": {"item_id": np.arange(1, len(corpus) + 1), "need_id": corpus.need},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), truth / f"{name}.parquet", compression="zstd")
    pq.write_table(_grades(platform), truth / "grades.parquet", compression="zstd")


def _grades(platform: Platform) -> pa.Table:
    world, corpus = platform.world, platform.corpus
    parts = []
    for need in range(len(world.need_sense)):
        grade = relevance(world, np.array(need), corpus.need, corpus.second, corpus.partial)
        items = np.flatnonzero(grade)
        parts.append(
            pa.table(
                {
                    "need_id": np.full(len(items), need),
                    "item_id": items + 1,
                    "grade": pa.array(grade[items], pa.int32()),
                }
            )
        )
    return pa.concat_tables(parts)
