"""Whole days: the tables keep the contract, and what people do shows in them."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crops.platform import SIZES, build_platform, simulate_day
from crops.platform.behaviour import Behaviour
from crops.platform.cascade import FILTERED, PAGE, RANKED, ROUTES, Memory, Recall, _hash_normal
from crops.platform.day import counters
from crops.retrieval import BM25Retriever
from crops.schema import FEED_EVENTS, SEARCH_IMPRESSIONS


class Everything:
    """A route that finds the same items for everybody."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def search(self, queries, k):
        ids = np.tile(np.array(self.rows[:k]) + 1, (len(queries), 1))
        return ids, np.tile(np.linspace(1, 0.5, ids.shape[1]), (len(queries), 1))


def run(seed: int, behaviour: Behaviour | None = None):
    platform = build_platform(SIZES["tiny"], 4, seed, behaviour)
    corpus = platform.corpus
    texts = [
        " ".join(filter(None, row)) for row in zip(corpus.title, corpus.caption, corpus.tags, strict=True)
    ]
    return platform, simulate_day(
        platform, 0, 200, {"bm25": BM25Retriever(np.arange(1, len(texts) + 1), texts)}
    )


@pytest.fixture(scope="module")
def day():
    return run(0)


def test_tables_keep_the_contract(day):
    _, logs = day
    assert logs.impressions.schema.names == SEARCH_IMPRESSIONS.names()
    assert logs.feed.schema.names == FEED_EVENTS.names()
    for column in SEARCH_IMPRESSIONS.columns:
        if not column.nullable:
            assert logs.impressions[column.name].null_count == 0
    assert set(logs.impressions["stage"].to_pylist()) == {"exposed", "unexposed", "filtered"}
    shown = logs.impressions.filter(pc.equal(logs.impressions["stage"], "exposed"))
    assert shown["rank"].null_count == 0
    assert pc.min_max(shown["rank"]).as_py() == {"min": 1, "max": PAGE}
    hidden = logs.impressions.filter(pc.not_equal(logs.impressions["stage"], "exposed"))
    assert hidden["rank"].null_count == len(hidden)
    assert not pc.any(hidden["clicked"]).as_py()


def test_each_document_is_logged_once_per_search(day):
    _, logs = day
    pairs = logs.impressions.group_by(["search_id", "item_id"]).aggregate([([], "count_all")])
    assert pc.max(pairs["count_all"]).as_py() == 1
    per_search = logs.impressions.group_by("search_id").aggregate([([], "count_all")])
    assert pc.max(per_search["count_all"]).as_py() <= RANKED + FILTERED


def test_truth_covers_every_search_and_only_those(day):
    _, logs = day
    assert set(logs.search_ids.tolist()) == set(logs.impressions["search_id"].to_pylist())


def test_people_page_reword_and_switch_within_the_window(day):
    _, logs = day
    events = logs.impressions.group_by("search_id").aggregate(
        [("user_id", "max"), ("query", "max"), ("searched_at", "max")]
    )
    rows = sorted(
        zip(
            *(events[name].to_pylist() for name in ("user_id_max", "searched_at_max", "query_max")),
            strict=True,
        )
    )
    near = [
        (a[2], b[2]) for a, b in zip(rows, rows[1:], strict=False) if a[0] == b[0] and 0 < b[1] - a[1] <= 90e6
    ]
    same = sum(a == b for a, b in near)
    assert same > 10
    assert len(near) - same > 10


def test_same_seed_same_day_other_seed_other_day(day):
    _, logs = day
    _, again = run(0)
    _, other = run(1)
    assert again.impressions.equals(logs.impressions)
    assert again.feed.equals(logs.feed)
    assert not other.impressions.equals(logs.impressions)


def test_the_day_is_remembered(day):
    platform, logs = day
    clicks = pc.sum(logs.impressions["clicked"]).as_py()
    assert sum(count for items in platform.memory.clicks.values() for count in items.values()) == clicks
    assert platform.memory.sense_clicks.sum() == clicks
    assert (counters(platform, np.random.default_rng(0))["play_cnt"] == platform.memory.plays).all()


