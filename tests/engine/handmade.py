"""Hand-written logs: times in seconds after noon of 2026-01-05, ids small, item 7 is the text "doc 7"."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crops.config import EngineConfig
from crops.engine import mine
from crops.engine.backend import Backend
from crops.labels import Source
from crops.logs import Logs, open_logs
from crops.protocols import PairScorer
from crops.schema import (
    CONSUMED,
    FEED_EVENTS,
    ITEMS,
    LONG_PLAY,
    SEARCH_IMPRESSIONS,
    Table,
    within_sql,
)
from crops.text import content_id, query_id

NOON = 1_767_614_400_000_000
"""2026-01-05 12:00:00 UTC in microseconds."""
DAY = "2026-01-05"

P0, EXPOSED, UNEXPOSED, FILTERED = Source.CLICKED, Source.EXPOSED, Source.UNEXPOSED, Source.FILTERED
P1, P2, P3 = Source.REFORMULATION, Source.FEED, Source.KNOWLEDGE

Row = dict[str, Any]


def shown(
    search: int, user: int, query: str, at: float, item: int, stage: str = "exposed", **more: Any
) -> Row:
    """Return one search impression; `more` holds clicked, liked, play_ms, duration_ms."""
    row = {"search_id": search, "user_id": user, "query": query, "searched_at": NOON + round(at * 1e6)}
    return {**row, "item_id": item, "stage": stage, "clicked": False, **more}


def clicked(search: int, user: int, query: str, at: float, item: int) -> Row:
    """Return a shown and clicked impression."""
    return shown(search, user, query, at, item, clicked=True)


def watched(user: int, item: int, at: float, **more: Any) -> Row:
    """Return a feed event, a long play unless `more` says otherwise."""
    row = {"user_id": user, "item_id": item, "watched_at": NOON + round(at * 1e6)}
    return {**row, "play_ms": 20_000, "duration_ms": 30_000, **more}


def write_logs(folder: Path, searches: list[Row], feed: list[Row] | None = None) -> Logs:
    """Write a logs folder with partitions by day and open it; columns that no row names are absent."""
    items = sorted({row["item_id"] for row in [*searches, *(feed or [])]})
    _write(folder / "items.parquet", ITEMS, [{"item_id": item, "ocr_cover": f"doc {item}"} for item in items])
    _write_days(folder, SEARCH_IMPRESSIONS, "searched_at", searches)
    _write_days(folder, FEED_EVENTS, "watched_at", feed or [])
    return open_logs(folder)


def assert_signals_agree(backend: Backend) -> None:
    """Compare the SQL of signals with the same in Python, on every mix of signals around the limits."""
    lengths, flags = (None, 0, 1, 9_999, 10_000, 18_000, 18_001), (None, False, True)
    rows = [
        {"clicked": click, "liked": like, "play_ms": play, "duration_ms": length, "a": a, "b": b}
        for click, like, play, length in itertools.product(flags, flags, (*lengths, 17_999), lengths)
        for a, b in ((NOON, NOON), (NOON, NOON + 90_000_000), (NOON + 1, NOON), (NOON, NOON + 90_000_001))
    ]
    booleans, integers = ("clicked", "liked"), ("play_ms", "duration_ms", "a", "b")
    schema = pa.schema([(name, pa.bool_()) for name in booleans] + [(name, pa.int64()) for name in integers])
    backend.load("grid", schema, [pa.RecordBatch.from_pylist(rows, schema=schema)])
    told = f"{LONG_PLAY} as long, {CONSUMED} as consumed, {within_sql('a', 'b', 90.0)} as soon"
    for row in backend.rows(f"select *, {told} from grid"):
        needed = min(row["duration_ms"] or 18_000, 18_000)
        long = row["play_ms"] is not None and row["play_ms"] >= needed
        assert row["long"] == long, row
        assert row["consumed"] == (bool(row["clicked"]) or bool(row["liked"]) or long), row
        assert row["soon"] == (row["a"] < row["b"] <= row["a"] + 90_000_000), row


def _write_days(folder: Path, table: Table, time: str, rows: list[Row]) -> None:
    days: dict[str, list[Row]] = {}
    for row in rows:
        day = datetime.fromtimestamp(row[time] // 1_000_000, UTC).date().isoformat()
        days.setdefault(day, []).append(row)
    for day, today in days.items():
        _write(folder / table.name / f"day={day}" / "0.parquet", table, today)


def _write(path: Path, table: Table, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {name for row in rows for name in row}
    required = {column.name for column in table.columns if not column.optional}
    schema = pa.schema([field for field in table.arrow() if field.name in named | required])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def run(
    folder: Path,
    searches: list[Row],
    events: list[Row] | None = None,
    *,
    relevance: PairScorer | None = None,
    similarity: PairScorer | None = None,
    generated: list[Row] | None = None,
    seed: int = 0,
    **config: Any,
) -> tuple[dict[str, list[Row]], Row]:
    """Mine hand-written searches and feed events; return the written tables as rows, and the report."""
    logs = write_logs(folder / "logs", searches, events)
    lines = None
    if generated is not None:
        lines = folder / "generated.jsonl"
        lines.write_text("".join(json.dumps(row) + "\n" for row in generated))
    report = mine(
        logs,
        folder / "mined",
        EngineConfig.model_validate(config),
        relevance=relevance,
        similarity=similarity,
        generated=lines,
        seed=seed,
    )
    return read_tables(folder / "mined"), report


def read_tables(folder: Path) -> dict[str, list[Row]]:
    """Return the rows of every Parquet file of a mining output."""
    return {path.stem: pq.read_table(path).to_pylist() for path in folder.glob("*.parquet")}


def labels(
    tables: Mapping[str, list[Row]], queries: Iterable[str]
) -> dict[tuple[str, int], tuple[int, Source]]:
    """Return {(query, item): (label, sources)}."""
    names = {query_id(query): query for query in queries}
    return {
        (names[row["query_id"]], row["item_id"]): (row["label"], Source(row["sources"]))
        for row in tables["samples"]
    }


def evidence(tables: Mapping[str, list[Row]], source: Source) -> list[Row]:
    """Return the evidence rows of one source."""
    return [row for row in tables["evidence"] if row["source"] == source]


class FakeScorer:
    """Scores from a function of the two texts, and remembers every pair it was asked."""

    def __init__(self, score: Callable[[str, str], float]) -> None:
        self.score = score
        self.asked: list[tuple[str, str]] = []

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            pairs = list(zip(batch["left"].to_pylist(), batch["right"].to_pylist(), strict=True))
            self.asked += pairs
            yield batch.append_column("score", pa.array([self.score(*pair) for pair in pairs], pa.float64()))


def scores(known: Mapping[tuple[str, str], float], other: float = 0.0) -> FakeScorer:
    """Return a scorer that looks pairs up."""
    return FakeScorer(lambda left, right: known.get((left, right), other))


def hashed(left: str, right: str) -> float:
    """Return a score that only depends on the two texts."""
    return round(content_id(f"{left}|{right}") % 1000 / 999, 6)
