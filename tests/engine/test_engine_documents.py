"""Queries that join the text of items, by hand: which and of which days; and that a leak is refused."""

from __future__ import annotations

import json

import pytest
from days import DAY_S, DAYS, plain_job
from handmade import DAY, P1, clicked, read_tables, run, scores, shown, write_logs

from crops.config import BotConfig, DocumentConfig, EngineConfig, ExpansionConfig
from crops.engine import mine
from crops.engine.backend import DuckDBBackend
from crops.engine.daily import mine_daily
from crops.engine.documents import added_texts, count_click_queries, expand, read_expansion, require_lag
from crops.engine.without import Without
from crops.errors import CropsError
from crops.retrieval import load_items
from crops.text import DOCUMENT_FIELDS, PLAIN

TEXT = DocumentConfig(fields=(*DOCUMENT_FIELDS, "click_query"), click_users=1)
NEXT, LAST = DAY_S, 2 * DAY_S
SEARCHES = [
    clicked(1, 1, "red  Shoes", 0, 7),
    clicked(2, 2, "red shoes", 10, 7),  # two people
    clicked(3, 1, "heels", 20, 7),  # one, twice
    clicked(4, 1, "heels", 30, 7),
    clicked(5, 3, "a|b", 40, 7),
    shown(6, 3, "boots", 50, 7),  # no click
    clicked(7, 1, "pumps", NEXT, 7),
    clicked(7, 1, "pumps", NEXT, 8),
    clicked(8, 1, "slippers", LAST, 8),
]


def counted(logs, before, without=None, bots=None, **settings):
    """Return the click queries by item, and the days counted."""
    document = TEXT.changed(**settings)
    with DuckDBBackend("100MB") as backend:
        history = dict.fromkeys(logs.search_days, logs)
        found, days = count_click_queries(backend, history, before, document, bots or BotConfig(), without)
    return dict(zip(found["item_id"].to_pylist(), found["click_query"].to_pylist(), strict=True)), days


def test_the_queries_of_most_people_come_first_within_the_caps(tmp_path):
    logs = write_logs(tmp_path, SEARCHES)
    assert counted(logs, DAYS[1]) == ({7: "red shoes|heels|a b"}, [DAYS[0]])
    assert counted(logs, DAYS[1], click_queries=2)[0] == {7: "red shoes|heels"}
    assert counted(logs, DAYS[1], click_chars=14)[0] == {7: "red shoes|heels"}  # 9 + 5 letters
    assert counted(logs, DAYS[1], click_chars=13)[0] == {7: "red shoes"}
    assert counted(logs, DAYS[1], click_users=2)[0] == {7: "red shoes"}
    assert counted(logs, DAYS[1], without=Without(users=frozenset({2})))[0] == {7: "heels|a b|red shoes"}
    assert counted(logs, DAYS[1], bots=BotConfig(max_searches_per_day=2))[0] == {7: "a b|red shoes"}


def test_only_days_before_are_counted(tmp_path):
    logs = write_logs(tmp_path, SEARCHES)
    assert counted(logs, DAYS[0]) == ({}, [])
    assert counted(logs, DAYS[2], click_queries=9) == (
        {7: "red shoes|heels|a b|pumps", 8: "pumps"},
        [*DAYS[:2]],
    )
    assert counted(logs, DAYS[2], click_days=1) == ({7: "pumps", 8: "pumps"}, [DAYS[1]])


def mined(folder, logs, days, document=TEXT):
    mine(logs, folder, EngineConfig(days=days), relevance=None, similarity=None, document=document)
    return {row["item_id"]: row["click_query"] for row in read_tables(folder)["items"]}


def test_a_mining_counts_before_its_first_day_and_the_leak_is_refused(tmp_path):
    logs = write_logs(tmp_path / "logs", SEARCHES)
    fresh = tmp_path / "fresh"
    assert mined(fresh, logs, (DAYS[1],)) == {7: "red shoes|heels|a b", 8: None}
    assert mined(tmp_path / "both", logs, DAYS[1:]) == {7: "red shoes|heels|a b", 8: None}
    rendering = PLAIN.of(TEXT.fields)
    assert load_items(fresh, rendering=rendering)[1] == ["red shoes heels a b doc 7", "doc 8"]
    assert load_items(fresh)[1] == ["doc 7", "doc 8"]
    # The table's own column, as a platform may ship it, may count the day that is mined.
    mined(tmp_path / "own", logs, (DAYS[1],), document=None)
    for folder in ("own", "logs"):
        with pytest.raises(CropsError, match="gives the answers away; mine with --fields"):
            load_items(tmp_path / folder, rendering=rendering)
    # And one that was counted on the mined day, or later.
    manifest = json.loads((fresh / "manifest.json").read_text())
    (fresh / "manifest.json").write_text(json.dumps({**manifest, "click_query_days": [DAYS[0], DAYS[1]]}))
    with pytest.raises(CropsError, match=f"click_query counts {DAYS[1]}, and the samples are of {DAYS[1]}"):
        require_lag(fresh)


