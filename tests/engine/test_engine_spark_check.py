"""`crops check` on Spark: the rows, rejects, reasons and counts of DuckDB."""

import functools
import importlib.util
import json
import math
import shutil
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import crops
from crops.engine.spark import spark_texts
from crops.engine.spark_rows import SparkRows
from crops.errors import CropsError, RejectedError
from crops.logs import TableCounts, check
from crops.logs.rules import contract_rules
from crops.schema import FEED_EVENTS, ITEMS, SEARCH_IMPRESSIONS

needs_spark = pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
    reason="needs pyspark (extra [spark]) and Java 17",
)
NOON = 1_767_614_400_000_000
"""2026-01-05 12:00:00 UTC."""
DAY = 86_400_000_000
NAN, INF = math.nan, math.inf
ITEM_FAULTS = [
    ({"item_id": -3}, "item_id_not_positive"),
    ({"item_id": None}, "null_item_id"),
    ({"item_id": 2, "ocr_cover": "\u200b\x07", "keyword": ""}, "no_text"),
    ({"item_id": 4, "uploaded_at": 1_767_614_400}, "time_unit"),
    ({"item_id": 5, "like_cnt": NAN}, "nan_like_cnt"),
    ({"item_id": 6, "duration_ms": -1}, "negative_duration_ms"),
    ({"item_id": 1, "play_cnt": 3, "ocr_cover": "older"}, "duplicate_key"),
]
FAULTS = [
    ({"query": "\u3164\u2800\u00ad"}, "empty_query"),
    ({"query": "\x00\x1b\x92"}, "empty_query"),
    ({"query": "x" * 1001}, "query_too_long"),
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
    ({"liked": True, "stage": "filtered"}, "liked_unshown"),
    ({"play_ms": 1, "stage": "unexposed"}, "played_unshown"),
    ({"play_ms": NAN}, "nan_play_ms"),
    ({"play_ms": -INF}, "nan_play_ms"),
    ({"play_ms": 1e300}, "out_of_range_play_ms"),
    ({"play_ms": 2.0**63}, "out_of_range_play_ms"),
    ({"play_ms": 0.5}, "fractional_play_ms"),
    ({"play_ms": 604_800_001}, "unit_play_ms"),
    ({"pre_score": NAN}, "nan_pre_score"),
    ({"routes": -1}, "negative_routes"),
    ({"item_id": 404}, "unknown_item"),
    ({"searched_at": NOON + 3 * DAY}, "wrong_day"),
    ({"searched_at": NOON // 1_000}, "time_unit"),
]
"""A row each; the last two are moved into the partition of the others."""
GROUPS = [
    {"search_id": 900, "item_id": 1, "query": "Ficus  tree", "rank": 7},
    {"search_id": 900, "item_id": 2, "query": "ficus tree\x07"},  # the same query, normalised
    {"search_id": 900, "item_id": 3, "query": "bonsai", "searched_at": NOON + 1},  # mixed_search
    {
        "search_id": 900,
        "item_id": 1,
        "query": "ficus tree",
        "clicked": True,
        "rank": 4,
    },  # merged: duplicate_key
    {"search_id": 901, "item_id": 1, "rank": 0},  # rank_not_positive, duplicate_key
    {"search_id": 901, "item_id": 1, "rank": 2},  # kept
    {"search_id": 902, "item_id": 1, "searched_at": NOON + DAY},  # on a day of its own, as it is
]
FEED = [
    {"play_ms": 1_000},
    {"play_ms": 8_000, "liked": True},  # merged: duplicate_key
    {"watched_at": NOON + 5, "item_id": 404},  # unknown_item
    {"watched_at": NOON + 6, "play_ms": 0.5},  # fractional_play_ms
]


@pytest.fixture
def faulty(write_logs, tmp_path):
    """Logs with a row for each kind of rule, below a path that URIs and SQL write otherwise."""
    items = [{"item_id": 1, "play_cnt": 9}, {"item_id": 3, "keyword": "a\x1bb"}]
    items += [{"item_id": 7, "ocr_cover": "two"}, *(bad for bad, _ in ITEM_FAULTS)]
    items[0]["ocr_cover"] = "newest"
    items += [{"item_id": 2}]  # the acceptable row of item 2 comes after that without text
    impressions = [{"search_id": n, **bad} for n, (bad, _) in enumerate(FAULTS)]
    logs = write_logs(tmp_path / "o'ne +%20é" / "logs", items, impressions + GROUPS, FEED)
    days = logs / "search_impressions"
    for place, day in enumerate(("2026-01-08", "1970-01-21"), 1):
        (days / f"day={day}/part-0.parquet").rename(days / f"day=2026-01-05/part-{place}.parquet")
        (days / f"day={day}").rmdir()
    return logs


spark = functools.partial(SparkRows, "local[2]", "1GB")


def rows_of(folder):
    """Return the rows of Parquet files below a folder by that of their table and day, as text, sorted."""
    found = {}
    for file in sorted(folder.rglob("*.parquet")):
        within = file.relative_to(folder)
        key = str(within.parent if "day=" in str(within) else within.with_suffix(""))
        found.setdefault(key, []).extend(map(str, pq.read_table(file, partitioning=None).to_pylist()))
    return {key: sorted(rows) for key, rows in found.items()}


def assert_equal(logs, out):
    """Check on both engines; return the report and where Spark wrote."""
    check(logs, out / "duckdb")
    theirs = check(logs, out / "spark", engine=spark)
    assert_alike(out / "duckdb", out / "spark")
    return theirs, out / "spark"


def assert_alike(ours, theirs):
    """Compare all that two checks of the same logs wrote for their readers."""
    for folder in ("accepted", "rejects"):
        assert rows_of(ours / folder) == rows_of(theirs / folder), folder
    listed = [[file.read_text() for file in sorted(out.rglob("*.files.json"))] for out in (ours, theirs)]
    assert listed[0] == listed[1]
    reports = [json.loads((out / "report.json").read_text()) | {"seconds": None} for out in (ours, theirs)]
    assert reports[0] == reports[1]


def reasons(report, table):
    return Counter({fault.reason: fault.count for fault in report.faults if fault.table == table})


@needs_spark
def test_each_kind_of_fault_is_rejected_as_by_duckdb(faulty, tmp_path, session):
    report, out = assert_equal(faulty, tmp_path)
    assert report.tables == {
        "items": TableCounts(rows=11, accepted=4, rejected=7),
        "search_impressions": TableCounts(rows=33, accepted=4, rejected=29),
        "feed_events": TableCounts(rows=4, accepted=1, rejected=3),
    }
    wanted = Counter(reason for _, reason in FAULTS)
    wanted += Counter(mixed_search=1, duplicate_key=2, rank_not_positive=1, negative_play_ms=1)
    assert reasons(report, "search_impressions") == wanted
    # of the two rows of item 2 that without a text is no duplicate only
    assert reasons(report, "items") == Counter(reason for _, reason in ITEM_FAULTS) + Counter(duplicate_key=1)
    assert reasons(report, "feed_events") == Counter(duplicate_key=1, unknown_item=1, fractional_play_ms=1)
    assert report.merged == {"search_impressions": 1, "feed_events": 1}
    assert report.control_characters == {"items": {"keyword": 1}, "search_impressions": {"query": 1}}
    assert (report.facts.searches, report.facts.searches_without_click, report.facts.users) == (3, 2, 1)
    kept = pq.read_table(out / "accepted/search_impressions").to_pylist()
    known = sorted(
        (row["search_id"], row["item_id"], row["query"], row["rank"], row["clicked"]) for row in kept
    )
    assert known == [
        (900, 1, "Ficus  tree", 4, True),
        (900, 2, "ficus tree ", None, False),
        (901, 1, "query", 2, False),
        (902, 1, "query", None, False),
    ]
    rejects = pq.read_table(out / "rejects/search_impressions/rejects.parquet").to_pylist()
    two = [row["reasons"] for row in rejects if row["search_id"] == 901]
    assert two == [["rank_not_positive", "duplicate_key"]]


@needs_spark
@pytest.mark.verify
def test_lakes_names_of_any_kind_and_mixed_types_are_read_alike(faulty, tmp_path, session):
    """A source by URI: times as timestamps, columns of any name, rejects by day and reason."""
    names = 'Query ITEM_ID _file _row _day _metadata file_row_number reasons day a`b\\c,d;"e'.split() + [""]
    for number, file in enumerate(sorted(faulty.rglob("*.parquet"))):
        table = pq.read_table(file, partitioning=None)
        for place, name in enumerate(names):
            values = [place * row for row in range(len(table))] if number % 2 else ["it's"] * len(table)
            table = table.append_column(name, pa.array(values))
        if (at := table.column_names.index("searched_at") if "searched_at" in table.column_names else -1) > 0:
            times = (
                table["searched_at"].cast(pa.timestamp("us")).cast(pa.timestamp("ns" if number % 3 else "us"))
            )
            table = table.set_column(at, "searched_at", times)
        pq.write_table(table, file)
    (tmp_path / "logs.toml").write_text(
        "".join(
            f'{name} = "{faulty / found}"\n'
            for name, found in (
                ("items", "items.parquet"),
                ("search_impressions", "search_impressions"),
                ("feed_events", "feed_events"),
            )
        )
    )
    report, out = assert_equal(str(tmp_path / "logs.toml"), tmp_path)
    assert report.tables["search_impressions"].accepted == 4
    assert (out / "rejects/search_impressions/day=2026-01-05/reason=mixed_search/rejects.parquet").exists()
    listed = json.loads((out / "accepted/search_impressions.files.json").read_text())["files"]
    assert [row["day"] for row in listed] == ["2026-01-06"]


@needs_spark
@pytest.mark.verify
def test_a_repeated_check_takes_over_what_did_not_change(faulty, tmp_path, session):
    """Rows that are taken over keep columns of any type; what is written equals a full check by DuckDB."""
    days = faulty / "search_impressions"
    for file in days.rglob("*.parquet"):
        table = pq.read_table(file, partitioning=None)
        at = pa.array([NOON] * len(table), pa.timestamp("us"))
        pq.write_table(
            table.append_column("at", at).append_column("tags", pa.array([["a"]] * len(table))), file
        )

    def again(read, kept):
        report, full = check(faulty, tmp_path / "out", engine=spark), check(faulty, tmp_path / "full")
        found = report.days["search_impressions"]
        assert (found["read"], found["taken_over"]) == (read, kept)
        for folder in ("accepted", "rejects"):
            assert rows_of(tmp_path / "out" / folder) == rows_of(tmp_path / "full" / folder)
        known = [json.loads(one.to_json()) | {"seconds": None, "days": None} for one in (report, full)]
        assert known[0] == known[1]
        shutil.rmtree(tmp_path / "full")

    again(2, 0)
    again(0, 2)
    late = pq.read_table(days / "day=2026-01-06/part-0.parquet", partitioning=None)
    pq.write_table(late, days / "day=2026-01-06/part-1.parquet")  # each row twice
    again(1, 1)
    items = pq.read_table(faulty / "items.parquet")
    found = items.to_pylist() + [{"item_id": 404, "ocr_cover": "known now"}]
    pq.write_table(pa.Table.from_pylist(found, items.schema), faulty / "items.parquet")
    again(1, 1)


@needs_spark
@pytest.mark.verify
def test_tables_without_partitions_and_searches_alone_are_split_alike(faulty, tmp_path, session):
    for name in ("search_impressions", "feed_events"):
        tables = [
            pq.read_table(file, partitioning=None) for file in sorted((faulty / name).rglob("*.parquet"))
        ]
        shutil.rmtree(faulty / name)
        pq.write_table(pa.concat_tables(tables, promote_options="permissive"), faulty / f"{name}.parquet")
    report, _ = assert_equal(faulty, tmp_path / "one")
    assert reasons(report, "search_impressions")["wrong_day"] == 0
    said = ["a", "a", "b", "  ", "\x07", "c"]
    alone = tmp_path / "searches"
    alone.mkdir()
    searches = {"user_id": [1] * 6, "search_id": range(6), "query": said}
    searches["searched_at"] = [NOON + 10_000_000 * n for n in range(6)]
    pq.write_table(
        pa.table({name: list(values) for name, values in searches.items()}), alone / "searches.parquet"
    )
    report, _ = assert_equal(alone, tmp_path / "two")
    assert (report.facts.searches, report.facts.reworded) == (4, 2)  # a to b, b to c


@needs_spark
@pytest.mark.verify
def test_the_command_ends_as_with_duckdb(faulty, tmp_path, session):
    given = {"engine": "spark", "master": "local[2]", "max_rejected": "50%"}
    with pytest.raises(
        RejectedError, match=r"29 of 33 rows of search_impressions .* more than --max-rejected 50%"
    ):
        crops.check(str(faulty), tmp_path / "out", **given)
    assert (tmp_path / "out/report.html").exists()
    without_a_query = str(write_blank(faulty))
    with pytest.raises(CropsError, match="3 of 3 rows of search_impressions rejected"):
        crops.check(without_a_query, tmp_path / "none", engine="spark", master="local[2]")
    assert pq.read_table(tmp_path / "none.failed/rejects/search_impressions").num_rows == 3


def write_blank(logs):
    """Write the impressions of logs anew: three without a query."""
    shutil.rmtree(logs / "search_impressions")
    columns = {
        "user_id": 1,
        "search_id": 1,
        "searched_at": NOON,
        "item_id": 1,
        "stage": "exposed",
        "clicked": False,
    }
    rows = [columns | {"query": ""} | {"search_id": n} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), logs / "search_impressions.parquet")
    return logs


def test_spark_needs_a_folder_for_what_it_accepts(write_logs, tmp_path):
    with pytest.raises(CropsError, match="name OUT, a folder that all workers see"):
        crops.check(str(write_logs(tmp_path / "logs")), engine="spark")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("select 1", "select 1"),
        (r"select '\s' as x", r"select '\\s' as x"),
        ("select 'it''s', ''", r"select 'it\'s', ''"),
        ("select '''', 'c\\' where a", r"select '\'', 'c\\' where a"),
    ],
)
def test_texts_of_standard_sql_in_that_of_spark(query, expected):
    assert spark_texts(query) == expected


def test_bits_of_reasons_fit_into_a_mask():
    for table in (ITEMS, SEARCH_IMPRESSIONS, FEED_EVENTS):
        assert len(contract_rules(table)) < 63
