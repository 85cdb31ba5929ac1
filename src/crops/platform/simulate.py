"""Build a platform and write its days: logs for everybody, truth for evaluation only."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crops.config import TOPICS, PlatformConfig
from crops.errors import CropsError
from crops.platform.day import DayLogs, Platform
from crops.platform.judged import read_judged_world
from crops.platform.learned import Memory
from crops.platform.people import Behaviour, build_users, drift
from crops.platform.search import BUBBLES, click_queries, counters
from crops.platform.topics import build_topics_world
from crops.platform.world import SIZES, Ints, World, items_table

FIRST_DAY = dt.date(2026, 1, 5)
PLAYS_BEFORE = 5.0
"""Mean plays per unit of quality that items had before the first day."""


def build_platform(config: PlatformConfig, seed: int) -> Platform:
    """Return a platform before its first day.

    Raises:
        CropsError: a setting is impossible, or a judged collection has no usable need.
    """
    rng = np.random.default_rng([seed, 1_000_000])
    size = SIZES[config.size]
    world: World
    if config.world == TOPICS:
        world = build_topics_world(size, config.days, rng)
    elif not Path(config.world).is_dir():
        raise CropsError(
            f"setting 'platform.world' = '{config.world}': neither '{TOPICS}' nor a folder with docs, "
            "queries and qrels as Parquet files"
        )
    else:
        world = read_judged_world(Path(config.world), size, config.days, rng)
    corpus = world.corpus
    memory = Memory(
        plays=rng.poisson(PLAYS_BEFORE * corpus.quality) * (corpus.uploaded_day <= 0),
        sense_clicks=np.zeros(len(world.intents.sense_head), dtype=np.int64),
    )
    midnight = dt.datetime.combine(FIRST_DAY, dt.time(), dt.UTC)
    return Platform(
        world=world,
        users=build_users(world.intents, corpus, config.users or size.users, rng),
        memory=memory,
        behaviour=behaviour(config),
        bubble=BUBBLES[config.bubble],
        ranker_noise=config.ranker_noise,
        first_day_us=int(midnight.timestamp()) * 1_000_000,
        seed=seed,
    )


def day_name(day: int) -> str:
    """Return the date of a simulated day, YYYY-MM-DD."""
    return (FIRST_DAY + dt.timedelta(days=day)).isoformat()


def sessions_per_day(config: PlatformConfig) -> int:
    """Return the search sessions of a day: the setting, or what the size has."""
    return config.sessions or SIZES[config.size].sessions


def write_day(logs: str | Path, day: int, result: DayLogs) -> None:
    """Write one day's partitions of the two event tables."""
    logs = Path(logs)
    for name, table in (("search_impressions", result.impressions), ("feed_events", result.feed)):
        folder = logs / name / f"day={day_name(day)}"
        folder.mkdir(parents=True)
        pq.write_table(table, folder / "part-0.parquet", compression="zstd")


IMPRESSIONS, FEED = "logs/search_impressions", "logs/feed_events"
SEARCHES = "truth/searches"
"""The last table of a day of an experiment to be written: a day that has it is complete."""
_LEARNED = {
    IMPRESSIONS: ["query", "item_id", "clicked"],
    FEED: ["user_id", "item_id", "play_ms", "duration_ms"],
}
"""The columns that the platform's memory learns from."""


def day_file(folder: Path, table: str, day: int) -> Path:
    """Return the Parquet file of one day of a table, e.g. `logs/feed_events`."""
    return folder / table / f"day={day_name(day)}" / "part-0.parquet"


def replay_day(folder: Path, platform: Platform, day: int) -> None:
    """Let a platform live through a day that is already in its logs: the logs are the checkpoint.

    Args:
        folder: holds logs/ with the day.
        platform: the platform at the end of the day before; updated as the day itself did it.
        day: day number.
    """
    impressions, feed = (
        pq.read_table(day_file(folder, table, day), columns=columns, partitioning=None)
        for table, columns in _LEARNED.items()
    )
    drift(platform.users, platform.world.intents, np.random.default_rng([platform.seed, day]))
    platform.memory.learn(impressions, feed, platform.world.corpus.sense)


def write_items(logs: str | Path, platform: Platform) -> pa.Table:
    """Write and return the catalogue with the counters and click queries of this moment."""
    logs = Path(logs)
    rng = np.random.default_rng([platform.seed, 2_000_000])
    memory = platform.memory
    table = items_table(platform.world, platform.first_day_us, counters(memory, rng), click_queries(memory))
    logs.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, logs / "items.parquet", compression="zstd")
    return table


def write_truth(truth: str | Path, platform: Platform, searches: list[tuple[Ints, Ints]]) -> None:
    """Write what only a simulator knows: needs, the need behind each search, and grades 1..3."""
    truth = Path(truth)
    truth.mkdir(parents=True)
    intents, corpus = platform.world.intents, platform.world.corpus
    head, sense, need = (pa.array(column) for column in zip(*intents.names, strict=True))
    abusers = np.flatnonzero(platform.users.pushes >= 0)
    tables = {
        "needs": {"need_id": np.arange(len(need)), "head": head, "sense": sense, "need": need},
        "searches": {
            "search_id": np.concatenate([ids for ids, _ in searches]),
            "need_id": np.concatenate([needs for _, needs in searches]),
        },
        "items": {"item_id": np.arange(1, len(corpus) + 1), "need_id": corpus.need},
        "abusers": {"user_id": abusers + 1, "item_id": platform.users.pushes[abusers] + 1},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), truth / f"{name}.parquet", compression="zstd")
    pq.write_table(_grades(platform.world), truth / "grades.parquet", compression="zstd")


def _grades(world: World) -> pa.Table:
    everything = np.arange(len(world.corpus))
    parts = []
    for need in range(len(world.intents.need_sense)):
        grade = world.relevance(np.array(need), everything)
        items = np.flatnonzero(grade)
        columns = {
            "need_id": np.full(len(items), need),
            "item_id": items + 1,
            "grade": pa.array(grade[items], pa.int32()),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def behaviour(config: PlatformConfig) -> Behaviour:
    """Return the rates of a run: the model's own, and what the settings say."""
    return Behaviour(
        click_model=config.click_model,
        reformulate=config.reformulate,
        feed_alignment=config.feed_alignment,
        good_abandonment=config.good_abandonment,
        informative=config.informative,
    )
