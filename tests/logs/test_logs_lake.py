"""Logs by URI: a store, Delta Lake, Iceberg and a metastore give what the same rows give in a folder."""

import json
import pickle
import random
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import UTC, date, datetime, timedelta
from time import sleep

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import TABLES, put, read_days, times_as, upload

from crops.database import open_database
from crops.errors import CropsError
from crops.logs import check, lake, open_logs
from crops.logs.lake import as_day, day_of_partition, find_source, open_store, table_uris
from crops.schema import ITEMS, SEARCH_IMPRESSIONS

deltalake = pytest.importorskip("deltalake")
pytest.importorskip("moto")
catalogues = pytest.importorskip("pyiceberg.catalog")
Config = pytest.importorskip("pyiceberg.utils.config").Config
NOON = 1_767_614_400_000_000  # 2026-01-05 12:00 UTC
DAY_US = 86_400_000_000


def rows_of(logs, table, days=None):
    with open_database() as db:
        rows = db.execute(logs.sql(table, days)).fetchall()
    return sorted(rows, key=repr)


@pytest.fixture(scope="module")
def logs(write_logs, tmp_path_factory):
    """Three days: an item that repeats a key on two days, a control character, an id that is unknown."""
    rng = random.Random(3)
    impressions = [
        {
            "user_id": search % 4,
            "search_id": search,
            "query": f"query {search % 7}",
            "searched_at": NOON + search % 3 * DAY_US + search,
            "item_id": item,
            "clicked": rng.random() < 0.3,
        }
        for search in range(1, 40)
        for item in rng.sample(range(1, 20), 3)
    ]
    impressions += [{"search_id": 90, "item_id": 99, "searched_at": NOON + DAY_US}]
    feed = [
        {"user_id": n % 4, "item_id": n % 19 + 1, "watched_at": NOON + n % 3 * DAY_US + n, "play_ms": n}
        for n in range(60)
    ]
    items = [{"item_id": n, "uploaded_at": NOON, "photo_caption": "a\x07b"[: n % 4]} for n in range(1, 20)]
    return write_logs(tmp_path_factory.mktemp("lake") / "logs", items, impressions, feed)


@pytest.fixture(scope="module")
def expected(logs):
    return {table: rows_of(open_logs(logs), table) for table in TABLES}


