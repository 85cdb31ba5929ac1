"""Tiny worlds, and fingerprints of all their tables: what `crops.platform.world.VERSION` stands for.

`python tests/platform/golden_worlds.py` writes the fingerprints of the code as it is to golden_worlds.json.
Do so only together with a new version: worlds of one version must be the same worlds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from test_platform_judged_world import DOCS, QRELS, QUERIES, write_collection
from threadpoolctl import threadpool_limits

from crops.config import PlatformConfig
from crops.platform import SIZES, build_platform, simulate_day, write_day, write_items, write_truth
from crops.platform.topics import load_topics
from crops.retrieval import BM25Retriever

RECORDED = Path(__file__).with_name("golden_worlds.json")
SEED, SESSIONS, DAYS = 11, 60, 3
WORLDS: dict[str, dict[str, Any]] = {
    "default": {},
    "dcm": {"click_model": "dcm"},
    "pbm": {"click_model": "pbm"},
    "null": {"informative": False},
    "weak": {"bubble": "weak"},
    "strong": {"bubble": "strong"},
    "ranker_noise": {"ranker_noise": 2.0},
    "users": {"users": 30},
    "reformulate": {"reformulate": 0.5},
    "feed_alignment": {"feed_alignment": 0.9},
    "good_abandonment": {"good_abandonment": 0.6},
    "days": {"days": 9},
    "edition": {"edition": "v2"},
    "language": {"language": "zh"},
    "judged": {},
}
"""Settings in which each differs from the default."""


class Drawn:
    """A retriever that finds items drawn by a hash of the query's text: the same on any processor."""

    def __init__(self, name: str, items: int) -> None:
        self.name, self.items = name, items

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.stack([self._ids(query, k) for query in queries])
        scores = np.broadcast_to(1 - np.arange(ids.shape[1]) / 1024, ids.shape)
        return ids, scores.astype(np.float32)

    def _ids(self, query: str, k: int) -> np.ndarray:
        keys = (f"{self.name} {place} {query}".encode() for place in range(k))
        drawn = (int.from_bytes(hashlib.sha256(key).digest()[:4]) for key in keys)
        distinct = list(dict.fromkeys(1 + number % self.items for number in drawn))
        return np.array(distinct + [-1] * (k - len(distinct)))


def write_world(folder: Path, name: str) -> None:
    """Write the logs and the truth of a world of `WORLDS`; text routes join on the second day."""
    settings = {"size": "tiny", **WORLDS[name]}
    if name == "judged":
        settings["world"] = str(write_collection(folder / "collection", *_collection()))
    platform = build_platform(PlatformConfig(**settings), SEED)
    texts = platform.world.corpus.document_texts()
    routes: dict[str, Any] = {"bm25": BM25Retriever(np.arange(1, len(texts) + 1), texts)}
    searches = []
    with threadpool_limits(1):
        for day in range(DAYS):
            logs = simulate_day(platform, day, SESSIONS, routes)
            write_day(folder / "logs", day, logs)
            searches.append((logs.search_ids, logs.search_needs))
            routes |= {route: Drawn(route, len(texts)) for route in ("dense", "sparse")}
    write_items(folder / "logs", platform)
    write_truth(folder / "truth", platform, searches)


def _collection() -> tuple[list[Any], list[Any], list[Any]]:
    """The known collection, with documents that nobody judged."""
    more = [(f"x{row}", f"thing {row}", f"boots or table number {row % 7}") for row in range(300)]
    return [*DOCS, *more], QUERIES, QRELS


def fingerprint(folder: Path) -> dict[str, Any]:
    """Rows, a hash over all columns of integers, texts and flags, and the means of the others, by table.

    Floats are not hashed: another processor may add them up in another order.
    """
    return {
        str(file.relative_to(folder)): _of_table(pq.read_table(file, partitioning=None))
        for part in ("logs", "truth")
        for file in sorted((folder / part).rglob("*.parquet"))
    }


def _of_table(table: pa.Table) -> dict[str, Any]:
    digest, means = hashlib.sha256(), {}
    for name in table.column_names:
        column = table[name]
        if pa.types.is_floating(column.type):
            means[name] = float(np.nanmean(column.to_numpy().astype(np.float64)))
        else:
            digest.update(json.dumps([name, column.to_pylist()]).encode())
    return {"rows": table.num_rows, "sha256": digest.hexdigest(), "means": means}


def shared_parts() -> dict[str, Any]:
    """What larger worlds are made of and tiny ones do not show: all topics, and the sizes."""
    topics = repr(load_topics(max(size.heads for size in SIZES.values())))
    sizes = {name: dataclasses.asdict(size) for name, size in SIZES.items()}
    return {"topics": hashlib.sha256(topics.encode()).hexdigest(), "sizes": sizes}


def record() -> None:
    """Write the fingerprints of all worlds, and of the parts they share, as JSON."""
    found: dict[str, Any] = {"parts": shared_parts(), "worlds": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name in WORLDS:
            write_world(Path(scratch) / name, name)
            found["worlds"][name] = fingerprint(Path(scratch) / name)
    RECORDED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    record()
