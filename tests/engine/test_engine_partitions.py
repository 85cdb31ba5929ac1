"""Work in shards and partitions within memory: the same tables whatever their number, hot keys do no harm."""

import subprocess
import sys
from pathlib import Path

import pytest
from days import random_logs
from handmade import FakeScorer, Row, clicked, evidence, hashed, labels, run, shown, watched
from large_logs import large_logs

from crops.engine.backend import duckdb_limit, file_partitions, parse_memory, query_partitions, shards
from crops.errors import CropsError
from crops.labels import Source

SETTINGS = {
    "search": {"max_clicked": 3, "max_exposed": 2, "max_unexposed": 2, "max_filtered": 2},
    "feed": {"max_items": 5, "window_s": 200, "relevance": 0.3},
    "max_positives_per_user": 3,
}


def in_partitions(monkeypatch, number: int) -> None:
    monkeypatch.setattr(sys.modules["crops.engine.mine"], "shards", lambda rows, row_bytes, memory: number)
    monkeypatch.setattr(sys.modules["crops.engine.mine"], "query_partitions", lambda rows, memory: number)
    for module in ("events", "mine"):
        monkeypatch.setattr(
            sys.modules[f"crops.engine.{module}"], "file_partitions", lambda rows, memory: 2 * number - 1
        )


@pytest.mark.parametrize("group_by", ["query", "event"])
def test_the_number_of_partitions_does_not_matter(tmp_path, monkeypatch, group_by):
    searches, feed = random_logs(seed=4, searches=120)
    generated = [{"query": f"query {number % 5}", "ocr_cover": f"text {number}"} for number in range(20)]
    given = {"relevance": FakeScorer(hashed), "similarity": FakeScorer(hashed), "generated": generated}
    results = []
    for number in (1, 11):  # 5 users and 8 queries: some of 11 partitions are empty
        in_partitions(monkeypatch, number)
        out = tmp_path / str(number)
        results.append(run(out, searches, feed, group_by=group_by, **given, **SETTINGS))
    assert len(results[0][0]["samples"]) > 50
    assert len(results[0][0]["evidence"]) > 50
    assert results[1] == results[0]


def test_extreme_ids_fall_into_one_partition_each(tmp_path, monkeypatch):
    in_partitions(monkeypatch, 3)
    searches, feed = [], []
    for number, user in enumerate((-(2**63), -1, 0, 2**63 - 1)):
        searches.append(shown(2 * number, user, "a", 0, 2**63 - 1))
        searches.append(clicked(2 * number + 1, user, "b", 30, 2**62))
        feed.append(watched(user, 2**61, 5))
    tables, _ = run(tmp_path, searches, feed)
    assert len(evidence(tables, Source.REFORMULATION)) == 4
    assert len(evidence(tables, Source.FEED)) == 8


def test_sizes():
    sizes = {"2GB": 2 * 10**9, "512MiB": 2**29, "1.5 gb": 1_500_000_000, "100": 100}
    assert {text: parse_memory(text) for text in sizes} == sizes
    for text in ("much", "", "0GB", "-1GB", "2 giga", "1e9"):
        with pytest.raises(CropsError, match="write a size such as '2GB'"):
            parse_memory(text)


def test_shards_fit_into_what_duckdb_gets():
    # 2 GB less 260 MB for the process: 1.74 GB hold 8.7 million rows of 200 bytes.
    assert duckdb_limit(2 * 10**9) == 1_740_000_000
    numbers = {0: 1, 1: 1, 8_700_000: 1, 8_700_001: 2, 100_000_000: 12}
    assert {rows: shards(rows, 200, 2 * 10**9) for rows in numbers} == numbers
    assert shards(10**12, 200, None) == 1


def test_merging_gets_more_partitions_than_memory_asks_for_and_files_where_rows_outgrow_a_third_of_it():
    # 3 million rows a partition are fast; 240 MB hold 1.2 million.
    assert [query_partitions(rows, 2 * 10**9) for rows in (0, 2_999_999, 10_000_000)] == [1, 1, 3]
    assert query_partitions(10_000_000, 500_000_000) == 9
    # A third of 1.74 GB keeps 10,545,454 impressions of 55 bytes: no more than these stay in memory.
    assert [file_partitions(rows, 2 * 10**9) for rows in (0, 10_545_454, 10_545_455)] == [1, 1, 12]
    assert file_partitions(10_000_000, 500_000_000) == 36
    assert query_partitions(10**12, None) == file_partitions(10**12, None) == 1