@pytest.fixture(scope="module")
def server():
    """A server of S3 on this machine, in a process of its own: clients may hold this one's lock."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running,
    ):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):
            patch.setenv(name, "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        lake._opened.cache_clear()
        try:
            make_bucket(endpoint, "lake")
            yield endpoint
        finally:
            running.terminate()
            lake._opened.cache_clear()


def make_bucket(endpoint, name):
    """Ask until the server is up."""
    for _ in range(600):
        try:
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).read()
            return
        except urllib.error.URLError:
            sleep(0.1)
    raise AssertionError("the server of S3 did not start")


@pytest.fixture(scope="module")
def stored(server, logs):
    upload(logs, "s3://lake/logs")
    return "s3://lake/logs"


def assert_checked_alike(uri, logs, out):
    """The accepted and rejected rows are those of the folder, and clean days are not copied."""
    ours, theirs = check(uri, out / "ours"), check(logs, out / "theirs")
    assert ours.tables == theirs.tables
    assert [(fault.reason, fault.count) for fault in ours.faults] == [("unknown_item", 1)]
    assert ours.control_characters["items"].keys() == {"photo_caption"}
    assert ours.control_characters == theirs.control_characters
    accepted = open_logs(out / "ours" / "accepted")
    for table in TABLES:
        assert rows_of(accepted, table) == rows_of(open_logs(out / "theirs" / "accepted"), table)
    return accepted


def test_a_store_gives_what_the_folder_gives(stored, logs, expected, tmp_path):
    opened = open_logs(stored)
    assert opened.search_days == ("2026-01-05", "2026-01-06", "2026-01-07")
    assert {table: rows_of(opened, table) for table in TABLES} == expected
    day = rows_of(opened, "feed_events", ["2026-01-06"])
    assert day == [row for row in expected["feed_events"] if row[-1] == "2026-01-06"] != []
    accepted = assert_checked_alike(stored, logs, tmp_path)
    files = {str(file) for file in accepted.tables["search_impressions"].files}
    kept = {f"{stored}/search_impressions/day=2026-01-{day}/part-0.parquet" for day in ("05", "07")}
    own = tmp_path / "ours" / "accepted" / "search_impressions" / "day=2026-01-06" / "part-0.parquet"
    assert files == {*kept, str(own)}
    noted = json.loads((tmp_path / "ours" / "manifest.json").read_text())["snapshots"]
    assert noted["search_impressions"]["source"] == f"{stored}/search_impressions"


def test_other_partition_columns_and_shuffled_files_change_nothing(server, logs, expected, tmp_path):
    """`dt=20260105` in files of two rows whose names sort in any order."""
    shutil.copy(logs / "items.parquet", tmp_path / "items.parquet")
    rng = random.Random(1)
    for table in TABLES[1:]:
        for file in sorted((logs / table).rglob("*.parquet")):
            rows = pq.read_table(file, partitioning=None)
            day = file.parent.name.replace("day=", "dt=").replace("-", "")
            for first in range(0, len(rows), 25):
                name = f"{rng.random()}.parquet"
                put(rows.slice(first, 25), f"s3://lake/shuffled/{table}/{day}/hour=03/{name}")
    (tmp_path / "logs.toml").write_text(
        'items = "items.parquet"\nsearch_impressions = "s3://lake/shuffled/search_impressions"\n'
        'feed_events = "s3://lake/shuffled/feed_events/"\n'
    )
    opened = open_logs(tmp_path / "logs.toml")
    assert {table: rows_of(opened, table) for table in TABLES} == expected
    assert opened.tables["feed_events"].partitioned
    assert_checked_alike(tmp_path / "logs.toml", logs, tmp_path)


@pytest.mark.parametrize(
    "type_", [pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.timestamp("ns", "UTC")]
)
def test_times_are_read_as_timestamps(logs, expected, tmp_path, type_):
    """Of whole milliseconds here, so that all units hold them."""
    millis = {}
    for table, time in (("search_impressions", "searched_at"), ("feed_events", "watched_at")):
        rows = read_days(logs, table, "ds")
        at = pa.array([value // 1000 * 1000 for value in rows[time].to_pylist()])
        rows = rows.set_column(rows.schema.get_field_index(time), time, at)
        millis[table] = rows
        pq.write_table(times_as(rows.drop_columns("ds"), type_, time), tmp_path / f"{table}.parquet")
    pq.write_table(
        times_as(pq.read_table(logs / "items.parquet"), pa.date32(), "uploaded_at"),
        tmp_path / "items.parquet",
    )
    (tmp_path / "logs.toml").write_text("".join(f'{table} = "{table}.parquet"\n' for table in TABLES))
    opened = open_logs(tmp_path / "logs.toml")
    for table, rows in millis.items():
        time = "searched_at" if table == "search_impressions" else "watched_at"
        place = [*opened.tables[table].table.names(), "day"].index(time)
        found = sorted((row[place], row[-1]) for row in rows_of(opened, table))
        assert found == sorted(zip(rows[time].to_pylist(), rows["ds"].to_pylist(), strict=True))
    midnight = NOON - 12 * 3_600_000_000
    uploaded = ITEMS.names().index("uploaded_at")
    assert {row[uploaded] for row in rows_of(opened, "items")} == {midnight}


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_what_is_less_than_a_microsecond_is_cut_off(logs, tmp_path, zone):
    """Rounded up, the last nanosecond of a day would be one of the next day."""
    rows = read_days(logs, "feed_events").drop_columns("day").slice(0, 1)
    last = (NOON + DAY_US // 2) * 1000 - 1
    rows = rows.set_column(
        rows.schema.get_field_index("watched_at"), "watched_at", pa.array([last], pa.timestamp("ns", zone))
    )
    pq.write_table(rows, tmp_path / "feed.parquet")
    (tmp_path / "logs.toml").write_text(
        f'items = "{logs}/items.parquet"\nsearch_impressions = "{logs}/search_impressions"\n'
        'feed_events = "feed.parquet"\n'
    )
    ((*_, day),) = read = rows_of(open_logs(tmp_path / "logs.toml"), "feed_events")
    assert last // 1000 in read[0]
    assert day == "2026-01-05"


def delta_tables(logs, root, **options):
    deltalake.write_deltalake(f"{root}/items", pq.read_table(logs / "items.parquet"), **options)
    for table in TABLES[1:]:
        rows = read_days(logs, table, "dt", date.fromisoformat)
        deltalake.write_deltalake(f"{root}/{table}", rows, partition_by=["dt"], **options)


def test_delta_tables_are_read_at_a_version(logs, expected, tmp_path):
    tmp_path = tmp_path / "its 100 %"
    delta_tables(logs, tmp_path / "lake")
    uri = f"delta:{tmp_path}/lake"
    opened = open_logs(uri)
    assert {table: rows_of(opened, table) for table in TABLES} == expected
    assert opened.snapshots()["items"]["source"] == f"{uri}/items@0"
    deltalake.DeltaTable(f"{tmp_path}/lake/search_impressions").delete("search_id < 10")
    left = [row for row in expected["search_impressions"] if row[1] >= 10]
    assert rows_of(open_logs(uri), "search_impressions") == left != expected["search_impressions"]
    # What was opened before the deletion still reads what it saw.
    assert rows_of(opened, "search_impressions") == expected["search_impressions"]
    (tmp_path / "logs.toml").write_text("".join(f'{table} = "{uri}/{table}@0"\n' for table in TABLES))
    before = open_logs(tmp_path / "logs.toml")
    assert rows_of(before, "search_impressions") == expected["search_impressions"]
    assert before.tables["search_impressions"].version("2026-01-06") == opened.tables[
        "search_impressions"
    ].version("2026-01-06")
    assert (
        before.tables["search_impressions"].version() != open_logs(uri).tables["search_impressions"].version()
    )
    assert_checked_alike(tmp_path / "logs.toml", logs, tmp_path)


def test_a_column_whose_values_only_partitions_hold_is_refused(logs, tmp_path):
    """It would read as NULL: of a Delta Lake table, and of folders."""
    rows = read_days(logs, "search_impressions", "dt")
    place = rows.schema.get_field_index("arm")
    rows = rows.set_column(place, "arm", pa.array(["a"] * len(rows)))
    deltalake.write_deltalake(f"{tmp_path}/table", rows, partition_by=["dt", "arm"])
    with pytest.raises(CropsError, match=r"column arm is a partition, and not in the files; write it into"):
        open_one(tmp_path, logs, f"delta:{tmp_path}/table")
    pq.write_to_dataset(rows, f"{tmp_path}/folders", partition_cols=["dt", "arm"])
    with pytest.raises(CropsError, match=r"dt=2026-01-05/arm=a/.*column arm is a partition"):
        open_one(tmp_path, logs, f"{tmp_path}/folders")
    rows = rows.drop_columns("dt")
    pq.write_to_dataset(rows, f"{tmp_path}/local/search_impressions", partition_cols=["arm"])
    shutil.copy(logs / "items.parquet", tmp_path / "local")
    with pytest.raises(CropsError, match=r"arm=a/.*column arm is a partition"):
        open_logs(tmp_path / "local")


def open_one(folder, logs, impressions):
    """Open logs whose impressions have a URI of their own."""
    (folder / "logs.toml").write_text(f'items = "{logs}/items"\nsearch_impressions = "{impressions}"\n')
    return open_logs(folder / "logs.toml")


def test_delta_tables_in_a_store(server, logs, expected):
    delta_tables(logs, "s3://lake/delta", storage_options={"allow_http": "true"})
    opened = open_logs("delta:s3://lake/delta")
    assert {table: rows_of(opened, table) for table in TABLES} == expected


@pytest.fixture
def catalogue(server, tmp_path, monkeypatch):
    """A catalogue in a file, with its tables in a store that only the catalogue's settings name."""
    settings = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalogue.db", "warehouse": "s3://warehouse",
                "s3.endpoint": server, "s3.region": "us-east-1", "s3.access-key-id": "test",
                "s3.secret-access-key": "test"}  # fmt: skip
    make_bucket(server, "warehouse")
    for name, value in settings.items():
        monkeypatch.setenv(
            f"PYICEBERG_CATALOG__PROD__{name.upper().replace('.', '__').replace('-', '_')}", value
        )
    monkeypatch.setattr(catalogues, "_ENV_CONFIG", Config())  # read when it was imported
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    found = catalogues.load_catalog("prod", **settings)
    found.create_namespace("shop")
    yield found
    lake._given.clear()


