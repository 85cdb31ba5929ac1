"""Samples in other forms, record by record."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from handmade import clicked, read_tables, run, shown

from crops.engine.backend import DuckDBBackend
from crops.engine.export import export
from crops.errors import CropsError
from crops.retrieval.catalogue import load_item_rows
from crops.text import query_id

SEARCHES = [
    shown(101, 77, "A  b", 0, 2),
    clicked(101, 77, "A  b", 0, 1),
    shown(102, 55, "a b", 9, 2),
    clicked(103, 77, "c", 30, 3),
]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """A mining of them by query."""
    folder = tmp_path_factory.mktemp("queries")
    run(folder, SEARCHES)
    return folder / "mined"


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """A mining of them by event, with a generated document."""
    folder = tmp_path_factory.mktemp("events")
    run(folder, SEARCHES, generated=[{"query": "c", "ocr_cover": "written"}], group_by="event")
    return folder / "mined"


def test_the_papers_record_is_one_event(events, tmp_path):
    """User 55 becomes 1, user 77 becomes 2; the reformulation c gives item 3 to user 77's a b."""
    assert export(events, tmp_path / "x", "cpsqa", owner=True) == 3

    def photo(item, text, label):
        return {"photo_id": str(item), "photo_content": text, "hierarchical_label": label}

    written = read_tables(events)["synthetic_items"][0]["item_id"]
    assert lines(tmp_path / "x" / "cpsqa.jsonl") == [
        {"user_id": 2, "query": "a b",
         "photo_list": [photo(3, "doc 3", 5), photo(1, "doc 1", 4), photo(2, "doc 2", 3)]},
        {"user_id": 1, "query": "a b", "photo_list": [photo(2, "doc 2", 3)]},
        {"user_id": 2, "query": "c", "photo_list": [photo(written, "written", 4), photo(3, "doc 3", 4)]},
    ]  # fmt: skip


def test_tables_that_are_folders_of_files_are_read_as_one(mined, tmp_path):
    parts = tmp_path / "parts"
    shutil.copytree(mined, parts)
    for file in parts.glob("*.parquet"):
        rows = pq.read_table(file)
        file.unlink()
        file.mkdir()
        cut = len(rows) // 2
        for number, part in enumerate((rows.slice(0, cut), rows.slice(cut))):
            pq.write_table(part, file / f"part-{number:05d}.parquet")
    for source, out in ((mined, "one"), (parts, "several")):
        export(source, tmp_path / out, "jsonl", owner=True)
    (one,), (several,) = (list((tmp_path / out).glob("*.jsonl")) for out in ("one", "several"))
    assert lines(several) == lines(one) != []
    assert load_item_rows(parts).equals(load_item_rows(mined))


def test_json_lines(mined, tmp_path):
    assert export(mined, tmp_path / "lines", "jsonl", owner=True) == 2
    records = {record["query"]: record for record in lines(tmp_path / "lines" / "samples.jsonl")}
    assert records["a b"]["query_id"] == str(query_id("a b"))
    assert records["a b"]["documents"] == [
        {"item_id": "3", "label": 5, "weight": 1.0, "text": "doc 3", "sources": ["reformulation"]},
        {"item_id": "1", "label": 4, "weight": 1.0, "text": "doc 1", "sources": ["clicked"]},
        {"item_id": "2", "label": 3, "weight": 1.0, "text": "doc 2", "sources": ["exposed"]},
    ]
    manifest = json.loads((tmp_path / "lines" / "manifest.json").read_text())
    assert (manifest["command"], manifest["format"], manifest["records"]) == ("export", "jsonl", 2)


@pytest.mark.parametrize("group_by", ["query", "event"])
def test_only_the_owner_gets_queries_of_few_people(tmp_path, group_by, capsys):
    """Two people searched a b, only user 77 c."""
    run(tmp_path, SEARCHES, k=2, group_by=group_by)
    groups = 1 if group_by == "query" else 2
    assert export(tmp_path / "mined", tmp_path / "lines", "jsonl") == groups
    assert {record["query"] for record in lines(tmp_path / "lines" / "samples.jsonl")} == {"a b"}
    said = " ".join(capsys.readouterr().err.split())
    assert "of fewer than 2 users are left out; --owner" in said
    assert export(tmp_path / "mined", tmp_path / "all", "jsonl", owner=True) == groups + 1


def test_what_cannot_be_exported(mined, events, tmp_path):
    for source, kind, message in (
        (mined, "cpqsa", r"unknown format 'cpqsa'; known: .* Did you mean 'cpsqa'\?"),
        (mined, "cpsqa", r"one query event; mine with engine.group_by = 'event'"),
        (mined.parent / "logs", "jsonl", "is not an output of `crops mine`"),
        (mined, "jsonl", "no query of at least k = 20 users; --owner"),
        # it is what one person did, and one number joins all of a person's records
        (events, "cpsqa", "is what one person did, so --owner"),
    ):
        with pytest.raises(CropsError, match=message):
            export(source, tmp_path / "x", kind)
    with pytest.raises(CropsError, match="is an output of `crops mine`, not of `export`"):
        export(mined, mined, "jsonl", owner=True)
    assert not (tmp_path / "x").exists()


def test_a_full_disk_leaves_nothing(mined, tmp_path, monkeypatch):

    def full(self, query):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DuckDBBackend, "stream", full)
    with pytest.raises(CropsError, match="nothing was published"):
        export(mined, tmp_path / "x", "jsonl", owner=True)
    assert list(tmp_path.iterdir()) == []
