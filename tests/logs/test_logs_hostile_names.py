"""Columns that no contract names may have any name: rows, days and messages stay true."""

from types import SimpleNamespace

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError
from crops.logs import check, open_logs

DAY = 86_400_000_000
NOON = 1_767_614_400_000_000
HOSTILE = ("_file", "_row", "_day", "_reasons", "_repeated", "file_row_number", "filename", "day", "reasons")


def rewrite(folder, first=(), last=()):
    """Put columns of text before and behind those of every file."""
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        columns = {name: pa.array([f"{name} {row}" for row in range(len(table))]) for name in (*first, *last)}
        for name in reversed(first):
            table = table.add_column(0, name, columns[name])
        for name in last:
            table = table.append_column(name, columns[name])
        pq.write_table(table, path, row_group_size=2)


def dirty(write_logs, folder):
    """Two days with a duplicate, a bad rank and an unknown item."""
    rows = [
        {"search_id": 1, "item_id": 1, "rank": 1, "query": "Fern"},
        {"search_id": 1, "item_id": 1, "rank": 2, "query": "Fern"},
        {"search_id": 2, "item_id": 2, "rank": 0, "query": "moss"},
        {"search_id": 3, "item_id": 2, "rank": 3, "query": "moss", "searched_at": NOON + DAY},
        {"search_id": 4, "item_id": 9, "rank": 4, "query": "ivy", "searched_at": NOON + DAY},
    ]
    return write_logs(folder, impressions=rows, items=[{"item_id": 1}, {"item_id": 2}], feed=[{}, {}])


def found(report):
    return (
        report.tables,
        {(f.table, f.reason, f.count, f.file, f.row, str(f.example)) for f in report.faults},
        report.facts.search_days,
    )


@pytest.fixture(scope="module")
def plain(write_logs, tmp_path_factory):
    """What is found in the same logs without foreign columns."""
    folder = tmp_path_factory.mktemp("plain")
    logs = open_logs(dirty(write_logs, folder / "logs"))
    report = check(logs.path, folder / "checked")
    tables = ("search_impressions", "items", "feed_events")
    kept = {
        name: pq.read_table(folder / "checked/accepted" / table_path(name)).to_pylist() for name in tables
    }
    rows = {name: duckdb.sql(logs.sql(name)).fetchall() for name in tables}
    return SimpleNamespace(found=found(report), kept=kept, rows=rows)


@pytest.mark.parametrize(("first", "last"), [
    ((), HOSTILE),
    (HOSTILE, ()),
    (("Query", "ITEM_ID", "Stage"), ("QUERY", "Searched_At", "_FILE", "File_Row_Number")),
    (("", '"', "a\nb", "query ", "query\u200b"), ("\u0130", "i\u0307", "I", "\u212a", "k", "select")),
    (("extra_0", "c0", "query 0", "Query"), ("rows", "suspect", "_mixed", "file", "File")),
    *(((name,), ()) for name in ("file_row_number", "filename", "day")),
])  # fmt: skip
def test_foreign_columns_change_nothing(plain, write_logs, tmp_path, first, last):
    logs = dirty(write_logs, tmp_path / "hostile")
    rewrite(logs, first, last)
    report = check(logs, tmp_path / "checked")
    assert found(report) == plain.found
    for table in ("search_impressions", "items", "feed_events"):
        assert (
            pq.read_table(tmp_path / "checked/accepted" / table_path(table)).to_pylist() == plain.kept[table]
        )
        assert duckdb.sql(open_logs(logs).sql(table)).fetchall() == plain.rows[table]
    for row in pq.read_table(tmp_path / "checked/rejects/search_impressions").to_pylist():
        source = pq.read_table(logs / row["file"], partitioning=None).to_pylist()[row["row"]]
        assert set(source.values()) - {None} <= {
            value for value in row.values() if not isinstance(value, list)
        }


def table_path(table):
    return "items.parquet" if table == "items" else table


def test_rejects_name_their_columns_apart_in_any_case(write_logs, tmp_path):
    logs = dirty(write_logs, tmp_path / "logs")
    rewrite(logs, first=("Query", "row"), last=("ROW", "Reasons"))
    check(logs, tmp_path / "checked")
    names = pq.read_table(tmp_path / "checked/rejects/search_impressions").column_names
    assert {"query", "Query_", "row", "row_", "ROW__", "reasons", "Reasons_"} <= set(names)
    assert len({name.lower() for name in names}) == len(names)


def test_files_that_differ_in_foreign_columns_read_together(write_logs, tmp_path):
    logs = dirty(write_logs, tmp_path / "logs")
    first, second = sorted((logs / "search_impressions").rglob("*.parquet"))
    for path, column in ((first, pa.array([1, 2, 3])), (second, pa.array([["a"], ["b"]]))):
        pq.write_table(pq.read_table(path, partitioning=None).add_column(0, "Query", column), path)
    assert check(logs, tmp_path / "checked").tables == check(dirty(write_logs, tmp_path / "plain")).tables
    rejects = pq.read_table(tmp_path / "checked/rejects/search_impressions").to_pylist()
    assert [row["Query_"] for row in rejects] == ["2", "3", "[b]"]


def test_a_column_that_is_there_twice_is_a_fault_of_the_file(write_logs, tmp_path):
    logs = dirty(write_logs, tmp_path / "logs")
    table = pq.read_table(logs / "items.parquet")
    pq.write_table(table.append_column("ocr_cover", pa.array(["x", "y"])), logs / "items.parquet")
    with pytest.raises(CropsError, match=r"items.parquet: column ocr_cover is there 2 times; keep one"):
        open_logs(logs)


def test_an_optional_column_in_another_case_is_absent_and_said(write_logs, tmp_path):
    logs = dirty(write_logs, tmp_path / "logs")
    for path in (logs / "search_impressions").rglob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        pq.write_table(
            table.rename_columns(["Rank" if name == "rank" else name for name in table.column_names]), path
        )
    notes = check(logs).notes()
    assert any(note.startswith("search_impressions has no rank") for note in notes)
    assert "search_impressions: Rank not read: the case of column names counts" in notes


def test_a_required_column_in_another_case_is_missing(write_logs, tmp_path):
    logs = dirty(write_logs, tmp_path / "logs")
    table = pq.read_table(logs / "items.parquet")
    pq.write_table(table.rename_columns(["Item_Id", *table.column_names[1:]]), logs / "items.parquet")
    with pytest.raises(CropsError, match=r"column item_id is missing .*Did you mean 'Item_Id'"):
        open_logs(logs)


def test_rows_of_a_file_with_its_own_row_numbers_are_numbered_in_order(write_logs, tmp_path):
    n = 30_000
    logs = write_logs(tmp_path / "logs", items=[{"item_id": 1}], impressions=[{}])
    path = logs / "search_impressions/day=2026-01-05/part-0.parquet"
    table = pq.read_table(path, partitioning=None).take([0] * n)
    table = table.set_column(1, "search_id", pa.array(range(n)))
    table = table.set_column(6, "rank", pa.array([row % 7 for row in range(n)], pa.int32()))
    pq.write_table(table.append_column("file_row_number", pa.array([5] * n)), path, row_group_size=2_048)
    check(logs, tmp_path / "checked")
    rejects = pq.read_table(tmp_path / "checked/rejects/search_impressions").to_pylist()
    assert [row["row"] for row in rejects] == [row["search_id"] for row in rejects] == list(range(0, n, 7))
    assert {row["file_row_number"] for row in rejects} == {5}