def test_iceberg_tables_are_read_at_a_snapshot(logs, expected, catalogue, tmp_path):
    """Partitioned by the day of a timestamp, with a column that was renamed and two that were dropped."""
    from pyiceberg.transforms import DayTransform

    items = pq.read_table(logs / "items.parquet")
    for place, name in enumerate(("secret", "other")):
        items = items.add_column(2 * place, name, pa.array(["x"] * 19))
    items = items.rename_columns([name.replace("ocr_cover", "title") for name in items.column_names])
    table = catalogue.create_table("shop.items", items.schema)
    table.append(items)
    with table.update_schema(allow_incompatible_changes=True) as change:
        change.rename_column("title", "ocr_cover")
        change.delete_column("secret")
        change.delete_column("other")
    for name, time in (("search_impressions", "searched_at"), ("feed_events", "watched_at")):
        rows = times_as(read_days(logs, name).drop_columns("day"), pa.timestamp("us", "UTC"), time)
        table = catalogue.create_table(f"shop.{name}", rows.schema)
        with table.update_spec() as spec:
            spec.add_field(time, DayTransform(), "at_day")
        table.append(rows)
    opened = open_logs("iceberg:prod.shop")
    for name in TABLES:
        assert rows_of(opened, name) == expected[name]
    assert opened.tables["feed_events"].days == ("2026-01-05", "2026-01-06", "2026-01-07")
    assert "secret" not in opened.tables["items"].extra
    first = table.current_snapshot().snapshot_id
    table.delete("item_id = 3")
    left = [row for row in expected["feed_events"] if row[1] != 3]
    assert rows_of(open_logs("iceberg:prod.shop"), "feed_events") == left != expected["feed_events"]
    (tmp_path / "logs.toml").write_text(
        'items = "iceberg:prod.shop.items"\nsearch_impressions = "iceberg:prod.shop.search_impressions"\n'
        f'feed_events = "iceberg:prod.shop.feed_events@{first}"\n'
    )
    assert rows_of(open_logs(tmp_path / "logs.toml"), "feed_events") == expected["feed_events"]
    assert_checked_alike(tmp_path / "logs.toml", logs, tmp_path)
    with pytest.raises(
        CropsError, match=rf"has no snapshot 5, or it has expired; the newest are {first}.*name"
    ):
        find_source("iceberg:prod.shop.feed_events@5", ITEMS)


