"""Folders of Delta Lake, Iceberg and Hudi hold deleted rows: every reader of files refuses them by name."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError
from crops.logs import import_logs, open_logs
from crops.relevance import read_pairs
from crops.retrieval import load_items
from crops.retrieval.catalogue import load_queries
from crops.training.samples import Samples

MARKS = {
    "Delta Lake": "_delta_log/00000000000000000000.json",
    "Hudi": ".hoodie/hoodie.properties",
    "Iceberg": "metadata/00001-1f2b3c4d-0000-4000-8000-0123456789ab.metadata.json",
}
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
    readers = [
        lambda: load_items(file),
        lambda: load_items(file.parent),
        lambda: load_queries(file),
        lambda: read_pairs(file),
        lambda: Samples(tmp_path / "mined").files("samples"),
        lambda: import_logs("ubi", table, tmp_path / "out"),
    ]
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
