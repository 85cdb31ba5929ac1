"""A whole day: the tables, the people in it, and what is remembered."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pytest
from platform_hand import Fixed

from crops.config import PlatformConfig
from crops.logs import check
from crops.platform import DayLogs, build_platform, simulate_day, write_day, write_items, write_truth
from crops.platform.day import behaviour
from crops.platform.people import ABUSE_SESSIONS
from crops.platform.search import FILTERED, PAGE, RANKED, ROUTES, click_queries, counters
from crops.platform.world import items_table
from crops.retrieval import BM25Retriever
from crops.schema import FEED_EVENTS, ITEMS, SEARCH_IMPRESSIONS


@pytest.fixture(scope="module")
def day(run_days):
    platform, (logs,) = run_days()
    return platform, logs


@pytest.fixture(scope="module")
def rows(day) -> pd.DataFrame:
    return day[1].impressions.to_pandas()


def searches_of(logs: DayLogs) -> pd.DataFrame:
    """One row per search, by user and time, with its need and its number of rows."""
    by_search = logs.impressions.to_pandas().groupby("search_id")
    table = by_search.first().rename(columns={"user_id": "user", "searched_at": "at"})
    needs = pd.Series(logs.search_needs, index=logs.search_ids)
    return table.assign(rows=by_search.size(), need=needs).sort_values(["user", "at"])


def test_tables_keep_the_contract(day):
    platform, logs = day
    for table, contract, column in (
        (logs.impressions, SEARCH_IMPRESSIONS, "searched_at"),
        (logs.feed, FEED_EVENTS, "watched_at"),
    ):
        assert table.schema.equals(contract.arrow(own_ids=False))
        for one in contract.columns:
            assert one.nullable or table[one.name].null_count == 0, one.name
        since = table[column].to_numpy() - platform.first_day_us
        assert since.min() >= 0
        assert since.max() < 86_400_000_000
        online = platform.world.corpus.uploaded_day <= 0
        assert online[table["item_id"].to_numpy() - 1].all()
        assert not online.all()


def test_the_rows_of_a_search_agree_with_each_other_and_with_the_truth(day, rows):
    shown, hidden = rows[rows.stage == "exposed"], rows[rows.stage != "exposed"]
    assert set(rows.stage) == {"exposed", "unexposed", "filtered"}
    assert sorted(shown["rank"].unique()) == list(range(1, PAGE + 1))
    assert hidden["rank"].isna().all()
    assert not hidden.clicked.any()
    assert rows.play_ms.notna().equals(rows.clicked)
    assert (rows.play_ms.dropna() <= rows.duration_ms[rows.clicked]).all()
    assert not (rows.liked & ~rows.clicked).any()
    assert rows.routes.between(1, (1 << len(ROUTES)) - 1).all()
    assert not rows.duplicated(["search_id", "item_id"]).any()
    sizes = rows.groupby(["search_id", "stage"]).size().unstack(fill_value=0)
    assert sizes["exposed"].max() == PAGE
    assert (sizes["exposed"] + sizes["unexposed"]).max() == RANKED
    assert sizes["filtered"].max() == FILTERED
    assert (rows.groupby("search_id")[["user_id", "query", "searched_at"]].nunique() == 1).all(axis=None)
    platform, logs = day
    assert sorted(logs.search_ids) == sorted(rows.search_id.unique())
    assert set(logs.search_needs) <= set(range(len(platform.world.intents.need_sense)))


def test_abusers_click_only_what_they_push(rows):
    platform = build_platform(PlatformConfig(size="tiny"), 0)
    (abuser,) = np.flatnonzero(platform.users.pushes >= 0)
    platform.users.pushes[abuser] = rows.item_id[rows.stage == "exposed"].mode()[0] - 1
    bm25 = BM25Retriever(np.arange(1, 2_001), platform.world.corpus.document_texts())
    own = simulate_day(platform, 0, 60, {"bm25": bm25}).impressions.to_pandas()
    own = own[(own.user_id == abuser + 1) & (own.stage == "exposed")]
    pushed = own.item_id == platform.users.pushes[abuser] + 1
    assert own.clicked.equals(pushed)
    assert pushed.any()
    assert own.search_id.nunique() >= ABUSE_SESSIONS
    assert (own.play_ms[pushed] == own.duration_ms[pushed]).all()
    assert own.liked.equals(pushed)


@pytest.mark.parametrize("bubble", ["weak", "default", "strong"])
def test_the_next_page_continues_the_list(run_days, bubble):
    _, (logs,) = run_days(sessions=1_000, bubble=bubble)
    rows = logs.impressions.to_pandas()
    searches = searches_of(logs).reset_index()
    before = searches.shift(1)
    same = (searches[["user", "query", "need"]] == before[["user", "query", "need"]]).all(axis=1)
    turned = same & (searches.rows == before.rows - PAGE)
    assert turned.sum() > 100
    by_search = {number: list(own.item_id) for number, own in rows.groupby("search_id")}
    shown = {number: set(own.item_id) for number, own in rows[rows.stage == "exposed"].groupby("search_id")}
    for first, second in zip(before.search_id[turned], searches.search_id[turned], strict=True):
        assert by_search[second] == [item for item in by_search[first] if item not in shown[first]]


def test_people_reword_switch_and_page(run_days):
    _, (logs,) = run_days(sessions=1_000)
    searches = searches_of(logs)
    before = searches.shift(1)
    soon = (searches.user == before.user) & ((searches["at"] - before["at"]).between(1, 90e6))
    pair = pd.DataFrame({"same": searches["query"] == before["query"], "need": searches.need == before.need})[
        soon
    ]
    assert pair.same.sum() > 50
    reworded = pair[~pair.same]
    assert len(reworded) > 50
    # most rewordings keep the need (22 % against 6 % who switch)
    assert 0.6 < reworded.need.mean() < 0.95


BLIND = {"attraction": (0, 0, 0, 0), "match_attraction": 0, "bait_attraction": 0, "good_abandonment": 0}


@pytest.mark.parametrize(("rates", "searches"), [
    ({"reformulate": 0.0, "page": 0.0, "switch": 0.0}, 1),
    (BLIND | {"reformulate": 1.0, "page": 0.0, "switch": 0.0}, behaviour(PlatformConfig()).max_searches),
    (BLIND | {"page": 1.0, "reformulate": 0.0, "switch": 0.0}, RANKED // PAGE),
])  # fmt: skip
def test_nobody_searches_more_often_than_the_limit_or_turns_more_pages_than_were_ranked(rates, searches):
    platform = build_platform(PlatformConfig(size="tiny"), 0)
    platform = dataclasses.replace(platform, behaviour=dataclasses.replace(platform.behaviour, **rates))
    online = np.flatnonzero(platform.world.corpus.uploaded_day < 0)
    logs = simulate_day(platform, 0, 50, {"bm25": Fixed(online)})
    assert len(logs.search_ids) == searches * (50 + ABUSE_SESSIONS)  # those of one abuser
    if rates["page"]:
        shown = logs.impressions.filter(pc.equal(logs.impressions["stage"], "exposed"))
        assert len(shown) == RANKED * (50 + ABUSE_SESSIONS)


def test_same_seed_same_bytes_other_seed_other_day(tmp_path):
    def written(seed: int, name: str) -> dict[str, bytes]:
        platform = build_platform(PlatformConfig(size="tiny"), seed)
        bm25 = BM25Retriever(np.arange(1, 2_001), platform.world.corpus.document_texts())
        logs = simulate_day(platform, 0, 300, {"bm25": bm25})
        write_day(tmp_path / name, 0, logs)
        write_items(tmp_path / name, platform)
        write_truth(tmp_path / name / "truth", platform, [(logs.search_ids, logs.search_needs)])
        files = sorted((tmp_path / name).rglob("*.parquet"))
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files}

    first, again, other = written(0, "a"), written(0, "b"), written(1, "c")
    assert len(first) == 8
    assert first == again
    equal = [name for name in first if first[name] == other[name]]
    assert equal == ["truth/needs.parquet"]  # their names are the topics'


def test_checks_accept_every_row(run_days, tmp_path):
    platform, days = run_days(days=2)
    for number, logs in enumerate(days):
        write_day(tmp_path / "logs", number, logs)
    write_items(tmp_path / "logs", platform)
    report = check(tmp_path / "logs", tmp_path / "checked", "500MB")
    assert report.faults == ()
    for name, count in (
        ("items", 2_000),
        ("search_impressions", sum(len(one.impressions) for one in days)),
        ("feed_events", sum(len(one.feed) for one in days)),
    ):
        assert (report.tables[name].accepted, report.tables[name].rejected) == (count, 0)


def test_the_day_is_remembered(day, rows):
    platform, logs = day
    memory = platform.memory
    assert memory.click_counts().sum() == rows.clicked.sum() == memory.sense_clicks.sum()
    assert set(memory.queries) == set(rows["query"][rows.clicked])
    played = pc.sum(pc.greater(logs.feed["play_ms"], 3_000)).as_py()
    before = build_platform(PlatformConfig(size="tiny"), 0).memory.plays.sum()
    assert memory.plays.sum() == before + rows.clicked.sum() + played


def test_the_catalogue_is_complete(day, rows):
    platform, _ = day
    table = items_table(
        platform.world,
        platform.first_day_us,
        counters(platform.memory, np.random.default_rng(0)),
        click_queries(platform.memory),
    )
    assert table.schema.equals(ITEMS.arrow(own_ids=False))
    items = table.to_pandas().set_index("item_id")
    assert (items.play_cnt == platform.memory.plays).all()
    assert (items.like_cnt <= items.play_cnt).all()
    best = rows[rows.clicked].groupby(["item_id", "query"]).size()
    for item, kept in items.click_query.dropna().items():
        queries = kept.split("|")
        assert len(queries) <= 3
        assert best[item].max() == best[item][queries[0]]
    assert set(items.index[items.click_query.notna()]) == set(rows.item_id[rows.clicked])


def test_what_the_deployed_route_finds_is_marked_as_its_own(rows):
    platform = build_platform(PlatformConfig(size="tiny"), 0)
    online = np.flatnonzero(platform.world.corpus.uploaded_day <= 0)
    texts = platform.world.corpus.document_texts()
    routes = {"bm25": BM25Retriever(np.arange(1, len(texts) + 1), texts), "dense": Fixed(online[:1])}
    found = simulate_day(platform, 0, 100, routes).impressions.to_pandas()
    bit = 1 << ROUTES.index("dense")
    assert set(found.item_id[(found.routes & bit) > 0]) == {online[0] + 1}
    assert not (rows.routes & bit).any()