# What cannot be read is one sentence with its remedy.


WRITE_TABLES = """
import sys
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[1]").enableHiveSupport().getOrCreate()
spark.sql("create database shop")
for table in ("items.parquet", "search_impressions", "feed_events"):
    rows = spark.read.parquet(f"{sys.argv[1]}/{table}").write
    (rows.partitionBy("day") if table[-1] == "s" else rows).saveAsTable(f"shop.{table.partition('.')[0]}")
spark.sql("create database seen")
for table in ("items", "search_impressions"):
    spark.sql(f"create view seen.{table} as select * from shop.{table} where item_id > 3")
"""
READ_TABLES = """
import pickle, sys
from crops.database import open_database
from crops.errors import CropsError
from crops.logs import open_logs
logs, database = open_logs("hive:shop"), open_database()
read = {table: sorted(database.execute(logs.sql(table)).fetchall(), key=repr) for table in logs.tables}
try:
    open_logs("hive:seen")
except CropsError as error:
    read["view"] = str(error)
pickle.dump(read, open(sys.argv[1], "wb"))
"""


@pytest.mark.verify
def test_tables_of_a_metastore_are_read_and_views_refused(logs, expected, tmp_path):
    """Two processes in one folder, where Spark keeps its metastore and its tables."""
    pytest.importorskip("pyspark")
    for script, path in ((WRITE_TABLES, logs), (READ_TABLES, tmp_path / "read")):
        subprocess.run([sys.executable, "-c", script, path], cwd=tmp_path, check=True)
    read = pickle.loads((tmp_path / "read").read_bytes())
    assert " is a view: the files below it " in read.pop("view")
    assert read == expected