def test_without_dissatisfaction_nobody_searches_twice():
    _, logs = run(0, Behaviour(page=0.0, reformulate=0.0, switch=0.0))
    assert 190 < len(logs.search_ids) <= 200


def test_recall_merges_routes_and_keeps_their_bits():
    platform = build_platform(SIZES["tiny"], 4, 0)
    live = np.flatnonzero(platform.corpus.uploaded_day <= 0)[:8].tolist()
    memory = Memory(np.zeros(len(platform.corpus), dtype=np.int64), {"bass": {live[0]: 3}})
    routes = {"bm25": Everything(live[:5]), "dense": Everything(live[3:8])}
    category = np.zeros(len(platform.corpus), dtype=np.int64)
    category[live] = 1
    found = Recall(platform.corpus, memory, routes, category, 0)(["bass"])
    bits = dict(zip(found.rows[0].tolist(), found.routes[0].tolist(), strict=True))
    bm25, dense, co_click = (1 << ROUTES.index(name) for name in ("bm25", "dense", "co_click"))
    assert bits[live[0]] & (bm25 | dense | co_click) == bm25 | co_click
    assert bits[live[3]] & (bm25 | dense | co_click) == bm25 | dense
    assert bits[live[7]] & (bm25 | dense | co_click) == dense
    assert (np.diff(found.pre_score[0]) <= 0).all()


def test_items_of_tomorrow_are_not_found_today():
    platform = build_platform(SIZES["tiny"], 4, 0)
    late = np.flatnonzero(platform.corpus.uploaded_day > 0)[:5].tolist()
    memory = Memory(np.zeros(len(platform.corpus), dtype=np.int64))
    category = np.zeros(len(platform.corpus), dtype=np.int64)
    found = Recall(platform.corpus, memory, {"bm25": Everything(late)}, category, 0)(["bass"])
    assert not set(found.rows[0].tolist()) & set(late)


def test_the_ranker_errs_the_same_way_every_time():
    left, right = np.arange(2000)[:, None] * 1_000_003, np.arange(10)[None, :]
    first = _hash_normal(left, np.broadcast_to(right, (2000, 10)))
    assert (first == _hash_normal(left, np.broadcast_to(right, (2000, 10)))).all()
    assert abs(first.mean()) < 0.03
    assert first.std() == pytest.approx(1.0, abs=0.03)
    assert np.corrcoef(first[:, 0], first[:, 1])[0, 1] == pytest.approx(0, abs=0.1)


def test_the_feed_leans_towards_the_search_nearby():
    def share(alignment: float) -> float:
        platform, logs = run(0, Behaviour(feed_alignment=alignment))
        sense_of_user: dict[int, set[int]] = {}
        need = dict(zip(logs.search_ids.tolist(), logs.search_needs.tolist(), strict=True))
        pairs = zip(
            logs.impressions["search_id"].to_pylist(), logs.impressions["user_id"].to_pylist(), strict=True
        )
        for search, user in set(pairs):
            sense_of_user.setdefault(user, set()).add(int(platform.world.need_sense[need[search]]))
        seen = zip(logs.feed["user_id"].to_pylist(), logs.feed["item_id"].to_pylist(), strict=True)
        hits = [int(platform.corpus.sense[item - 1]) in sense_of_user.get(user, set()) for user, item in seen]
        return float(np.mean(hits))

    assert share(0.8) > share(0.0) + 0.1


def test_catalogue_table_is_complete(day):
    from crops.platform.corpus import items_table
    from crops.platform.day import click_queries
    from crops.schema import ITEMS

    platform, _ = day
    zero = {
        name: np.zeros(len(platform.corpus), dtype=np.int64)
        for name in ("play_cnt", "like_cnt", "long_view_cnt", "download_cnt")
    }
    table = items_table(
        platform.world,
        platform.corpus,
        platform.first_day_us,
        zero,
        click_queries(platform.memory, len(platform.corpus)),
    )
    assert isinstance(table, pa.Table)
    assert table.schema.names == ITEMS.names()
    assert len(set(table["item_id"].to_pylist())) == len(platform.corpus)
    assert any(table["click_query"].to_pylist())