def test_the_documents_of_a_window_are_older_than_all_its_days(tmp_path):
    job = plain_job()
    job = type(job)(**{**vars(job), "document": TEXT})
    for day, rows in zip(DAYS, (SEARCHES[:6], SEARCHES[6:8], SEARCHES[8:]), strict=True):
        # Each day comes in a folder of its own: the former ones are found through the build.
        mine_daily(write_logs(tmp_path / day, rows), tmp_path / "out", job, [day])
    items = read_tables(tmp_path / "out" / f"day={DAYS[2]}")["items"]
    assert {row["item_id"]: row["click_query"] for row in items} == {8: "pumps"}
    (last,) = (row for row in read_tables(tmp_path / "out" / "window")["items"] if row["item_id"] == 7)
    assert last["click_query"] is None  # nothing is older than the first day
    require_lag(tmp_path / "out" / "window")
    short = type(job)(**{**vars(job), "config": EngineConfig(daily={"window": 2})})
    mine_daily(write_logs(tmp_path / "again", SEARCHES[8:]), tmp_path / "out", short)
    items = read_tables(tmp_path / "out" / "window")["items"]
    assert {row["item_id"]: row["click_query"] for row in items} == {7: "red shoes|heels|a b", 8: None}
    require_lag(tmp_path / "out" / "window")
    with pytest.raises(CropsError, match="document.fields was"):
        mine_daily(write_logs(tmp_path / "more", SEARCHES[8:]), tmp_path / "out", plain_job())


REWORDED = [
    # Four people reword "jaguar" to "big cat", a fifth to "panther"; the last alone has words of his own.
    *(
        row
        for user in range(1, 5)
        for row in (shown(user, user, "jaguar", 0, 1), clicked(10 + user, user, "Big Cat", 30, 3))
    ),
    *(shown(5, 5, "jaguar", 0, 1), clicked(15, 5, "panther", 30, 3)),
    *(shown(6, 6, "my own | words", 0, 1), clicked(16, 6, "big cat", 30, 3)),
]


def expanded(folder, remove=(), **settings):
    """Return the rows that an expansion of `folder`/mined adds."""
    out = folder / "expanded"
    expand(folder / "mined", out, ExpansionConfig(**settings), remove=remove)
    return read_expansion(out).to_pylist()


def test_queries_of_rewordings_join_what_they_led_to(tmp_path):
    run(
        tmp_path,
        REWORDED,
        relevance=scores({("jaguar", "doc 3"): 0.7, ("my own | words", "doc 3"): 0.62}),
        similarity=scores({}, 1.0),
    )
    told = {"item_id": 3, "sources": int(P1), "first_day": DAY, "last_day": DAY}
    jaguar = {**told, "place": 1, "query": "jaguar", "searchers": 5, "users": 5, "events": 5,
              "via": "big cat", "via_users": 4, "theta": 0.7}  # fmt: skip
    own = {**told, "place": 2, "query": "my own   words", "searchers": 1, "users": 1, "events": 1,
           "via": "big cat", "via_users": 1, "theta": 0.62}  # fmt: skip
    assert expanded(tmp_path, users=1) == [jaguar, own]
    assert expanded(tmp_path) == [jaguar]
    assert expanded(tmp_path, users=1, queries=1) == expanded(tmp_path, users=1, relevance=0.65) == [jaguar]
    assert expanded(tmp_path, users=1, remove=["JAGUAR"]) == [{**own, "place": 1}]
    texts = added_texts(read_expansion(tmp_path / "expanded"))
    assert texts.to_pylist() == [{"item_id": 3, "mined_query": "my own   words"}]
    with pytest.raises(CropsError, match="has no evidence of p2 to add"):
        expanded(tmp_path, sources=["p2"])
    with pytest.raises(CropsError, match=f"adds queries of {DAY}, and {DAY} is the test day"):
        read_expansion(tmp_path / "expanded", DAY)


def test_an_expansion_by_a_theta_that_was_not_asked_is_refused(tmp_path):
    run(tmp_path, REWORDED, group_by="event")  # groups are events: the queries are those of their texts
    assert [row["query"] for row in expanded(tmp_path)] == ["jaguar"]
    with pytest.raises(CropsError, match="was mined without theta"):
        expanded(tmp_path, relevance=0.5)
