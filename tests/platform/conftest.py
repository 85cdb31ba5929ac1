"""Simulated days that several tests look at."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from crops.config import PlatformConfig
from crops.platform import DayLogs, Platform, build_platform, simulate_day
from crops.retrieval import BM25Retriever

Run = tuple[Platform, list[DayLogs]]


def _simulate(seed: int = 0, days: int = 1, sessions: int = 300, **settings: Any) -> Run:
    platform = build_platform(PlatformConfig(size="tiny", **settings), seed)
    texts = platform.world.corpus.document_texts()
    bm25 = BM25Retriever(np.arange(1, len(texts) + 1), texts)
    return platform, [simulate_day(platform, day, sessions, {"bm25": bm25}) for day in range(days)]


@pytest.fixture(scope="session")
def run_days() -> Callable[..., Run]:
    """`run_days(seed=0, days=1, sessions=300, **settings)`: a tiny platform with BM25 alone; cached."""
    return cache(_simulate)
