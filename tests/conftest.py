"""Fixtures that every room's tests may use."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rich

os.environ.pop("COLUMNS", None)  # of a terminal that there is not; a console keeps the width it was made with

from crops.schema import ARROW_TYPES, FEED_EVENTS, ITEMS, SEARCH_IMPRESSIONS, Table

Row = Mapping[str, Any]


def pytest_configure(config: pytest.Config) -> None:
    """Set one thread (a fork of more would hang) and an own cache.

    The user's cache may hold a million vectors, which every theta would read. The own one lasts from run to
    run, and has what other programs keep in the user's, and the distilled encoders.
    """
    rich.get_console()  # one that is first made while a test sets COLUMNS would keep that width
    os.environ["OMP_NUM_THREADS"] = "1"
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    own = config.rootpath / ".pytest_cache" / "home"
    if usual == own:
        return  # a worker
    (own / "crops").mkdir(parents=True, exist_ok=True)
    for link in [*own.iterdir(), *(own / "crops").iterdir()]:
        if not link.exists():
            link.unlink()
    for kept in [*usual.glob("*"), *usual.glob("crops/static-*")]:
        with suppress(FileExistsError):
            (own / kept.relative_to(usual)).symlink_to(kept)
    os.environ["XDG_CACHE_HOME"] = str(own)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker whole files, and all files that start Spark to one: it lives as long as the worker."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "spark" if "_spark" in file else file

    return Files(config, log)


def pytest_collection_finish() -> None:
    """Take what the imports made out of the garbage collector's sight: trainers call it again and again."""
    gc.freeze()


NOON_US = 1_767_614_400_000_000
"""2026-01-05 12:00:00 UTC, the time of a row that names none."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "items": {},
    "search_impressions": {"user_id": 1, "search_id": 1, "query": "query", "searched_at": NOON_US,
                           "item_id": 1, "stage": "exposed", "clicked": False},
    "feed_events": {"user_id": 1, "item_id": 1, "watched_at": NOON_US},
}  # fmt: skip


def _arrow(table: Table, rows: Iterable[Row]) -> pa.Table:
    """All columns of the contract, nullable, own ids where given; integers beside a float become DOUBLE."""
    rows = [DEFAULTS[table.name] | dict(row) for row in rows]
    columns = {}
    for column in table.columns:
        values = [row.get(column.name) for row in rows]
        if column.own_of and not any(values):
            continue
        floats = column.type in ("BIGINT", "INTEGER") and any(isinstance(value, float) for value in values)
        columns[column.name] = pa.array(values, pa.float64() if floats else ARROW_TYPES[column.type])
    return pa.table(columns)


def _write_days(folder: Path, table: Table, time: str, rows: Iterable[Row]) -> None:
    days: dict[str, list[Row]] = {}
    for row in rows:
        at = row.get(time, NOON_US)
        days.setdefault(datetime.fromtimestamp((at or 0) // 1_000_000, UTC).date().isoformat(), []).append(
            row
        )
    for day, day_rows in days.items():
        target = folder / table.name / f"day={day}"
        target.mkdir(parents=True)
        pq.write_table(_arrow(table, day_rows), target / "part-0.parquet")


def _write_logs(
    folder: Path,
    items: Iterable[Row] | None = None,
    impressions: Iterable[Row] = ({},),
    feed: Iterable[Row] | None = None,
) -> Path:
    impressions, feed = list(impressions), list(feed or ())
    if items is None:
        ids = sorted({row.get("item_id", 1) for row in [*impressions, *feed]})
        items = [{"item_id": item_id} for item_id in ids]
    folder.mkdir(parents=True, exist_ok=True)
    titled = [{"ocr_cover": f"item {row.get('item_id')}", **row} for row in items]
    pq.write_table(_arrow(ITEMS, titled), folder / "items.parquet")
    _write_days(folder, SEARCH_IMPRESSIONS, "searched_at", impressions)
    _write_days(folder, FEED_EVENTS, "watched_at", feed)
    return folder


@pytest.fixture(scope="session")
def write_logs() -> Callable[..., Path]:
    """A builder of small logs folders: `write_logs(folder, items=None, impressions=[{}], feed=None)`.

    Returns the folder. Rows are dicts. Omitted required columns take the values of `DEFAULTS` (user 1, search
    1, item 1, "query", 2026-01-05 12:00 UTC, exposed, not clicked), omitted optional ones are null, and an
    item's title is "item <id>". Without `items` the catalogue is every item id that the other tables name;
    without `feed` there is no feed table. Impressions and feed events are hive partitions of their UTC day.
    """
    return _write_logs