def test_what_is_not_there(server, logs, tmp_path):
    upload(logs, "s3://lake/partly")
    store, inside = open_store("s3://lake/partly/items.parquet")
    store.delete_file(inside)
    with pytest.raises(CropsError, match=r"s3://lake/partly/items: is not there: it was moved.*logs\.toml"):
        open_logs("s3://lake/partly")
    with pytest.raises(
        CropsError, match=r"s3://nowhere/items cannot be read .*the bucket is not there: correct"
    ):
        open_logs("s3://nowhere")
    with pytest.raises(CropsError, match="ftp://x: no store that is read; known are s3://"):
        open_logs("ftp://x/logs")
    deltalake.write_deltalake(f"{tmp_path}/items", pq.read_table(logs / "items.parquet"))
    with pytest.raises(CropsError, match=r"items has no version 7 .*; its newest is 0: name one"):
        find_source(f"delta:{tmp_path}/items@7", ITEMS)
    with pytest.raises(
        CropsError, match="a version is one table's; name each table with its own in a logs.toml"
    ):
        table_uris("delta:s3://lake/logs@7")
    (tmp_path / "logs.toml").write_text('item = "s3://lake/items"\n')
    with pytest.raises(CropsError, match="item is no table.* Did you mean 'items'"):
        open_logs(tmp_path / "logs.toml")
    put(pq.read_table(logs / "items.parquet"), "s3://lake/part/items/_delta_log/x.parquet")
    with pytest.raises(
        CropsError, match="rows that were deleted or replaced since; name its snapshot as delta:"
    ):
        find_source("s3://lake/part/items", ITEMS)


def test_parquet_files_of_another_name_are_told(server, logs):
    put(pq.read_table(logs / "items.parquet"), "s3://lake/plainly/items/000000_0")
    with pytest.raises(CropsError, match=r"no file named \*.parquet, but 1 others such as 000000_0"):
        find_source("s3://lake/plainly/items", ITEMS)


def test_refused_credentials(server, monkeypatch):
    request = urllib.request.Request(f"{server}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
    urllib.request.urlopen(request).read()
    try:
        with pytest.raises(
            CropsError, match=r"s3://lake/logs/items cannot be read .*set the credentials of the"
        ):
            open_logs("s3://lake/logs")
    finally:
        request.data = b"inf"
        urllib.request.urlopen(request).read()


def test_a_file_that_was_overwritten_or_deleted_after_the_check(server, logs, tmp_path):
    upload(logs, "s3://lake/later")
    check("s3://lake/later", tmp_path / "checked")
    accepted = tmp_path / "checked" / "accepted"
    name = "s3://lake/later/search_impressions/day=2026-01-05/part-0.parquet"
    store, inside = open_store(name)
    rows = pq.read_table(logs / "search_impressions/day=2026-01-05/part-0.parquet", partitioning=None)
    put(rows.slice(1), name)
    with pytest.raises(
        CropsError, match=rf"{name}: was overwritten since it was listed; check or open the table"
    ):
        open_logs(accepted)
    store.delete_file(inside)
    with pytest.raises(CropsError, match=rf"{name}: is gone: it was deleted, or moved; check or open"):
        open_logs(accepted)


def test_a_time_needs_more_than_a_date(logs, tmp_path):
    rows = times_as(read_days(logs, "search_impressions"), pa.date32(), "searched_at")
    pq.write_table(rows, tmp_path / "search_impressions.parquet")
    shutil.copy(logs / "items.parquet", tmp_path)
    (tmp_path / "logs.toml").write_text('items = "items"\nsearch_impressions = "search_impressions"\n')
    with pytest.raises(CropsError, match="searched_at is date32.*a date has no time of day"):
        open_logs(tmp_path / "logs.toml")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(lake.importlib.util, "find_spec", lambda name: None)
    for uri, extra in (("delta:x", "lake"), ("iceberg:a.b", "lake"), ("hive:a.b", "spark")):
        with pytest.raises(CropsError, match=rf"crops-retrieval\[{extra}\]"):
            find_source(uri, SEARCH_IMPRESSIONS)


def test_days_of_partitions():
    at = datetime(2026, 1, 5, tzinfo=UTC)
    assert [as_day(one) for one in ("2026-01-05", "20260105", 20260105, at.date(), "2026-01-05-03", "7")] == [
        *["2026-01-05"] * 4,
        None,
        None,
    ]
    assert day_of_partition({"year": "2026", "month": "1", "day": "05"}) == "2026-01-05"
    assert day_of_partition({"hour": "03", "ds": at.date() + timedelta(days=1)}) == "2026-01-06"
    assert day_of_partition({"region": "eu"}) is None
