"""Random small logs, dense enough that every source and every tie occurs, and daily builds of them."""

import hashlib
from pathlib import Path

import numpy as np
from handmade import FakeScorer, Row, hashed, read_tables, shown, watched, write_logs

from crops.config import EngineConfig
from crops.engine.daily import Job, built_days, day_folder
from crops.logs import Logs

DAY_S = 86_400
DAYS = ("2026-01-05", "2026-01-06", "2026-01-07")
CAPPED = {"search": {"max_clicked": 3, "max_exposed": 2}, "max_positives_per_user": 2}


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
