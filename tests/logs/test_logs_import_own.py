"""`crops import table`, `qilin` and importers of one's own: columns by TOML, units, nested lists of notes."""

from __future__ import annotations

import gzip
import json
import resource
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from crops.cli.app import app
from crops.errors import CropsError
from crops.ids import number_of, user_number
from crops.logs import check, import_logs
from crops.logs.mapped import own_tables
from crops.logs.mapping import load_mapping

NOON_S = 1_767_614_400
"""2026-01-05 12:00:00 UTC."""
MAPPING = """
utc_offset = "+02:00"
[items]
files = "items.csv.gz"
columns = { item_id = "sku", ocr_cover = "title", duration_ms = { column = "seconds", unit = "s" } }
[search_impressions]
files = "shown/*.parquet"
[search_impressions.columns]
user_id = "uid"
search_id = "sid"
query = "q"
searched_at = { column = "ts", unit = "s" }
item_id = "sku"
rank = { column = "pos", base = 0 }
clicked = { column = "action", equals = ["open", "buy"] }
play_ms = { column = "dwell", unit = "s" }
[feed_events]
files = "feed.tsv"
[feed_events.columns]
user_id = "uid"
item_id = "sku"
watched_at = { column = "at", unit = "iso" }
clicked = { value = true }
"""


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "own"
    (folder / "shown").mkdir(parents=True)
    with gzip.open(folder / "items.csv.gz", "wt") as stream:
        stream.write("sku,title,seconds\n3,three,12.5\n4,four,-1\n")
    shown = {
        "uid": ["u1", "u1", "u2"],
        "sid": [10, 10, 11],
        "q": [" bow ", " bow ", "bat"],
        "ts": [NOON_S + 0.25, NOON_S + 0.25, NOON_S],
        "sku": [3.0, 4.0, 3.0],  # integers beside gaps, as pandas writes them
        "pos": [0, 1, None],
        "action": ["open", "look", None],
        "dwell": [1.5, float("nan"), -1.0],
        "gender": ["f", "f", "m"],
        "age": [20, 20, 30],
    }
    pq.write_table(pa.table(shown), folder / "shown" / "a.parquet")
    (folder / "feed.tsv").write_text("uid\tsku\tat\tage\nu2\t4\t2026-01-05 14:00:00\t3\nu2\t4\tnow\t3\n")
    return folder


