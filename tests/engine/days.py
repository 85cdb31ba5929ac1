"""Daily builds of small random logs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from handmade import FakeScorer, Row, read_tables, write_logs
from random_logs import random_logs
from test_engine_equality import hashed

from crops.config import EngineConfig
from crops.engine.daily import Job, built_days, day_folder
from crops.logs import Logs

DAY_S = 86_400
DAYS = ("2026-01-05", "2026-01-06", "2026-01-07")
CAPPED = {"search": {"max_clicked": 3, "max_exposed": 2}, "max_positives_per_user": 2}


def random_days(days: int = 3) -> tuple[list[Row], list[Row]]:
    """Return searches and feed events of some days, each with its own random logs."""
    searches, feed = [], []
    for day in range(days):
        shift = day * DAY_S * 1_000_000
        found, watched = random_logs(seed=day, searches=40)
        searches += [
            {**row, "search_id": row["search_id"] + 1000 * day, "searched_at": row["searched_at"] + shift}
            for row in found
        ]
        feed += [{**row, "watched_at": row["watched_at"] + shift} for row in watched]
    return searches, feed


def write_days(folder: Path) -> Logs:
    """Write the random days."""
    return write_logs(folder, *random_days())


def hashed_job(**config: object) -> Job:
    """Return a job whose scores only depend on texts."""
    return Job(EngineConfig.model_validate({**CAPPED, **config}), FakeScorer(hashed), FakeScorer(hashed))


def plain_job(**config: object) -> Job:
    """Return a job without scorers."""
    return Job(EngineConfig.model_validate(config), None, None)


def contents(out: Path) -> dict[str, str]:
    """Return a hash of the rows of every folder of a daily build, whatever their order."""
    folders = [*(day_folder(out, day) for day in built_days(out)), out / "window"]
    return {folder.name: content(folder) for folder in folders}


def content(folder: Path) -> str:
    """Return a hash of the rows of a mined folder."""
    rows = {name: sorted(map(str, table)) for name, table in read_tables(folder).items()}
    return hashlib.sha256(repr(sorted(rows.items())).encode()).hexdigest()