def busy_logs() -> tuple[list[Row], list[Row]]:
    """User 1 searches 4 times a day, user 2 watches 6 items a day, user 3 does less."""
    day = 86_400
    searches = [clicked(number, 1, "a", 100 * number, 10 + number) for number in range(4)]
    searches += [clicked(10, 2, "a", 0, 20), clicked(11, 3, "a", 0, 30), clicked(12, 3, "a", day, 31)]
    searches += [clicked(13, 3, "a", day + 1, 32), clicked(14, 3, "a", day + 2, 33)]
    feed = [watched(2, 40 + number, number) for number in range(6)]
    feed += [watched(3, 50 + number, number * day / 2) for number in range(4)]
    return searches, feed


def test_bot_like_users_are_left_out_and_counted(tmp_path):
    tables, report = run(
        tmp_path, *busy_logs(), bots={"max_searches_per_day": 3, "max_feed_events_per_day": 5}
    )
    # Only user 3 is left: one search on the first day and three on the second, never more than 3 a day.
    assert {item for _, item in labels(tables, ["a"])} == {30, 31, 32, 33, 50, 52}
    assert report["input"]["bots"] == {"users": 2, "searches": 5, "feed_events": 6}
    assert report["input"]["searches"] == 4
    assert tables["queries"][0]["users"] == 1
    assert "2 bot-like users left out, with 5 searches and 6 feed events" in report["notes"]
    as_many = {"max_searches_per_day": 4, "max_feed_events_per_day": 6}  # as the limit is no bot
    _, report = run(tmp_path / "more", *busy_logs(), bots=as_many)
    assert report["input"]["bots"] == {"users": 0, "searches": 0, "feed_events": 0}


def test_rare_queries_give_no_samples_but_count_as_later_queries(tmp_path):
    searches = [
        *(shown(user, user, "common", 0, 1) for user in (1, 2, 3)),
        clicked(10, 1, "rare", 30, 2),
    ]
    tables, _ = run(tmp_path, searches, [watched(1, 3, 5)], min_users=3)
    found = labels(tables, ["common", "rare"])
    assert set(found) == {("common", 1), ("common", 2), ("common", 3)}
    assert found["common", 2] == (5, Source.REFORMULATION)
    assert len(tables["queries"]) == 2


def test_groups_of_one_event(tmp_path):
    """The paper's record: one event and its documents, under the id of the event."""
    searches = [
        clicked(101, 1, "a", 0, 1),
        shown(101, 1, "a", 0, 2),
        shown(102, 2, "A", 0, 1),
        clicked(103, 2, "b", 30, 3),
    ]
    generated = [{"query": "a", "ocr_cover": "text"}]
    tables, report = run(tmp_path, searches, [watched(1, 4, 5)], generated=generated, group_by="event")
    synthetic = tables["synthetic_items"][0]["item_id"]
    assert {(row["query_id"], row["item_id"]): row["label"] for row in tables["samples"]} == {
        (101, 1): 4,
        (101, 2): 3,
        (101, 4): 4,  # P2 of user 1
        (101, synthetic): 4,
        (102, 1): 3,  # a click of user 1 is no click of user 2
        (102, 3): 5,  # P1 of user 2
        (102, synthetic): 4,
        (103, 3): 4,
    }
    assert [tuple(row.values()) for row in tables["queries"]] == [
        (101, "a", 1, 2),
        (102, "a", 1, 2),
        (103, "b", 1, 1),
    ]
    assert report["sources"]["p3"]["kept"] == 2


def test_one_user_with_most_events_and_one_query_with_most_impressions(tmp_path):
    """As many P2 and P1 rows of the hot user as the caps allow, and nobody else's lost."""
    hot = [shown(number, 1, "hot", number / 10, 1 + number % 50) for number in range(300)]
    others = [clicked(1000 + user, user, "hot", 5, 60) for user in range(2, 40)]
    feed = [watched(1, 100 + number % 1000, number / 60) for number in range(6_000)]
    tables, report = run(tmp_path, hot + others, feed, search={"max_exposed": 5})
    assert report["input"]["bots"]["users"] == 0
    p2 = evidence(tables, Source.FEED)
    # 100 items by time, of them 50 by the cap per user.
    assert len(p2) == 50
    assert report["sources"]["p2"]["candidates"] == 100
    assert labels(tables, ["hot"])["hot", 60] == (4, Source.CLICKED)


_MEASURE = """
import re, sys
from pathlib import Path
from crops.config import EngineConfig
from crops.engine import mine
from crops.logs import open_logs
mine(open_logs(Path(sys.argv[1])), Path(sys.argv[2]), EngineConfig(memory=sys.argv[3]), relevance=None,
similarity=None) # Not ru_maxrss: that of a child begins with its parent's.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.verify
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's high-water mark")
def test_peak_memory_stays_within_the_limit(tmp_path):
    large_logs(tmp_path / "logs", 15_000, hot_user=0.02)  # 300 thousand impressions, as many feed events
    limit = 400_000_000
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "logs"), str(tmp_path / "out"), str(limit)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) * 1024 < 1.15 * limit
