"""Daily builds that look over midnight: what counts by hand, late rows, and the order in which days come."""

import shutil
from dataclasses import replace

import pytest
from days import DAY_S, DAYS, contents, hashed_job, plain_job, random_logs
from handmade import (
    EXPOSED,
    NOON,
    P1,
    P2,
    FakeScorer,
    clicked,
    evidence,
    labels,
    read_tables,
    shown,
    watched,
    write_logs,
)

import crops.engine.daily
from crops.engine.daily import day_folder, mine_daily
from crops.engine.without import Without
from crops.errors import CropsError
from crops.logs import open_logs
from crops.pipeline import refuse_mined
from crops.text import query_id

MIDNIGHT = DAY_S // 2
"""Seconds from the noon of the first day to its end."""
SEEN = {"daily": {"lookback": 1}}


def by_hand(folder, searches, feed=(), days=DAYS[:2], config=SEEN):
    """Build the days; return the tables of the first two by their days."""
    mine_daily(write_logs(folder / "logs", searches, list(feed)), folder / "out", plain_job(**config), days)
    return [read_tables(day_folder(folder / "out", day)) for day in days[:2]]


REWORDED = [
    shown(1, 1, "a", MIDNIGHT - 30, 1),
    clicked(2, 1, "b", MIDNIGHT + 50, 5),  # 23:59:30 to 00:00:50 is 80 s
    shown(3, 2, "a", MIDNIGHT - 30, 1),
    clicked(4, 2, "c", MIDNIGHT + 70, 6),  # 100 s
    shown(5, 3, "a", MIDNIGHT - 30, 1),
    shown(6, 3, "d", MIDNIGHT + 20, 7),  # seen and not consumed
    shown(7, 4, "a", MIDNIGHT - 30, 1),
    clicked(8, 4, "A", MIDNIGHT + 40, 8),  # paging
]


def test_a_search_of_the_next_day_is_a_later_query_and_nothing_else(tmp_path):
    first, second = by_hand(tmp_path, REWORDED)
    assert labels(first, ["a"]) == {("a", 1): (3, EXPOSED), ("a", 5): (5, P1)}
    assert first["queries"] == [{"query_id": query_id("a"), "query": "a", "searches": 4, "users": 4}]
    (event,) = first["evidence"]
    assert (event["search_id"], event["via_query_id"], event["day"]) == (1, query_id("b"), DAYS[0])
    assert {row["query"]: row["searches"] for row in second["queries"]} == dict.fromkeys("abcd", 1)
    assert not evidence(second, P1)
    window = read_tables(tmp_path / "out" / "window")
    assert {row["query"]: row["searches"] for row in window["queries"]} == {"a": 5, "b": 1, "c": 1, "d": 1}
    assert [row["item_id"] for row in evidence(window, P1)] == [5]


@pytest.mark.parametrize("group_by", ["query", "event"])
def test_the_feed_counts_on_both_sides_of_midnight(tmp_path, group_by):
    """Half the window is 1800 s."""
    first, second = by_hand(
        tmp_path,
        [shown(1, 1, "a", MIDNIGHT - 600, 1), shown(2, 2, "b", MIDNIGHT + 600, 1)],
        [
            watched(1, 5, MIDNIGHT + 1200),
            watched(1, 6, MIDNIGHT + 1201),
            watched(2, 7, MIDNIGHT - 1200),
            watched(2, 8, MIDNIGHT - 1201),
            watched(2, 9, MIDNIGHT - 5, play_ms=3_000),  # skipped
            watched(3, 10, MIDNIGHT),  # who searched nothing
        ],
        config={**SEEN, "group_by": group_by},
    )
    assert [(row["item_id"], row["search_id"], row["day"]) for row in evidence(first, P2)] == [
        (5, 1, DAYS[0])
    ]
    assert [(row["item_id"], row["search_id"], row["day"]) for row in evidence(second, P2)] == [
        (7, 2, DAYS[1])
    ]
    assert evidence(second, P2)[0]["watched_at"] == NOON + (MIDNIGHT - 1200) * 1_000_000


def test_nothing_crosses_midnight_without_a_lookback(tmp_path):
    feed = [watched(1, 9, MIDNIGHT + 5), watched(3, 9, MIDNIGHT - 5)]
    for tables in by_hand(tmp_path, REWORDED, feed, config={}):
        assert {row["item_id"] for row in tables["samples"] if row["sources"] & P1} == set()
        assert all(row["day"] == DAYS[0] for row in evidence(tables, P2) if row["search_id"] < 2)
    with pytest.raises(CropsError, match=r"engine.daily.lookback was 0, now 1; .* --rebuild"):
        mine_daily(open_logs(tmp_path / "logs"), tmp_path / "out", plain_job(**SEEN), DAYS[1:2])


def test_a_later_query_of_the_next_day_needs_the_same_intent(tmp_path):
    asked = []

    def similar(left, right):
        asked.append((left, right))
        return 0.4

    logs = write_logs(tmp_path / "logs", REWORDED)
    job = plain_job(**SEEN)
    object.__setattr__(job, "similarity", FakeScorer(similar))
    mine_daily(logs, tmp_path / "out", job, DAYS[:2])
    assert ("a", "b") in asked
    assert not evidence(read_tables(day_folder(tmp_path / "out", DAYS[0])), P1)


