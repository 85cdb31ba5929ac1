"""`crops import ubi`: queries and events as JSON lines, wrapped exports and Parquet, and their traps."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError
from crops.logs import check, import_logs

NOON_MS = 1_767_614_400_000
"""2026-01-05 12:00:00 UTC."""


def query(query_id, hits, at="2026-01-05T12:00:00Z", client="browser-b", text="water a ficus", **more):
    return {"application": "shop", "query_id": query_id, "client_id": client, "user_query": text,
            "timestamp": at, "query_response_hit_ids": hits, **more}  # fmt: skip


def event(action, object_id, query_id=None, at="2026-01-05T12:00:30Z", ordinal=None, **more):
    named = {"object_id": object_id, "object_id_field": "sku", "name": f"item {object_id}"}
    attributes = {"object": named, "position": {"ordinal": ordinal}, "user": {"gender": "f", "age": 30}}
    return {"action_name": action, "query_id": query_id, "client_id": "browser-b", "timestamp": at,
            "event_attributes": attributes, **more}  # fmt: skip


QUERIES = [
    query("q-2", ["sku-9", "sku-10"]),
    query("q-1", ["sku-10"], at=NOON_MS + 5_000, client="browser-a"),  # old samples: integer milliseconds
    query("q-3", [], at="2026-01-05T20:00:00+08:00"),  # the same noon, nothing found
    query("q-4", ["sku-9"], at="yesterday"),
]
EVENTS = [
    event("on_search", None, "q-2"),
    event("click", "sku-10", "q-2", ordinal=2),
    event("click", "sku-10", "q-2", ordinal=2),
    event("add_to_cart", "sku-10", "q-2"),
    event("click", "sku-11", "q-2", ordinal=12),  # on the second page, not among the hits
    event("click", "sku-9", "q-lost"),
    event("watch", "sku-9"),  # outside search
    event("login", None),
]


def write_lines(path, documents, wrap=False):
    lines = [json.dumps({"_index": "ubi", "_source": one} if wrap else one) for one in documents]
    path.write_text("\n".join(lines) + "\n")


def write_source(folder):
    folder.mkdir()
    write_lines(folder / "ubi_queries.jsonl", QUERIES)
    write_lines(folder / "ubi_events.jsonl", EVENTS, wrap=True)
    return folder


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "ubi")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The report of an import of the source, and the logs folder."""
    folder = tmp_path_factory.mktemp("imported")
    source, logs = write_source(folder / "source"), folder / "logs"
    return import_logs("ubi", source, logs, salt=folder / "salt"), logs


def rows(path):
    return pq.read_table(path, partitioning=None).to_pylist()


EXPECTED = [  # search, rank, item, clicked, liked
    ("q-2", 1, "sku-9", False, False),
    ("q-2", 2, "sku-10", True, True),
    ("q-2", 12, "sku-11", True, False),
    ("q-1", 1, "sku-10", False, False),
]


def impressions(folder):
    found = rows(folder / "search_impressions/day=2026-01-05/part-0.parquet")
    names = ("source_search_id", "rank", "source_item_id", "clicked", "liked")
    return [tuple(row[name] for name in names) for row in found]


def test_hits_become_impressions_and_events_their_clicks(imported):
    report, logs = imported
    assert impressions(logs) == EXPECTED
    found = rows(logs / "search_impressions/day=2026-01-05/part-0.parquet")
    assert [row["searched_at"] for row in found] == [NOON_MS * 1000] * 3 + [(NOON_MS + 5_000) * 1000]
    assert {row["stage"] for row in found} == {"exposed"}
    counts = report.tables["search_impressions"]
    assert counts.reasons == {"no_hits": 1, "unknown_query": 1, "unmapped_searched_at": 2,
                              "unmapped_query": 1, "unmapped_user_id": 1, "unmapped_item_id": 1}  # fmt: skip
    (outside,) = rows(logs / "feed_events/day=2026-01-05/part-0.parquet")
    assert (outside["user_id"], outside["source_item_id"]) == (found[0]["user_id"], "sku-9")
    assert outside["clicked"]
    assert check(logs).faults == ()


