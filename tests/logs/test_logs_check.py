"""`crops check`: every bad input by name, each row with all its reasons, and the balance of rows."""

import itertools
import math
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.logs import TableCounts, check, open_logs

NOON = 1_767_614_400_000_000
"""2026-01-05 12:00:00 UTC."""
DAY = 86_400_000_000
NAN, INF = math.nan, math.inf
GOOD = {"search_id": 99}


def reasons(report):
    return {fault.reason: fault.count for fault in report.faults}


BAD_IMPRESSIONS = [
    ({"searched_at": NOON // 1_000_000}, "time_unit"),
    ({"searched_at": NOON // 1_000}, "time_unit"),
    ({"searched_at": 4_102_444_800_000_001}, "time_unit"),
    ({"query": ""}, "empty_query"),
    ({"query": "   "}, "empty_query"),
    ({"query": "\u3000\xa0\u1680"}, "empty_query"),
    ({"query": "x" * 1001}, "query_too_long"),
    ({"query": "x" * 100_000}, "query_too_long"),
    ({"query": "\x00\x1b\x92"}, "empty_query"),
    ({"query": "\ufeff"}, "empty_query"),
    ({"query": "\u200b \u200d\u2060"}, "empty_query"),
    ({"query": "\u3164\u2800\u00ad"}, "empty_query"),
    ({"query": "\ufe0f\u0301"}, "empty_query"),
    ({"query": "caf\ufffd"}, "broken_encoding"),
    ({"query": None}, "null_query"),
    ({"user_id": None}, "null_user_id"),
    ({"clicked": None}, "null_clicked"),
    ({"stage": "shown"}, "unknown_stage"),
    ({"rank": 0}, "rank_not_positive"),
    ({"rank": 3.0e9}, "out_of_range_rank"),
    ({"rank": 1.5}, "fractional_rank"),
    ({"rank": 3, "stage": "filtered"}, "rank_of_unshown"),
    ({"clicked": True, "stage": "unexposed"}, "clicked_unshown"),
    ({"play_ms": -1}, "negative_play_ms"),
    ({"play_ms": NAN}, "nan_play_ms"),
    ({"play_ms": INF}, "nan_play_ms"),
    ({"play_ms": 1e300}, "out_of_range_play_ms"),
    ({"play_ms": 2.0**63}, "out_of_range_play_ms"),
    ({"play_ms": 0.5}, "fractional_play_ms"),
    ({"duration_ms": -5}, "negative_duration_ms"),
    ({"play_ms": 604_800_001}, "unit_play_ms"),
    ({"routes": -1}, "negative_routes"),
    ({"liked": True, "stage": "filtered"}, "liked_unshown"),
    ({"play_ms": 1, "stage": "unexposed"}, "played_unshown"),
    ({"pre_score": NAN}, "nan_pre_score"),
    ({"item_id": 404}, "unknown_item"),
]
BAD_ITEMS = [
    ({"item_id": -3}, "item_id_not_positive"),
    ({"item_id": None}, "null_item_id"),
    ({"item_id": 2, "ocr_cover": " ", "keyword": ""}, "no_text"),
    ({"item_id": 3, "ocr_cover": "\ufeff", "keyword": "\u200b\x07"}, "no_text"),
    ({"item_id": 4, "uploaded_at": 1_767_614_400}, "time_unit"),
    ({"item_id": 5, "like_cnt": NAN}, "nan_like_cnt"),
    ({"item_id": 1, "ocr_cover": "again"}, "duplicate_key"),
]


def test_each_bad_impression_is_rejected_by_name_with_its_column_remedy_and_first_row(write_logs, tmp_path):
    impressions = [GOOD, *({"search_id": i, **bad} for i, (bad, _) in enumerate(BAD_IMPRESSIONS))]
    logs = write_logs(tmp_path / "logs", items=[{"item_id": 1}], impressions=impressions)
    report = check(logs, tmp_path / "out")
    rejects = pq.read_table(tmp_path / "out/rejects/search_impressions").to_pylist()
    expected = {i: [reason] for i, (_, reason) in enumerate(BAD_IMPRESSIONS)}
    assert {row["search_id"]: row["reasons"] for row in rejects} == expected
    assert reasons(report) == Counter(reason for _, reason in BAD_IMPRESSIONS)
    bad = len(BAD_IMPRESSIONS)
    assert report.tables["search_impressions"] == TableCounts(rows=bad + 1, accepted=1, rejected=bad)
    for fault in report.faults:
        source = pq.read_table(logs / fault.file, partitioning=None).to_pylist()[fault.row]
        bad, reason = BAD_IMPRESSIONS[source["search_id"]]
        assert fault.reason == reason
        assert fault.column == ("rank" if reason == "rank_of_unshown" else next(iter(bad)))
        shown, value = fault.example.get(fault.column), bad[fault.column]
        if isinstance(shown, str) and len(value) > 100:
            assert shown == value[:100] + "..."
        else:
            assert shown == pytest.approx(value, nan_ok=True)
        assert fault.remedy


def test_a_row_with_nan_is_rejected_for_that_alone_whatever_other_rows_hold(write_logs, tmp_path):
    # By the statistics of its file each play time here is from 1 to a week, and none is negative, or each is.
    nan = {"search_id": 1, "play_ms": NAN, "stage": "unexposed"}
    for other in (5.0, -5.0):
        impressions = [GOOD, nan, {"search_id": 2, "play_ms": other}]
        check(write_logs(tmp_path / f"logs {other}", impressions=impressions), tmp_path / "out")
        rejects = pq.read_table(tmp_path / "out/rejects/search_impressions").to_pylist()
        assert [row["reasons"] for row in rejects if row["search_id"] == 1] == [["nan_play_ms"]]


def test_bad_items_are_rejected_by_name_and_unknown_to_impressions(write_logs, tmp_path):
    items = [{"item_id": 1}, *(bad for bad, _ in BAD_ITEMS)]
    logs = write_logs(tmp_path / "logs", items=items, impressions=[{"item_id": 1}, {"item_id": 2}])
    report = check(logs, tmp_path / "out")
    rejects = pq.read_table(tmp_path / "out/rejects/items").to_pylist()
    expected = {bad["item_id"]: [reason] for bad, reason in BAD_ITEMS}
    assert {row["item_id"]: row["reasons"] for row in rejects} == expected
    assert report.tables["items"] == TableCounts(rows=8, accepted=1, rejected=7)
    assert reasons(report)["unknown_item"] == 1


def test_feed_events_are_checked_and_may_all_be_rejected(write_logs, tmp_path):
    feed = [{"watched_at": 5}, {"item_id": 404}, {"play_ms": NAN}]
    report = check(write_logs(tmp_path / "logs", items=[{"item_id": 1}], feed=feed), tmp_path / "out")
    assert reasons(report) == {"time_unit": 1, "unknown_item": 1, "nan_play_ms": 1}
    assert report.tables["feed_events"] == TableCounts(rows=3, accepted=0, rejected=3)
    assert report.facts.p2 is False
    assert open_logs(tmp_path / "out/accepted").feed_days == ()


def test_a_row_with_several_faults_lists_each_and_counts_once(write_logs, tmp_path):
    bad = {"query": "", "rank": 0, "stage": "seen", "play_ms": -1, "item_id": 404}
    logs = write_logs(tmp_path / "logs", items=[{"item_id": 1}], impressions=[GOOD, bad])
    report = check(logs, tmp_path / "out")
    expected = ["empty_query", "negative_play_ms", "rank_not_positive", "rank_of_unshown", "unknown_item"]
    assert set(reasons(report).values()) == {1}
    assert sorted(reasons(report)) == sorted([*expected, "unknown_stage"])
    assert report.tables["search_impressions"] == TableCounts(rows=2, accepted=1, rejected=1)
    (row,) = pq.read_table(tmp_path / "out/rejects/search_impressions").to_pylist()
    assert sorted(row["reasons"]) == sorted([*expected, "unknown_stage"])


def test_of_duplicates_the_first_acceptable_row_is_kept(write_logs, tmp_path):
    # The same (search, item) four times: the first has its own fault, so the second is kept.
    impressions = [{"rank": rank, "item_id": 1} for rank in (0, 1, 2, 0)] + [{"item_id": 2}]
    report = check(write_logs(tmp_path / "logs", impressions=impressions), tmp_path / "out")
    assert reasons(report) == {"rank_not_positive": 2, "duplicate_key": 3}
    kept = pq.read_table(tmp_path / "out/accepted/search_impressions").to_pylist()
    assert [(row["item_id"], row["rank"]) for row in kept] == [(1, 1), (2, None)]
    rejects = pq.read_table(tmp_path / "out/rejects/search_impressions").to_pylist()
    assert [(row["row"], row["reasons"]) for row in rejects] == [
        (0, ["rank_not_positive", "duplicate_key"]),
        (2, ["duplicate_key"]),
        (3, ["rank_not_positive", "duplicate_key"]),
    ]
    # across files, that of the first file
    logs, other = (write_logs(tmp_path / str(rank), impressions=[{"rank": rank}]) for rank in (1, 2))
    day = logs / "search_impressions/day=2026-01-05"
    shutil.copy(other / "search_impressions/day=2026-01-05/part-0.parquet", day / "part-1.parquet")
    (fault,) = check(logs, tmp_path / "first").faults
    assert (fault.reason, fault.file) == ("duplicate_key", f"{day.relative_to(logs)}/part-1.parquet")
    (row,) = pq.read_table(tmp_path / "first/accepted/search_impressions").to_pylist()
    assert row["rank"] == 1


SAME = {"search_id": 1, "item_id": 1, "query": "ficus"}
IMPRESSION = {**SAME, "rank": 3, "pre_score": 0.5, "routes": 1, "play_ms": 0, "query": "Ficus", "arm": None}
CLICK = {**SAME, "searched_at": NOON + 5_000_000, "clicked": True, "routes": 4, "arm": "b"}
CLICK |= {"play_ms": 20_000, "duration_ms": 30_000}
LIKE = {**SAME, "searched_at": NOON + 9_000_000, "liked": True, "rank": 13, "pre_score": 0.7}
RANKED = {**SAME, "stage": "unexposed"}
MERGED = {
    "user_id": 1, "search_id": 1, "query": "Ficus", "searched_at": NOON, "item_id": 1, "stage": "exposed",
    "rank": 3, "pre_score": 0.7, "routes": 5, "arm": "b", "clicked": True, "liked": True,
    "play_ms": 20_000, "duration_ms": 30_000,
}  # fmt: skip


def accepted(folder, table):
    files = sorted((folder / "accepted" / table).rglob("*.parquet"))
    return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


def test_rows_of_one_key_merge_whatever_their_order(write_logs, tmp_path):
    rows = [IMPRESSION, CLICK, LIKE, RANKED]
    orders = list(enumerate(itertools.permutations(rows)))
    impressions = [{**row, "search_id": search} for search, order in orders for row in order]
    report = check(write_logs(tmp_path / "logs", impressions=impressions), tmp_path / "out")
    assert reasons(report) == {"duplicate_key": 72}
    merged = [{**MERGED, "search_id": search} for search, _ in orders]
    assert accepted(tmp_path / "out", "search_impressions") == merged
    assert report.tables["search_impressions"] == TableCounts(rows=96, accepted=24, rejected=72)
    assert report.merged == {"search_impressions": 24}


@pytest.mark.parametrize("partitioned", [True, False])
def test_a_click_logged_after_midnight_belongs_to_its_impression(write_logs, tmp_path, partitioned):
    late = {**CLICK, "searched_at": NOON + DAY // 2 + 1}
    logs = write_logs(
        tmp_path / "logs", impressions=[IMPRESSION, late, {"search_id": 2, "searched_at": NOON + DAY}]
    )
    if not partitioned:
        files = sorted((logs / "search_impressions").rglob("*.parquet"), reverse=True)
        table = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
        shutil.rmtree(logs / "search_impressions")
        pq.write_table(table, logs / "search_impressions.parquet")
    report = check(logs, tmp_path / "out")
    assert reasons(report) == {"duplicate_key": 1}
    kept = accepted(tmp_path / "out", "search_impressions")
    assert [(row["search_id"], row["searched_at"], row["clicked"]) for row in kept] == [
        (1, NOON, True),
        (2, NOON + DAY, False),
    ]
    assert open_logs(tmp_path / "out/accepted").search_days == ("2026-01-05", "2026-01-06")


@pytest.mark.parametrize("turn", [1, -1])
def test_feed_events_of_one_key_merge(write_logs, tmp_path, turn):
    feed = [{"play_ms": 1_000, "duration_ms": 9_000}, {"play_ms": 8_000, "liked": True}, {"clicked": True}]
    report = check(write_logs(tmp_path / "logs", feed=feed[::turn]), tmp_path / "out")
    assert reasons(report) == {"duplicate_key": 2}
    (row,) = accepted(tmp_path / "out", "feed_events")
    merged = {"play_ms": 8_000, "duration_ms": 9_000, "liked": True, "clicked": True}
    assert row == {"user_id": 1, "item_id": 1, "watched_at": NOON, **merged}
    # two items at one time are a batch; the first event again is a replay
    feed = [{"item_id": 1}, {"item_id": 2}, {"item_id": 1}, {"item_id": 1, "watched_at": NOON + 1}]
    report = check(write_logs(tmp_path / "batch", feed=feed))
    assert reasons(report) == {"duplicate_key": 1}
    assert report.tables["feed_events"] == TableCounts(rows=4, accepted=3, rejected=1)


@pytest.mark.parametrize("turn", [1, -1])
def test_of_an_item_the_row_with_the_highest_counters_is_kept_whole(write_logs, tmp_path, turn):
    items = [
        {"item_id": 1, "ocr_cover": "old", "keyword": "gone", "play_cnt": 5},
        {"item_id": 1, "ocr_cover": "new", "play_cnt": 9},
        {"item_id": 1, "ocr_cover": "not known"},
        {"item_id": 2, "ocr_cover": "a"},
        {"item_id": 2, "ocr_cover": "b"},
    ]
    report = check(write_logs(tmp_path / "logs", items=items[::turn]), tmp_path / "out")
    assert reasons(report) == {"duplicate_key": 3}
    kept = pq.read_table(tmp_path / "out/accepted/items.parquet").to_pylist()
    assert {(row["item_id"], row["ocr_cover"], row["keyword"]) for row in kept} == {
        (1, "new", None),
        (2, "b", None),
    }


def test_what_is_accepted_does_not_depend_on_the_order_of_rows_and_files(write_logs, tmp_path):
    rng = np.random.default_rng(1)
    rows = random_impressions(rng, 300)
    found = []
    for number in range(3):
        shuffled = [rows[i] for i in rng.permutation(len(rows))]
        logs = write_logs(tmp_path / f"logs{number}", [{"item_id": i} for i in range(1, 8)], shuffled)
        for file in (logs / "search_impressions").rglob("*.parquet"):
            table, half = pq.read_table(file, partitioning=None), int(rng.integers(20, 100))
            pq.write_table(table[half:], file)
            pq.write_table(table[:half], file.with_name(f"{rng.integers(10)}.parquet"))
        report = check(logs, tmp_path / f"out{number}")
        kept = accepted(tmp_path / f"out{number}", "search_impressions")
        found.append((sorted(map(str, kept)), report.tables, report.merged))
    assert found[0] == found[1] == found[2]
    assert found[0][2]["search_impressions"] > 5


def test_a_search_of_two_users_or_two_queries_keeps_the_earliest(write_logs, tmp_path):
    impressions = [
        {"search_id": 1, "item_id": 1, "query": "Ficus  tree"},
        {"search_id": 1, "item_id": 2, "query": "ficus tree"},  # the same, normalised
        {"search_id": 1, "item_id": 3, "query": "bonsai", "searched_at": NOON + 1},
        {"search_id": 2, "item_id": 1, "user_id": 7, "rank": 0},  # its own fault: it does not decide
        {"search_id": 2, "item_id": 2, "user_id": 8},
        {"search_id": 2, "item_id": 3, "user_id": 8},
        {"search_id": 3, "item_id": 1, "user_id": 1},
        {"search_id": 3, "item_id": 2, "user_id": 2},  # of one time: the lower values decide
        {"search_id": 3, "item_id": 2, "user_id": 1},  # the row above is out, so this is no duplicate
    ]
    report = check(write_logs(tmp_path / "logs", impressions=impressions), tmp_path / "out")
    assert reasons(report) == {"mixed_search": 3, "rank_not_positive": 1, "duplicate_key": 1}
    kept = pq.read_table(tmp_path / "out/accepted/search_impressions").to_pylist()
    known = [(row["search_id"], row["item_id"], row["user_id"]) for row in kept]
    assert known == [(1, 1, 1), (1, 2, 1), (2, 2, 8), (2, 3, 8), (3, 1, 1), (3, 2, 1)]
    rejects = pq.read_table(tmp_path / "out/rejects/search_impressions").to_pylist()
    assert [row["reasons"] for row in rejects] == [
        ["mixed_search"],
        ["rank_not_positive", "mixed_search"],
        ["mixed_search", "duplicate_key"],
    ]


def test_rows_far_from_the_day_of_their_partition_have_a_skewed_clock(write_logs, tmp_path):
    # 2026-01-05 in any time zone: from 14 h before UTC midnight to 12 h after the next one.
    midnight = NOON - DAY // 2
    hour = DAY // 24
    times = [midnight - 14 * hour, midnight - 14 * hour - 1, midnight + 36 * hour, midnight + 36 * hour + 1]
    logs = write_logs(
        tmp_path / "logs", impressions=[{"search_id": i} for i in range(4)], items=[{"item_id": 1}]
    )
    path = logs / "search_impressions/day=2026-01-05/part-0.parquet"
    table = pq.read_table(path, partitioning=None)
    at = table.column_names.index("searched_at")
    pq.write_table(table.set_column(at, "searched_at", pa.array(times)), path)
    report = check(logs, tmp_path / "out")
    assert reasons(report) == {"wrong_day": 2}
    kept = pq.read_table(tmp_path / "out/accepted/search_impressions").to_pylist()
    assert [row["search_id"] for row in kept] == [0, 2]


def test_out_of_order_rows_are_kept_in_the_order_of_the_files(write_logs, tmp_path):
    times = np.random.default_rng(0).permutation(500)
    impressions = [{"search_id": int(i), "searched_at": NOON + int(i), "rank": int(i) % 50} for i in times]
    report = check(write_logs(tmp_path / "logs", impressions=impressions), tmp_path / "out")
    assert reasons(report) == {"rank_not_positive": 10}
    kept = pq.read_table(tmp_path / "out/accepted/search_impressions")["search_id"].to_pylist()
    assert kept == [i for i in times if i % 50]


def test_rejects_keep_all_their_columns(write_logs, tmp_path):
    logs = write_logs(tmp_path / "logs", impressions=[GOOD, {"rank": 0}])
    path = logs / "search_impressions/day=2026-01-05/part-0.parquet"
    table = pq.read_table(path, partitioning=None)
    own = {"device": ["a", "b"], "file": ["x", "y"], "my column": [1, 2]}
    for name, values in own.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)
    check(logs, tmp_path / "out")
    (row,) = pq.read_table(tmp_path / "out/rejects/search_impressions").to_pylist()
    assert (row["device"], row["file_"], row["my column"]) == ("b", "y", 2)
    assert (row["file"], row["row"]) == ("search_impressions/day=2026-01-05/part-0.parquet", 1)
    accepted = pq.read_table(tmp_path / "out/accepted/search_impressions")
    assert not set(own) & set(accepted.column_names)


def expected_reasons(row, known):
    """The reasons of one impression, written again from the contract's prose."""
    found = set()
    if not row["query"]:
        found.add("empty_query")
    if row["stage"] not in ("exposed", "unexposed", "filtered"):
        found.add("unknown_stage")
    if row["rank"] is not None and row["rank"] < 1:
        found.add("rank_not_positive")
    if row["rank"] is not None and row["stage"] != "exposed":
        found.add("rank_of_unshown")
    if row["clicked"] and row["stage"] != "exposed":
        found.add("clicked_unshown")
    if row["play_ms"] is not None and math.isnan(row["play_ms"]):
        found.add("nan_play_ms")
    if row["play_ms"] is not None and row["play_ms"] > 0 and row["stage"] != "exposed":
        found.add("played_unshown")
    if row["searched_at"] < 10**15:
        found.add("time_unit")
    if row["item_id"] not in known:
        found.add("unknown_item")
    return found


def first_acceptable(rows, expected, key, order=lambda row: 0):
    """The number of the first row without a reason by key, or of the first row if there is none."""
    found = {}
    for good in (True, False):
        for i, row in sorted(enumerate(rows), key=lambda numbered: order(numbered[1])):
            if good != bool(expected[i]):
                found.setdefault(tuple(row[name] for name in key), i)
    return found


def random_impressions(rng, n):
    rows = [
        {
            "search_id": int(rng.integers(n // 4)),
            "item_id": int(rng.integers(1, 9)),
            "user_id": int(rng.choice([1, 2], p=[0.95, 0.05])),
            "query": str(rng.choice(["", "q", " Q", "other"], p=[0.05, 0.8, 0.1, 0.05])),
            "stage": str(rng.choice(["exposed", "unexposed", "filtered", "lost"], p=[0.7, 0.15, 0.1, 0.05])),
            "rank": [None, 0, 1, 2][rng.choice(4, p=[0.8, 0.05, 0.1, 0.05])],
            "clicked": bool(rng.random() < 0.1),
            "play_ms": [None, 5.0, NAN][rng.choice(3, p=[0.6, 0.35, 0.05])],
            "searched_at": [NOON, NOON // 1000][rng.choice(2, p=[0.95, 0.05])],
        }
        for _ in range(n)
    ]
    # DuckDB judges NaN by its column's statistics, which leave it out: a second reason may or may not come.
    return [
        row | {"play_ms": None} if row["stage"] != "exposed" and row["play_ms"] != 5.0 else row
        for row in rows
    ]


@pytest.mark.parametrize("partitioned", [True, False])
def test_random_logs_split_as_the_contract_says_in_words(write_logs, tmp_path, partitioned):
    logs = write_logs(
        tmp_path / "logs",
        items=[{"item_id": i} for i in range(1, 8)],
        impressions=random_impressions(np.random.default_rng(0), 400),
    )
    files = sorted((logs / "search_impressions").rglob("*.parquet"))
    table = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
    if not partitioned:
        shutil.rmtree(logs / "search_impressions")
        pq.write_table(table, logs / "search_impressions.parquet")
    rows = table.to_pylist()

    expected = [expected_reasons(row, known=set(range(1, 8))) for row in rows]
    searches = first_acceptable(
        rows,
        expected,
        key=("search_id",),
        order=lambda row: (row["searched_at"], row["user_id"], row["query"].strip().lower()),
    )
    for row, found in zip(rows, expected, strict=True):
        one = rows[searches[(row["search_id"],)]]
        if (one["user_id"], one["query"].strip().lower()) != (row["user_id"], row["query"].strip().lower()):
            found.add("mixed_search")
    keepers = first_acceptable(
        rows,
        expected,
        key=("search_id", "item_id"),
        order=lambda row: not partitioned and row["searched_at"] < 10**15,  # such a row has no day
    )
    for i, (row, found) in enumerate(zip(rows, expected, strict=True)):
        if keepers[row["search_id"], row["item_id"]] != i:
            found.add("duplicate_key")

    report = check(logs, tmp_path / "out")
    counts = report.tables["search_impressions"]
    assert counts == TableCounts(400, sum(not found for found in expected), sum(map(bool, expected)))
    assert 100 < counts.accepted < 300
    rejects = pq.read_table(tmp_path / "out/rejects/search_impressions").to_pylist()
    assert [set(row["reasons"]) for row in rejects] == [found for found in expected if found]
    assert reasons(report) == {
        reason: sum(reason in found for found in expected) for reason in set().union(*expected)
    }
    again = check(tmp_path / "out/accepted")
    assert again.faults == ()
    assert again.facts.searches == report.facts.searches


def test_output_bytes_do_not_depend_on_the_run(write_logs, tmp_path):
    # Many row groups, so that several threads would share the work.
    logs = write_logs(tmp_path / "logs", items=[{"item_id": 1}], impressions=[{}])
    path = logs / "search_impressions/day=2026-01-05/part-0.parquet"
    n = 60_000
    table = pq.read_table(path, partitioning=None).take(np.zeros(n, dtype=np.int64))
    table = table.set_column(1, "search_id", pa.array(np.arange(n)))
    table = table.set_column(6, "rank", pa.array(np.arange(n) % 10, pa.int32()))
    pq.write_table(table, path, row_group_size=2_048)
    for name in ("one", "two"):
        check(logs, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.parquet"))
    assert len(files) == 5  # items, one day, rejects; for the next check known items, and rejects again
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_searches_without_a_click_are_valid_and_counted(write_logs, tmp_path):
    impressions = [
        {"search_id": 1, "item_id": 1, "clicked": True},
        {"search_id": 1, "item_id": 2},
        {"search_id": 2, "item_id": 1, "user_id": 2},
        {"search_id": 3, "item_id": 1, "stage": "unexposed", "user_id": 2},
    ]
    report = check(write_logs(tmp_path / "logs", impressions=impressions))
    assert report.faults == ()
    facts = report.facts
    assert (facts.searches, facts.searches_without_click, facts.users) == (3, 2, 2)
    assert facts.stages == ("exposed", "unexposed")
    assert facts.absent_labels == (1,)
    assert facts.search_days == ("2026-01-05",)
    assert any("label 1 will be absent" in note for note in facts.notes())
    facts = check(write_logs(tmp_path / "shown")).facts  # shown documents alone
    assert facts.absent_labels == (2, 1)
    assert facts.p2 is False
    assert any("feed (P2) will be absent" in note for note in facts.notes())
    assert check(write_logs(tmp_path / "fed", feed=[{}])).facts.p2 is True


def test_control_characters_become_spaces_and_are_counted(write_logs, tmp_path):
    items = [
        {"item_id": 1, "ocr_cover": "Fern\x00pot", "keyword": "a\x1bb"},
        {"item_id": 2, "ocr_cover": "x"},
    ]
    impressions = [
        {"search_id": 1, "query": "jag\x00uar\x1b[31m"},
        {"search_id": 2, "query": "don\x92t\tstop"},  # cp1252 read as Latin-1; a tab is white space
        {"search_id": 3, "query": "jaguar", "searched_at": NOON + DAY},
        {"search_id": 4, "query": "a\x07b", "rank": 0},  # rejected for another reason: as it was
    ]
    logs = write_logs(tmp_path / "logs", items=items, impressions=impressions)
    report = check(logs, tmp_path / "out")
    assert reasons(report) == {"rank_not_positive": 1}
    expected = {"items": {"ocr_cover": 1, "keyword": 1}, "search_impressions": {"query": 2}}
    assert report.control_characters == check(logs).control_characters == expected
    assert "search_impressions.query: control characters became spaces in 2 rows" in report.notes()
    kept = pq.read_table(tmp_path / "out/accepted/search_impressions").to_pylist()
    assert [row["query"] for row in kept] == ["jag uar [31m", "don t\tstop", "jaguar"]
    covers = pq.read_table(tmp_path / "out/accepted/items.parquet").to_pylist()
    assert [(row["ocr_cover"], row["keyword"]) for row in covers] == [("Fern pot", "a b"), ("x", None)]
    (rejected,) = pq.read_table(tmp_path / "out/rejects/search_impressions").to_pylist()
    assert rejected["query"] == "a\x07b"
    assert check(tmp_path / "out/accepted").control_characters == {}
    # rows of a search that differ in control characters are of one query
    impressions = [{"item_id": 1, "query": "a b"}, {"item_id": 2, "query": "a\x00b"}]
    assert check(write_logs(tmp_path / "one", impressions=impressions)).faults == ()
