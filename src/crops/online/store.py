"""Days on disk: each appears whole or not at all, and what is on disk is not simulated again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crops.online.routing import Traffic, log_exposures, name_arms, set_arms
from crops.outputs import console
from crops.platform import DayLogs, Platform, Served, day_name, simulate_day
from crops.platform import replay_day as live_again
from crops.platform.draws import KeyedDraws
from crops.platform.users import ABUSE_SESSIONS

IMPRESSIONS, FEED, EXPOSURES = "logs/search_impressions", "logs/feed_events", "logs/exposures"
SEARCHES = "truth/searches"
"""The last table of a day to be written: a day that has it is complete."""
_LEARNED = {
    IMPRESSIONS: ["query", "item_id", "clicked"],
    FEED: ["user_id", "item_id", "play_ms", "duration_ms"],
}
"""The columns that the platform's memory learns from."""


def day_file(folder: Path, table: str, day: int) -> Path:
    """Return the Parquet file of one day of a table, e.g. `logs/feed_events`."""
    return folder / table / f"day={day_name(day)}" / "part-0.parquet"


def online_day(platform: Platform, day: int, sessions: int, served: Served) -> DayLogs:
    """Simulate a day with random numbers that belong to its searches, so that copies of a world compare."""
    everybody = sessions + ABUSE_SESSIONS * int((platform.users.pushes >= 0).sum())
    return simulate_day(platform, day, sessions, served, KeyedDraws(platform.seed, day, everybody))


def live_through(
    folder: Path, platform: Platform, day: int, sessions: int, traffic: Traffic | Served
) -> None:
    """Bring a platform to the end of a day: simulate and write the day, or replay it if `folder` has it.

    Args:
        folder: gets logs/ and truth/.
        platform: the platform at the end of the day before.
        day: day number.
        sessions: search sessions of the day.
        traffic: who is served how; as `Traffic`, the log names the arms and holds the exposures.
    """
    if day_file(folder, SEARCHES, day).exists():
        replay_day(folder, platform, day)
        return
    console.print(f"[dim]·[/dim] {folder.name}: day {day_name(day)}")
    served = traffic.served if isinstance(traffic, Traffic) else traffic
    result = online_day(platform, day, sessions, served)
    _write(folder, day, _tables(result, traffic if isinstance(traffic, Traffic) else None))


def replay_day(folder: Path, platform: Platform, day: int) -> None:
    """Bring a platform to the end of a day that `folder` has the logs of."""
    impressions, feed = (
        pq.read_table(day_file(folder, table, day), columns=columns, partitioning=None)
        for table, columns in _LEARNED.items()
    )
    live_again(platform, day, impressions, feed)


def _tables(result: DayLogs, traffic: Traffic | None) -> dict[str, pa.Table]:
    tables = {IMPRESSIONS: result.impressions, FEED: result.feed}
    if traffic is not None and traffic.experiments:
        tables[IMPRESSIONS] = set_arms(result.impressions, name_arms(traffic))
        tables[EXPOSURES] = log_exposures(traffic, result.searches)
    return {**tables, SEARCHES: result.searches}


def _write(folder: Path, day: int, tables: Mapping[str, pa.Table]) -> None:
    """Write all tables aside, then move them to their places; what a killed run left there is replaced."""
    staging = folder / ".day"
    shutil.rmtree(staging, ignore_errors=True)
    for name, table in tables.items():
        (staging / name).mkdir(parents=True)
        pq.write_table(table, staging / name / "part-0.parquet", compression="zstd")
    for name in tables:
        place = day_file(folder, name, day).parent
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        (staging / name).rename(place)
    shutil.rmtree(staging)
