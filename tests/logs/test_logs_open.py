"""Opening a logs folder: layouts, faults of files, the SQL of a table; other table formats are refused."""

from __future__ import annotations

import shutil

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError
from crops.logs import import_logs, open_logs
from crops.relevance import read_pairs
from crops.retrieval import load_items
from crops.retrieval.catalogue import load_queries
from crops.schema import FEED_EVENTS, ITEMS, SEARCH_IMPRESSIONS
from crops.training.samples import Samples

NOON = 1_767_614_400_000_000
"""2026-01-05 12:00:00 UTC."""
DAY = 86_400_000_000
IMPRESSIONS = "search_impressions/day=2026-01-05/part-0.parquet"


def rows(logs, table, days=None):
    return duckdb.sql(logs.sql(table, days)).to_arrow_table().to_pylist()


def change(path, **columns):
    """Replace columns of a Parquet file; None drops one."""
    table = pq.read_table(path, partitioning=None)
    for name, values in columns.items():
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table if values is None else table.append_column(name, values)
    pq.write_table(table, path)


def test_partitions_give_the_days_and_restrict_the_rows(write_logs, tmp_path):
    logs = open_logs(
        write_logs(
            tmp_path,
            impressions=[{"search_id": 1}, {"search_id": 2, "searched_at": NOON + DAY}],
            feed=[{"watched_at": NOON + 2 * DAY}],
        )
    )
    assert logs.search_days == ("2026-01-05", "2026-01-06")
    assert logs.feed_days == ("2026-01-07",)
    assert [row["search_id"] for row in rows(logs, "search_impressions", ["2026-01-06"])] == [2]
    assert {row["day"] for row in rows(logs, "search_impressions")} == {"2026-01-05", "2026-01-06"}
    assert rows(logs, "feed_events", ["2026-01-05"]) == []