def test_a_day_that_is_kept_for_evaluation_is_not_seen_until_it_is_added(tmp_path, capsys):
    logs, out = write_logs(tmp_path / "logs", REWORDED), tmp_path / "out"
    mine_daily(logs, out, plain_job(**SEEN), DAYS[:1])
    assert not evidence(read_tables(out / "window"), P1)
    mine_daily(logs, out, plain_job(**SEEN), DAYS[1:2])
    assert f"{DAYS[0]} is mined again: it sees other rows of {DAYS[1]} than before" in capsys.readouterr().err
    assert [row["item_id"] for row in evidence(read_tables(out / "window"), P1)] == [5]
    with pytest.raises(CropsError, match=rf"was mined from {DAYS[1]}, the test day"):
        refuse_mined(day_folder(out, DAYS[0]), DAYS[1])
    refuse_mined(day_folder(out, DAYS[1]), DAYS[0])
    mine_daily(logs, out, plain_job(daily={"lookback": 2}), DAYS[1:2])  # how far back is free to change
    assert "is mined again" not in capsys.readouterr().err


def around_midnight(days=3):
    """Return searches and feed events from 23:43 to 00:25 of some nights: of one day more."""
    searches, feed = [], []
    for night in range(days):
        shift = (night * DAY_S + MIDNIGHT - 1000) * 1_000_000
        found, events = random_logs(seed=night, searches=40)
        searches += [
            {**row, "search_id": row["search_id"] + 1000 * night, "searched_at": row["searched_at"] + shift}
            for row in found
        ]
        feed += [{**row, "watched_at": row["watched_at"] + shift} for row in events]
    return searches, feed


NIGHTS = (*DAYS, "2026-01-08")


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """Logs of three nights, and their four days built at once."""
    folder = tmp_path_factory.mktemp("nights")
    logs = write_logs(folder / "logs", *around_midnight())
    mine_daily(logs, folder / "out", hashed_job(**SEEN), NIGHTS)
    mine_daily(logs, folder / "alone", hashed_job(), NIGHTS)
    whole, alone = contents(folder / "out"), contents(folder / "alone")
    assert all(whole[name] != alone[name] for name in whole if name != f"day={NIGHTS[3]}")
    return logs, whole


def of_days(logs, folder, *days):
    """Return logs that hold the rows of these days, and the catalogue."""
    folder.mkdir()
    shutil.copy(logs.path / "items.parquet", folder)
    for day in days:
        for table in ("search_impressions", "feed_events"):
            shutil.copytree(logs.path / table / f"day={day}", folder / table / f"day={day}")
    return open_logs(folder)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 2, 1)])
def test_days_that_come_one_by_one_end_as_those_built_at_once(nights, tmp_path, order):
    logs, whole = nights
    for at in order:  # each in a logs folder of its own
        day = NIGHTS[at]
        mine_daily(of_days(logs, tmp_path / day, day), tmp_path / "out", hashed_job(**SEEN), [day])
    assert contents(tmp_path / "out") == whole
    shutil.rmtree(tmp_path / NIGHTS[2])
    with pytest.raises(
        CropsError, match=rf"the logs of {NIGHTS[2]} are gone, and {NIGHTS[1]} sees their rows"
    ):
        mine_daily(
            open_logs(tmp_path / NIGHTS[1]), tmp_path / "out", hashed_job(**SEEN), [NIGHTS[1]], rebuild=True
        )


def test_a_build_that_was_stopped_between_a_day_and_the_one_before_goes_on(nights, tmp_path, monkeypatch):
    logs, whole = nights
    out, built = tmp_path / "out", crops.engine.daily._build_day
    mine_daily(logs, out, hashed_job(**SEEN), NIGHTS[:3])

    def stopped(source, folder, day, *given):
        if day == NIGHTS[3]:
            raise KeyboardInterrupt
        built(source, folder, day, *given)

    with monkeypatch.context() as patched:
        patched.setattr(crops.engine.daily, "_build_day", stopped)
        with pytest.raises(KeyboardInterrupt):  # the third day has seen the fourth, which is not there
            mine_daily(logs, out, hashed_job(**SEEN), NIGHTS[3:])
    mine_daily(logs, out, hashed_job(**SEEN), NIGHTS[2:3])
    assert set(contents(out)) == {*(f"day={day}" for day in NIGHTS[:3]), "window"}
    mine_daily(logs, out, hashed_job(**SEEN), NIGHTS[3:])
    assert contents(out) == whole


