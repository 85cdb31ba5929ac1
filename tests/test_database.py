"""The one place that knows DuckDB: paths as they are, bounded memory, failures in one sentence."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.database import (
    explained,
    failing_as,
    literal,
    open_database,
    parquet,
    parquet_files,
    pattern,
    quoted,
    write_parquet,
)
from crops.errors import CropsError

HOSTILE = 'day=1999-12-31/it\'s [a] *? "b"'


@pytest.fixture
def file(tmp_path):
    path = tmp_path / HOSTILE / "rows.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"n": [1, 2, 3]}), path)
    return path


def test_a_path_with_special_characters_is_read_and_written_as_it_is(file):
    with open_database() as db:
        assert db.execute(f"select sum(n) from {parquet(file, file)}").fetchall() == [(12,)]
        assert db.execute("select count(*) from read_parquet($1)", [pattern(file)]).fetchall() == [(3,)]
        assert db.sql(f"from {parquet(file)}").columns == ["n"]  # the folder `day=...` is no column
        other = file.parent / "new" / "other [1].parquet"
        assert write_parquet(db, "select 7 as n from range(2)", other) == 2
        assert db.sql(f"from {parquet(other)}").fetchall() == [(7,), (7,)]


def test_names_and_texts_are_quoted():
    text, name = 'it\'s "q"', 'a "b" c'
    with open_database() as db:
        result = db.sql(f"select {literal(text)} as {quoted(name)}")
        assert (result.columns, result.fetchall()) == ([name], [(text,)])


def test_memory_spill_file_and_threads_are_settings(tmp_path):
    with open_database("64MB", tmp_path / "spill", file=tmp_path / "tables.db", threads=1) as db:
        settings = "select current_setting('memory_limit'), current_setting('threads')"
        assert db.execute(settings).fetchall() == [("61.0 MiB", 1)]
        db.execute("create table t as select 1 as n")
    assert (tmp_path / "tables.db").exists()
    with pytest.raises(CropsError, match="memory limit 'lots': .*give a size such as 2GB"):
        open_database("lots")


def test_an_error_of_a_query_has_the_sentence_of_its_caller():
    with pytest.raises(CropsError, match="it is no mining: .*no_such_table"), failing_as("it is no mining"):
        open_database().execute("from no_such_table")


def test_a_damaged_file_is_named_whatever_the_query_said(file):
    content = bytearray(file.read_bytes())
    content[4:20] = bytes(16)
    file.write_bytes(content)
    with (
        pytest.raises(CropsError, match=r"rows\.parquet is damaged .*write the file again"),
        explained("engine.memory = '2GB'", [file]),
        open_database() as db,
    ):
        db.execute(f"select sum(n) from {parquet(file)}").fetchall()


def test_a_table_of_several_files_is_read_in_the_order_of_their_names(tmp_path):
    table = tmp_path / "day=1" / "rows[1].parquet"
    table.mkdir(parents=True)
    for name, rows in (("part-00001", [3, 1]), ("part-00000", [4, 2])):
        pq.write_table(pa.table({"n": rows}), table / f"{name}.parquet")
    with open_database() as db:
        assert db.sql(f"from {parquet(table)}").fetchall() == [(4,), (2,), (3,), (1,)]
        assert db.execute("from read_parquet(?)", [pattern(table)]).fetchall()[0][0] == 4
    assert [file.name for file in parquet_files(table)] == ["part-00000.parquet", "part-00001.parquet"]
    one = table / "part-00000.parquet"
    assert parquet_files(one) == [one]


def test_too_little_memory_and_a_full_disk_say_what_to_do():
    with (
        pytest.raises(CropsError, match="engine.memory = '1MB' is not enough"),
        explained("engine.memory = '1MB'"),
        open_database("1MB") as db,
    ):
        db.execute("select list(i) from range(10000000) t(i)").fetchall()
    full = OSError(28, "No space left on device")
    with pytest.raises(CropsError, match="nothing was published: .*free disk space"), explained("2GB"):
        raise full
    with pytest.raises(OSError, match="No space"), explained("2GB", disk=False):
        raise full