def test_one_file_gets_its_days_from_the_utc_time(write_logs, tmp_path):
    # 2026-01-05 12:00 UTC minus 12 h is midnight, still the 5th; one microsecond less is the 4th.
    times = [NOON - DAY // 2, NOON - DAY // 2 - 1]
    impressions = [{"search_id": i, "searched_at": time} for i, time in enumerate(times)]
    folder = write_logs(tmp_path, impressions=impressions)
    merged = pq.read_table(folder / "search_impressions", partitioning=None)
    shutil.rmtree(folder / "search_impressions")
    pq.write_table(merged, folder / "search_impressions.parquet")
    logs = open_logs(folder)
    assert logs.search_days == ("2026-01-04", "2026-01-05")
    assert {row["search_id"]: row["day"] for row in rows(logs, "search_impressions")} == {
        0: "2026-01-05",
        1: "2026-01-04",
    }
    assert [row["search_id"] for row in rows(logs, "search_impressions", ["2026-01-04"])] == [1]
    assert rows(logs, "search_impressions", ["2026-01-04", "2026-01-09"])[0]["search_id"] == 1


def test_every_table_reads_as_the_contract_even_when_optional_parts_are_absent(write_logs, tmp_path):
    folder = write_logs(tmp_path)
    optional = {column.name: None for column in SEARCH_IMPRESSIONS.columns if column.optional}
    change(folder / IMPRESSIONS, **optional)
    logs = open_logs(folder)
    assert set(logs.absent()["search_impressions"]) == {name for name in optional if "source" not in name}
    assert "feed_events" not in logs.absent()
    for table in (ITEMS, SEARCH_IMPRESSIONS, FEED_EVENTS):
        schema = duckdb.sql(logs.sql(table.name)).to_arrow_table().schema
        expected = table.arrow().names + (["day"] if table.partitioned else [])
        assert schema.names == expected
        types = [field.type for field in table.arrow()] + [pa.string()] * table.partitioned
        assert schema.types == types
    assert len(rows(logs, "search_impressions")) == 1
    assert rows(logs, "feed_events") == []


def test_columns_may_differ_between_files(write_logs, tmp_path):
    impressions = [{"play_ms": 7, "search_id": 1}, {"searched_at": NOON + DAY, "search_id": 2}]
    folder = write_logs(tmp_path, impressions=impressions)
    change(folder / "search_impressions/day=2026-01-06/part-0.parquet", play_ms=None)
    change(folder / IMPRESSIONS, play_ms=pa.array([7.0]), arm=pa.nulls(1))
    logs = open_logs(folder)
    assert sorted((row["search_id"], row["play_ms"]) for row in rows(logs, "search_impressions")) == [
        (1, 7),
        (2, None),
    ]


def test_folders_above_the_logs_do_not_leak_into_the_tables(write_logs, tmp_path):
    # Glob characters, a quote, and hive keys that are also columns of the contract.
    folder = write_logs(tmp_path / "arm=old" / "day=1999-12-31" / "it's [1]*", impressions=[{"arm": "new"}])
    (row,) = rows(open_logs(folder), "search_impressions")
    assert (row["arm"], row["day"]) == ("new", "2026-01-05")


def test_days_without_searches_are_an_error(write_logs, tmp_path):
    logs = open_logs(write_logs(tmp_path))
    with pytest.raises(CropsError, match=r"no search_impressions on 2026-02-01.*there are: 2026-01-05"):
        logs.sql("search_impressions", ["2026-02-01"])


def test_unfinished_and_foreign_files_are_left_out(write_logs, tmp_path):
    folder = write_logs(tmp_path)
    for name in ("_temporary/part.parquet", ".part.parquet", "_SUCCESS", "notes.txt"):
        path = folder / "search_impressions" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not Parquet")
    assert len(rows(open_logs(folder), "search_impressions")) == 1


def test_all_faults_of_all_files_are_reported_together(write_logs, tmp_path):
    folder = write_logs(
        tmp_path, impressions=[{}, {"searched_at": NOON + DAY}], feed=[{}], items=[{"item_id": 1}]
    )
    truncated = folder / "search_impressions/day=2026-01-06/part-0.parquet"
    truncated.write_bytes(truncated.read_bytes()[:-20])
    change(folder / IMPRESSIONS, query=None, querry=pa.array(["q"]), user_id=pa.array(["u1"]))
    change(folder / "feed_events/day=2026-01-05/part-0.parquet", item_id=pa.array([1.0]))
    change(folder / "items.parquet", uploaded_at=pa.array([NOON], pa.timestamp("us")))
    with pytest.raises(CropsError) as caught:
        open_logs(folder)
    lines = str(caught.value).splitlines()
    assert len(lines) == 6  # a heading and five faults
    for fault in (
        "items.parquet: column uploaded_at is timestamp[us], expected BIGINT: upload time, microseconds UTC;"
        " write integer microseconds UTC, e.g. epoch_us(uploaded_at) in SQL",
        f"{IMPRESSIONS}: column query is missing (VARCHAR: query text as typed); add or rename it."
        " Did you mean 'querry'?",
        f"{IMPRESSIONS}: column user_id is string, expected BIGINT: who searched; give each id",
        "search_impressions/day=2026-01-06/part-0.parquet: is not readable as Parquet",
        "feed_events/day=2026-01-05/part-0.parquet: column item_id is double, expected BIGINT",
    ):
        assert any(fault in line for line in lines), (fault, lines)


def test_the_same_fault_in_many_files_is_one_line(write_logs, tmp_path):
    folder = write_logs(tmp_path, impressions=[{"searched_at": NOON + i * DAY} for i in range(3)])
    for path in folder.glob("search_impressions/*/*.parquet"):
        change(path, clicked=pa.array([1]))
    with pytest.raises(CropsError) as caught:
        open_logs(folder)
    (line,) = str(caught.value).splitlines()[1:]
    assert f"{IMPRESSIONS} (and 2 more): column clicked is int64, expected BOOLEAN" in line


@pytest.mark.parametrize(("name", "values", "accepted"), [
    ("item_id", pa.array([1], pa.int32()), True),
    ("item_id", pa.array([1], pa.uint64()), False),
    ("item_id", pa.nulls(1), False),
    ("play_ms", pa.array([1.5]), True),  # rows are judged, not the file
    ("searched_at", pa.array([float(NOON)]), False),
    ("routes", pa.array([1.0]), False),
    ("rank", pa.array([1]), True),
    ("pre_score", pa.array([1.0], pa.float32()), True),
    ("pre_score", pa.array([1]), True),
    ("query", pa.array(["q"]).dictionary_encode(), True),
    ("query", pa.array(["q"], pa.large_string()), True),
    ("query", pa.array([b"q"]), False),
    ("liked", pa.nulls(1), True),
    ("liked", pa.array(["yes"]), False),
])  # fmt: skip
def test_types_that_read_without_loss_are_accepted(write_logs, tmp_path, name, values, accepted):
    folder = write_logs(tmp_path)
    change(folder / IMPRESSIONS, **{name: values})
    if accepted:
        assert len(rows(open_logs(folder), "search_impressions")) == 1
    else:
        with pytest.raises(CropsError, match=f"column {name} is "):
            open_logs(folder)


def test_a_missing_folder_table_and_partition_name(write_logs, tmp_path):
    with pytest.raises(CropsError, match="does not exist"):
        open_logs(tmp_path / "nowhere")
    folder = write_logs(tmp_path / "logs")
    (folder / "items.parquet").rename(folder / "item.parquet")
    (folder / "search_impressions/day=2026-01-05").rename(folder / "search_impressions/day=5-1-2026")
    with pytest.raises(CropsError) as caught:
        open_logs(folder)
    assert "items.parquet: is missing; write items.parquet or items/*.parquet. Did you mean 'item'?" in str(
        caught.value
    )
    (tmp_path / "world").mkdir()
    folder.rename(tmp_path / "world" / "logs")
    with pytest.raises(CropsError, match=f"did you mean {tmp_path}/world/logs?"):
        open_logs(tmp_path / "world")
    assert "the partition is not a day; name the folder day=YYYY-MM-DD" in str(caught.value)


def test_two_places_for_one_table_are_ambiguous(write_logs, tmp_path):
    folder = write_logs(tmp_path)
    shutil.copy(folder / IMPRESSIONS, folder / "search_impressions.parquet")
    with pytest.raises(CropsError, match="keep one of the two"):
        open_logs(folder)
    (folder / "search_impressions.parquet").rename(folder / "search_impressions" / "loose.parquet")
    with pytest.raises(CropsError, match="move it into the folder of its day"):
        open_logs(folder)


def test_a_day_whose_files_lack_an_optional_column_reads_alone(write_logs, tmp_path):
    impressions = [{"play_ms": 7}, {"searched_at": NOON + DAY, "search_id": 2}]
    folder = write_logs(tmp_path, impressions=impressions)
    change(folder / "search_impressions/day=2026-01-06/part-0.parquet", play_ms=None)
    (row,) = rows(open_logs(folder), "search_impressions", ["2026-01-06"])
    assert (row["search_id"], row["play_ms"]) == (2, None)


MARKS = {"Delta Lake": "_delta_log/00000000000000000000.json", "Hudi": ".hoodie/hoodie.properties",
         "Iceberg": "metadata/00001-1f2b3c4d-0000-4000-8000-0123456789ab.metadata.json"}  # fmt: skip
every_format = pytest.mark.parametrize("kind", MARKS)


def mark(folder, kind):
    path = folder / MARKS[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    return folder


def refused(kind, folder):
    return pytest.raises(CropsError, match=rf"{folder}.* is a table of {kind}.*write its current snapshot")


@every_format
@pytest.mark.parametrize("place", [".", "search_impressions", "search_impressions/day=2026-01-05"])
def test_logs(write_logs, tmp_path, kind, place):
    logs = write_logs(tmp_path / "logs")
    open_logs(logs)
    mark(logs / place, kind)
    with refused(kind, "" if place == "." else place):
        open_logs(logs)


@every_format
def test_links_into_a_lake_table(write_logs, tmp_path, kind):
    table = write_logs(tmp_path / "table")
    mark(table, kind)
    links = tmp_path / "logs"
    links.mkdir()
    for name in ("items.parquet", "search_impressions"):
        (links / name).symlink_to(table / name)
    with refused(kind, ""):
        open_logs(links)


@every_format
def test_a_lake_table_in_place_of_the_logs_folder(write_logs, tmp_path, kind):
    logs = write_logs(tmp_path / "logs")
    data = tmp_path / "table" / "data"
    data.mkdir(parents=True)
    shutil.copy(logs / "items.parquet", data)
    mark(data.parent, kind)
    with refused(kind, ""):
        open_logs(data)
    with refused(kind, ""):
        open_logs(data.parent)


def test_a_real_delta_table_with_a_deleted_row(write_logs, tmp_path):
    deltalake = pytest.importorskip("deltalake")
    logs = write_logs(tmp_path / "logs", items=[{"item_id": 1}, {"item_id": 2}])
    items = pq.read_table(logs / "items.parquet")
    (logs / "items.parquet").unlink()
    deltalake.write_deltalake(str(logs / "items"), items)
    deltalake.DeltaTable(str(logs / "items")).delete("item_id = 2")
    with refused("Delta Lake", "items"):
        open_logs(logs)
    with refused("Delta Lake", "items"):
        load_items(logs)


@every_format
def test_every_other_reader_of_folders(tmp_path, kind):
    table = mark(tmp_path / "lake", kind)
    rows = {"item_id": [1], "ocr_cover": ["a"], "query": ["q"], "text": ["a"], "relevant": [1]}
    file = table / "data" / "part-0.parquet"
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(rows), file)
    shutil.copytree(table, tmp_path / "mined" / "samples.parquet")
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('[items]\nfiles = "data/*"\nitem_id = "item_id"\nocr_cover = "ocr_cover"\n')
    readers = [lambda: load_items(file), lambda: load_items(file.parent), lambda: load_queries(file),
               lambda: read_pairs(file), lambda: Samples(tmp_path / "mined").files("samples"),
               lambda: import_logs("ubi", table, tmp_path / "out")]  # fmt: skip
    shutil.copy(file, table / "queries.parquet")
    shutil.copy(file, table / "events.parquet")
    for read in readers:
        with refused(kind, ""):
            read()


def test_a_folder_called_metadata_is_no_iceberg_table(write_logs, tmp_path):
    logs = write_logs(tmp_path / "logs")
    (logs / "metadata").mkdir()
    (logs / "metadata" / "notes.json").write_text("{}")
    open_logs(logs)