@pytest.fixture
def mapping(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(MAPPING)
    return path


def rows(path):
    return pq.read_table(path, partitioning=None).to_pylist()


def test_columns_units_and_constants_are_mapped(source, mapping, tmp_path):
    (tmp_path / "salt").write_text("the salt of this test")
    report = import_logs("table", source, tmp_path / "logs", mapping, salt=tmp_path / "salt")
    one, two = (user_number(text, b"the salt of this test") for text in ("u1", "u2"))
    found = rows(tmp_path / "logs/search_impressions/day=2026-01-05/part-0.parquet")
    names = ("user_id", "search_id", "query", "searched_at", "item_id", "rank", "clicked", "play_ms", "stage")
    at = NOON_S * 1_000_000
    assert [tuple(row[name] for name in names) for row in found] == [
        (two, 11, "bat", at, 3, None, False, None, "exposed"),
        (one, 10, "bow", at + 250_000, 3, 1, True, 1_500, "exposed"),
        (one, 10, "bow", at + 250_000, 4, 2, False, None, "exposed"),
    ]
    (event,) = rows(tmp_path / "logs/feed_events/day=2026-01-05/part-0.parquet")
    assert (event["watched_at"], event["clicked"]) == (at, True)  # 14:00 two hours ahead of UTC
    items = rows(tmp_path / "logs/items.parquet")
    assert [(row["item_id"], row["duration_ms"]) for row in items] == [(3, 12_500), (4, None)]
    assert report.tables["feed_events"].reasons == {"unmapped_watched_at": 1}
    assert report.ids == {"user_id": "salted", "item_id": "kept", "search_id": "kept"}


def test_columns_that_are_not_mapped_are_never_read(source, mapping):
    tables = {one.table.name: one for one in own_tables(source, load_mapping(mapping), source).tables}
    for name, projected in {
        "search_impressions": {"uid", "sid", "q", "ts", "sku", "pos", "action", "dwell"},
        "feed_events": {"uid", "sku", "at"},
    }.items():
        plan = duckdb.connect().execute(f"explain (format json) {tables[name].rows}").fetchall()[0][1]
        (scan,) = (
            node for node in _nodes(json.loads(plan)) if "SCAN" in node["name"] or "READ" in node["name"]
        )
        found = scan["extra_info"]["Projections"]
        read = set(found if isinstance(found, list) else [found]) - {"_file", "file_row_number", "filename"}
        assert read == projected


def _nodes(plan):
    for node in plan:
        yield node
        yield from _nodes(node["children"])


@pytest.mark.parametrize(("old", "new", "message"), [
    ("[items]", "[item]", r"item: Extra inputs"),
    ("ocr_cover", "ocr_covr", r"\[items.columns\] ocr_covr is no column of it. Did you mean 'ocr_cover'"),
    ('query = "q"', "", r"\[search_impressions.columns\] lacks query: query text as typed"),
    (', unit = "s" }\nitem_id', " }\nitem_id", r"searched_at: say its unit"),
    ('unit = "s" } }', 'unit = "iso" } }', r"duration_ms: a duration is a number"),
    ('"sku", ocr', '"skuu", ocr', r"items\.csv\.gz: column skuu is missing.*'sku'"),
    ("shown/*", "seen/*", r"no file matches seen/"),
    ("+02:00", "CET", r"utc_offset = 'CET': write it as"),
    ("{ value = true }", "{ unit = 's' }", r"clicked: say one of column, columns, value, in"),
    ("[feed_events]", "[feed_events", r"cannot read the mapping"),
])  # fmt: skip
def test_a_fault_of_the_mapping_is_named(source, mapping, tmp_path, old, new, message):
    assert old in MAPPING
    mapping.write_text(MAPPING.replace(old, new))
    with pytest.raises(CropsError, match=message):
        import_logs("table", source, tmp_path / "logs", mapping)
    assert not (tmp_path / "logs").exists()


def test_formats_and_mappings_that_do_not_fit(source, mapping, tmp_path):
    with pytest.raises(CropsError, match=r"no such format: kuaisr.*'kuaisar'"):
        import_logs("kuaisr", source, tmp_path / "logs")
    with pytest.raises(CropsError, match=r"no such format: csv.*: crops import table SRC --mapping MAP.toml"):
        import_logs("csv", source, tmp_path / "logs")
    with pytest.raises(CropsError, match="own tables need --mapping"):
        import_logs("table", source, tmp_path / "logs")
    with pytest.raises(CropsError, match="kuaisar has a mapping of its own"):
        import_logs("kuaisar", source, tmp_path / "logs", mapping)


def test_a_truncated_file_and_a_full_disk_publish_nothing(source, mapping, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CropsError, match="nothing was published|free disk space"):
            import_logs("table", source, tmp_path / "logs", mapping)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    path = source / "shown" / "a.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CropsError, match=r"a\.parquet is not readable as Parquet"):
        import_logs("table", source, tmp_path / "logs", mapping)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "own.toml"]


def note(idx, position, **more):
    fields = {"click": 0, "like": 0, "page_time": -1.0, "search_timestamp": NOON_S}
    return {"note_idx": idx, "position": position, **fields, **more}


def write_qilin(folder, shown):
    for name, columns in {
        "search_train": {"search_idx": [5], "user_idx": [70], "query": ["\u517b\u82b1"]},
        "recommendation_train": {"request_idx": [1], "user_idx": [80]},
    }.items():
        listed = "search_result_details_with_idx" if "search" in name else "rec_result_details_with_idx"
        feed = [{**one, "request_timestamp": NOON_S + 60} for one in shown]
        (folder / name).mkdir(parents=True)
        pq.write_table(
            pa.table({**columns, listed: [shown if "search" in name else feed]}), folder / name / "0.parquet"
        )
    (folder / "notes").mkdir()
    notes = {
        "note_idx": [0, 1],
        "note_title": ["\u517b\u82b1", ""],
        "note_content": ["a", "b"],
        "click_num": [3, 4],
    }
    pq.write_table(pa.table(notes), folder / "notes/0.parquet")
    (folder / "user_feat").mkdir()
    (folder / "user_feat/0.parquet").write_bytes(b"never opened")
    return folder