def test_parquet_and_json_lines_give_the_same(imported, tmp_path):
    other = tmp_path / "parquet"
    other.mkdir()
    texts = [{**one, "timestamp": str(one["timestamp"])} for one in QUERIES]
    pq.write_table(pa.Table.from_pylist(texts), other / "queries.parquet")
    pq.write_table(pa.Table.from_pylist(EVENTS), other / "events.parquet")
    import_logs("ubi", other, tmp_path / "logs", salt=imported[1].with_name("salt"))
    for name in ("items.parquet", "search_impressions/day=2026-01-05/part-0.parquet"):
        assert rows(tmp_path / "logs" / name) == rows(imported[1] / name)


def test_lines_that_are_no_json_or_not_utf8_are_counted(source, tmp_path):
    with (source / "ubi_queries.jsonl").open("ab") as stream:
        stream.write(b'{"query_id": "q-5", \nnot json\n["a list"]\n{"user_query": "caf\xe9"}\n')
    report = import_logs("ubi", source, tmp_path / "logs")
    assert report.tables["search_impressions"].reasons["malformed_json"] == 3
    assert report.malformed_lines == 1
    assert impressions(tmp_path / "logs") == EXPECTED
    (line,) = rows(tmp_path / "logs/rejects/lines.parquet")
    assert (line["line"], line["reason"]) == (8, "INVALID ENCODING")


def test_nothing_about_a_person_is_kept_of_a_reject(imported):
    logs = imported[1]
    kept = "".join(str(rows(path)) for path in (logs).rglob("*.parquet"))
    assert "gender" not in kept
    assert "'age'" not in kept


def test_item_texts_come_from_the_mapping_when_there_is_one(source, tmp_path):
    items = [{"sku": f"sku-{i}", "texts": {"title": f"title {i}"}} for i in (9, 10)]
    write_lines(source / "catalogue.jsonl", items)
    mapping = tmp_path / "ubi.toml"
    mapping.write_text(
        '[items]\nfiles = "catalogue.jsonl"\ncolumns = { item_id = "sku", ocr_cover = "texts.title" }\n'
        '[actions]\nclick = ["add_to_cart"]\nlike = []\n'
    )
    import_logs("ubi", source, tmp_path / "logs", mapping)
    items = rows(tmp_path / "logs/items.parquet")
    assert {row["source_id"]: row["ocr_cover"] for row in items} == {"sku-9": "title 9", "sku-10": "title 10"}
    assert [row[3:] for row in impressions(tmp_path / "logs")] == [
        (False, False),
        (True, False),
        (False, False),
    ]


def test_logs_without_any_item_text_ask_for_a_mapping(source, tmp_path):
    bare = [{**one, "event_attributes": {"object": {"object_id": "sku-9"}}} for one in EVENTS]
    write_lines(source / "ubi_events.jsonl", bare)
    with pytest.raises(CropsError, match=r"nothing of items can be imported: no_text \(1 rows\)"):
        import_logs("ubi", source, tmp_path / "logs")
    (kept,) = rows(tmp_path / "logs.failed/rejects/items.parquet")
    assert kept["reasons"] == ["no_text"]
    assert not (tmp_path / "logs").exists()


def test_a_repeated_query_id_multiplies_nothing(source, tmp_path):
    later = query("q-2", ["sku-9"], at="2026-01-05T12:10:00Z", client="browser-c", text="another")
    write_lines(source / "ubi_queries.jsonl", [later, *QUERIES, QUERIES[0]])
    counts = import_logs("ubi", source, tmp_path / "logs").tables["search_impressions"]
    assert impressions(tmp_path / "logs") == EXPECTED  # the earliest line of q-2 stands
    assert counts.reasons["repeated_query_id"] == 2
    assert counts.rows == counts.imported + counts.rejected


def test_a_further_page_of_a_query_joins_its_search_and_its_ranks_go_on(source, tmp_path):
    pages = [
        query("q-2", ["sku-10", "sku-11", "sku-12"], at="2026-01-05T12:02:00Z"),  # one hit slid to page 2
        query("q-2", ["sku-9", "sku-10"], at="2026-01-05T12:01:00Z"),  # page 1, logged once more
    ]
    write_lines(source / "ubi_queries.jsonl", [*pages, *QUERIES])
    counts = import_logs("ubi", source, tmp_path / "logs").tables["search_impressions"]
    further = [("q-2", 3, "sku-11", True, False), ("q-2", 4, "sku-12", False, False)]
    assert impressions(tmp_path / "logs") == [*EXPECTED[:2], *further, EXPECTED[3]]
    found = rows(tmp_path / "logs/search_impressions/day=2026-01-05/part-0.parquet")
    assert {row["searched_at"] for row in found[:4]} == {NOON_MS * 1000}  # the time of the first page
    assert (counts.reasons["repeated_hit"], counts.reasons["repeated_query_id"]) == (1, 1)
    assert counts.rows == counts.imported + counts.rejected


