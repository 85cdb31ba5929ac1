"""The bubble dial: its parts, and what the logs alone show of it."""

import numpy as np
import pytest

from crops.config import PlatformConfig
from crops.platform import (
    BUBBLE,
    ROUTES,
    Days,
    build_platform,
    day_name,
    fit_id_model,
    observe,
    simulate_day,
    write_day,
    write_items,
    write_truth,
)
from crops.platform.search import BUBBLES
from crops.retrieval import BM25Retriever
from crops.simulation import IdRetriever

ORDER = ("weak", "default", "strong")


def measure(folder, bubble: str) -> dict[str, float]:
    """Three days of a platform whose ID-feature route learns from the first."""
    platform = build_platform(PlatformConfig(size="tiny", bubble=bubble), 0)
    texts = platform.world.corpus.document_texts()
    routes = {"bm25": BM25Retriever(np.arange(1, len(texts) + 1), texts)}
    searches = []
    for day in range(3):
        logs = simulate_day(platform, day, 500, routes)
        write_day(folder / "logs", day, logs)
        searches.append((logs.search_ids, logs.search_needs))
        if day == 0:
            routes["sparse"] = IdRetriever(fit_id_model(platform.memory, 0))
    write_items(folder / "logs", platform)
    write_truth(folder / "truth", platform, searches)
    return observe(folder / "logs", Days(day_name(1), day_name(2)), ROUTES, folder / "truth")


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, dict[str, float]]:
    return {bubble: measure(tmp_path_factory.mktemp(bubble), bubble) for bubble in ORDER}


def test_the_dial_turns_every_part_one_way():
    weak, default, strong = (BUBBLES[name] for name in ORDER)
    assert set(BUBBLES) == set(ORDER)
    assert weak.popularity < default.popularity < strong.popularity
    assert weak.own_past < default.own_past < strong.own_past
    assert weak.explore > default.explore > strong.explore == 0
    assert weak.boost > default.boost > strong.boost == 0


@pytest.mark.parametrize(("name", "grows"), [
    ("exposure that the top 1 % of items get", True),
    ("ranked set found by sparse", True),
    ("catalogue shown in search so far", False),
    ("test clicks on items not shown for the query in training", False),
    ("ranked set found by explore", False),
])  # fmt: skip
def test_observables_follow_the_dial(measured, name, grows):
    values = [measured[bubble][name] for bubble in ORDER]
    assert values == sorted(values, reverse=not grows)
    assert abs(values[2] - values[0]) > 0.02


def test_every_observable_of_the_bubble_is_a_share_or_a_count(measured):
    for figures in measured.values():
        for name in BUBBLE:
            assert 0 < figures[name] < (5 if name.startswith("senses") else 1), name
        assert figures["exposure that the query's top 10 items get"] > 0.3
    assert measured["strong"]["ranked set found by explore"] == 0
    assert measured["strong"]["shown set found by explore"] == 0