def test_late_rows_of_the_last_days_are_mined_without_being_asked_for(nights, tmp_path, capsys):
    """Rows of the third day, one before the newest, are late; then of the second, which is too old."""
    logs, whole = nights
    searches, feed = around_midnight()
    ends = NOON + (2 * DAY_S + MIDNIGHT) * 1_000_000
    early = [row for row in searches if not ends - 500_000_000 < row["searched_at"] < ends]
    grown, out = write_logs(tmp_path / "grown", early, feed), tmp_path / "out"
    mine_daily(grown, out, hashed_job(**SEEN), NIGHTS)
    assert contents(out) != whole
    late = f"search_impressions/day={NIGHTS[2]}/0.parquet"
    shutil.copy(logs.path / late, grown.path / late)
    mine_daily(open_logs(grown.path), out, hashed_job(**SEEN), NIGHTS[3:])
    assert f"{NIGHTS[2]} is mined again: its files have changed" in capsys.readouterr().err
    assert contents(out) == whole
    old = grown.path / f"feed_events/day={NIGHTS[1]}/0.parquet"
    shutil.copy(logs.path / f"feed_events/day={NIGHTS[0]}/0.parquet", old)
    with pytest.raises(
        CropsError, match=rf"day={NIGHTS[1]} was built from other logs of that day; .* --rebuild"
    ):
        mine_daily(open_logs(grown.path), out, hashed_job(**SEEN), NIGHTS)
    assert contents(out) == whole


def test_a_window_of_more_than_a_day_is_refused(tmp_path):
    job = plain_job(**SEEN, feed={"window_s": 90_000})
    with pytest.raises(CropsError, match=r"engine.feed.window_s = 90000 is more than a day"):
        mine_daily(write_logs(tmp_path / "logs", REWORDED), tmp_path / "out", job, DAYS[:1])


def test_days_may_count_their_searches_from_one_each(tmp_path):
    job, out = plain_job(**SEEN), tmp_path / "out"
    first = [shown(1, 1, "a", MIDNIGHT - 30, 1), shown(2, 9, "z", 0, 5)]
    mine_daily(write_logs(tmp_path / "first", first), out, job)
    mine_daily(write_logs(tmp_path / "second", [clicked(1, 1, "b", MIDNIGHT + 30, 5)]), out, job)
    (event,) = evidence(read_tables(day_folder(out, DAYS[0])), P1)
    assert (event["item_id"], event["search_id"], event["via_query_id"]) == (5, 1, query_id("b"))


def test_logs_that_no_longer_hold_a_day_tell_nothing_new_of_it(tmp_path, nights, capsys):
    """As where logs keep as many days as the window: the oldest has seen one that is gone."""
    logs, out, job = nights[0], tmp_path / "out", plain_job(daily={"lookback": 1, "window": 2})
    kept = tmp_path / "kept"
    shutil.copytree(logs.path, kept)
    mine_daily(open_logs(kept), out, job, DAYS[:2])
    before = read_tables(day_folder(out, DAYS[1]))
    for table in ("search_impressions", "feed_events"):
        shutil.rmtree(kept / table / f"day={DAYS[0]}")
    capsys.readouterr()
    mine_daily(open_logs(kept), out, job, DAYS[1:2])
    assert "is mined again" not in capsys.readouterr().err
    assert read_tables(day_folder(out, DAYS[1])) == before


def test_a_day_between_those_built_is_seen_and_no_test_day(tmp_path):
    feed = [watched(1, 9, DAY_S + MIDNIGHT - 5)]
    searches = [shown(1, 1, "a", 0, 1), shown(2, 1, "b", DAY_S, 1), shown(3, 1, "a", DAY_S + MIDNIGHT + 5, 1)]
    by_hand(tmp_path, searches, feed, days=(DAYS[0], DAYS[2]))
    for folder in (day_folder(tmp_path / "out", DAYS[2]), tmp_path / "out" / "window"):
        with pytest.raises(CropsError, match=f"was mined from {DAYS[1]}, the test day, or saw its rows"):
            refuse_mined(folder, DAYS[1])


def test_a_day_that_is_left_without_a_search_is_not_seen(tmp_path):
    """User 2 alone searched on the second day; the first saw its feed."""
    searches = [shown(1, 1, "a", MIDNIGHT - 30, 1), shown(2, 2, "b", MIDNIGHT + 600, 1)]
    logs, out = write_logs(tmp_path / "logs", searches, [watched(1, 5, MIDNIGHT + 10)]), tmp_path / "out"
    mine_daily(logs, out, plain_job(**SEEN), DAYS[:2])
    assert [row["item_id"] for row in evidence(read_tables(out / "window"), P2)] == [5]
    mine_daily(logs, out, replace(plain_job(**SEEN), without=Without(frozenset([2]), frozenset())), DAYS[:2])
    assert not day_folder(out, DAYS[1]).exists()
    assert not evidence(read_tables(out / "window"), P2)


def test_logs_that_cannot_be_opened_any_more_are_told_and_stop_no_build(tmp_path, capsys):
    job, out = plain_job(**SEEN), tmp_path / "out"
    first = write_logs(tmp_path / "first", [shown(1, 1, "a", 0, 1)])
    mine_daily(first, out, job)
    (first.path / "items.parquet").write_bytes(b"damaged")
    mine_daily(write_logs(tmp_path / "third", [shown(2, 1, "a", 2 * DAY_S, 1)]), out, job)
    said = capsys.readouterr().err
    assert "days that were mined from them stay as they are:" in said
    assert "items.parquet" in said
    assert (out / "window" / "samples.parquet").exists()