def test_qilin_lists_are_exploded_with_seconds_and_positions_from_one(tmp_path):
    shown = [note(0, 0, click=2, page_time=3.5), note(1, 1, like=1), note(None, 2)]
    folder = write_qilin(tmp_path / "qilin", shown)
    report = import_logs("qilin", folder, tmp_path / "logs")
    found = rows(tmp_path / "logs/search_impressions/day=2026-01-05/part-0.parquet")
    names = ("user_id", "search_id", "query", "searched_at", "item_id", "rank", "clicked", "liked", "play_ms")
    at = NOON_S * 1_000_000
    zero = number_of("0")  # note 0 is no positive number
    assert [tuple(row[name] for name in names[1:]) for row in found] == [
        (5, "\u517b\u82b1", at, zero, 1, True, False, 3_500),
        (5, "\u517b\u82b1", at, 1, 2, False, True, None),
    ]
    assert [row["source_item_id"] for row in found] == ["0", None]
    assert report.tables["search_impressions"].reasons == {"unmapped_item_id": 1}
    feed = rows(tmp_path / "logs/feed_events/day=2026-01-05/part-0.parquet")
    assert {(row["item_id"], row["watched_at"]) for row in feed} == {
        (zero, at + 60_000_000),
        (1, at + 60_000_000),
    }
    items = rows(tmp_path / "logs/items.parquet")
    assert [(row["item_id"], row["ocr_cover"], row["play_cnt"]) for row in items] == [
        (1, None, 4),
        (zero, "\u517b\u82b1", 3),
    ]


def test_a_qilin_list_without_its_fields_is_named(tmp_path):
    shown = note(1, 0)
    shown["positon"] = shown.pop("position")
    folder = write_qilin(tmp_path / "qilin", [shown])
    with pytest.raises(
        CropsError, match=r"search_result_details_with_idx holds no field position .*'positon'"
    ):
        import_logs("qilin", folder, tmp_path / "logs")


EXAMPLE = Path(__file__).parents[2] / "examples" / "extending" / "importer.py"


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "products.csv").write_text("sku,name\nA7,red kettle\nB2,blue kettle\n")
    (folder / "results.csv").write_text(
        "session,visitor,started,term,sku,bought\n"
        "s1,anna,2026-01-05 12:00:00,kettle,A7,1\n"
        "s1,anna,2026-01-05 12:00:00,kettle,B2,0\n"
        "s2,robot,2026-01-05 12:00:01,kettle,B2,0\n"
    )
    return folder


def test_one_file_is_an_importer(shop, tmp_path):
    out = tmp_path / "logs"
    result = CliRunner().invoke(app, ["import", f"{EXAMPLE}:SHOP", str(shop), "--out", str(out)])
    assert result.exit_code == 0, result.output
    (day,) = (out / "search_impressions").glob("day=2026-01-05/*.parquet")
    rows = pq.read_table(day, partitioning=None).to_pylist()
    assert [(row["query"], row["clicked"]) for row in rows] == [("kettle", True), ("kettle", False)]
    assert {row["searched_at"] for row in rows} == {1_767_610_800_000_000}  # 11:00 UTC
    (rejected,) = pq.read_table(out / "rejects/search_impressions.parquet")["reasons"].to_pylist()
    assert rejected == ["robot"]
    assert check(out).tables["search_impressions"].accepted == 2


@pytest.mark.parametrize(("name", "fault"), [
    (f"{EXAMPLE}:SHOPS", "SHOPS cannot be loaded: .*SHOPS"),
    ("none.py:SHOP", "none.py:SHOP cannot be loaded"),
    (f"{EXAMPLE}:shop", "importer.py:shop is no importer; make it a crops.logs.Importer"),
    ("kuaisra",
     r"no such format: kuaisra; there are ga4, jdsearch, kuaisar, .*, ubi, table, or FILE.py.*kuaisar"),
])  # fmt: skip
def test_what_is_no_importer_is_named(shop, tmp_path, name, fault):
    with pytest.raises(CropsError, match=fault):
        import_logs(name, shop, tmp_path / "logs")