def test_hits_that_repeat_or_are_no_ids_are_counted(source, tmp_path):
    found = query("q-2", ["sku-9", "sku-10", "sku-9", {"id": "sku-9"}, None])
    write_lines(source / "ubi_queries.jsonl", [found, *QUERIES[1:]])
    reasons = import_logs("ubi", source, tmp_path / "logs").tables["search_impressions"].reasons
    assert impressions(tmp_path / "logs") == EXPECTED
    assert (reasons["repeated_hit"], reasons["unmapped_item_id"]) == (1, 2 + 1)  # and q-3 without hits


def test_lists_are_no_ids_and_clicks_without_an_object_are_counted(source, tmp_path):
    odd = [event("click", None, "q-2"), event("watch", "sku-9", client_id=["browser-b"])]
    write_lines(source / "ubi_events.jsonl", [*EVENTS, *odd])
    write_lines(source / "ubi_queries.jsonl", [*QUERIES, query("q-5", ["sku-9"], client=["browser-a"])])
    report = import_logs("ubi", source, tmp_path / "logs")
    assert impressions(tmp_path / "logs") == EXPECTED
    assert report.tables["search_impressions"].reasons["unmapped_user_id"] == 1 + 1  # and q-lost
    assert report.tables["feed_events"].reasons == {"unmapped_item_id": 1, "unmapped_user_id": 1}


@pytest.mark.parametrize("bulk", [True, False])
@pytest.mark.parametrize("name", ["ubi_queries_events.ndjson", "dump.jsonl"])
def test_one_file_of_both_is_parted_by_index_or_by_fields(imported, tmp_path, bulk, name):
    (tmp_path / "ubi").mkdir()
    lines = []
    for index, documents in (("ubi_queries", QUERIES), ("ubi_events", EVENTS), ("products", [{"sku": 1}])):
        for one in documents:
            lines += [json.dumps({"index": {"_index": index, "_id": "x"}})] * bulk + [json.dumps(one)]
    (tmp_path / "ubi" / name).write_text("\n".join(lines) + "\n")
    report = import_logs("ubi", tmp_path / "ubi", tmp_path / "logs")
    assert impressions(tmp_path / "logs") == EXPECTED
    counts = report.tables["search_impressions"]
    assert counts.reasons == imported[0].tables["search_impressions"].reasons
    assert counts.others == 1  # the product


@pytest.mark.parametrize("name", ["query_response_object_ids", "query_response_objects_ids", None])
def test_hits_under_another_name_or_from_impressions(source, tmp_path, name):
    bare = [{key: value for key, value in one.items() if key != "query_response_hit_ids"} for one in QUERIES]
    seen = []
    if name:
        bare = [
            one | {name: query["query_response_hit_ids"]} for one, query in zip(bare, QUERIES, strict=True)
        ]
    else:
        shown = [("q-2", "sku-10", 2), ("q-2", "sku-9", 1), ("q-1", "sku-10", 1), ("q-4", "sku-9", 1)]
        seen = [event("impression", sku, search, ordinal=place) for search, sku, place in [*shown, shown[0]]]
    write_lines(source / "ubi_queries.jsonl", bare)
    write_lines(source / "ubi_events.jsonl", [*EVENTS, *seen], wrap=True)
    import_logs("ubi", source, tmp_path / "logs")
    assert impressions(tmp_path / "logs") == EXPECTED


def test_a_parquet_file_that_is_queries_and_events_is_refused(source, tmp_path):
    for name in ("queries", "events"):
        (source / f"ubi_{name}.jsonl").unlink()
    pq.write_table(pa.Table.from_pylist([{"query_id": "q"}]), source / "ubi_queries_and_events.parquet")
    with pytest.raises(CropsError, match=r"queries_and_events.parquet is called both queries and events"):
        import_logs("ubi", source, tmp_path / "logs")
