"""The packaged mappings of formats that many have alike, on a few rows in their shape."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.logs import check, import_logs

NOON = 1_767_614_400_000_000
"""2026-01-05 12:00:00 UTC."""
NAMES = ("query", "rank", "item_id", "clicked", "liked")


def ga4(name, second, items, term="red bow", user="a.1", session=5):
    values = {"ga_session_id": ("int_value", session), "search_term": ("string_value", term)}
    empty = {"string_value": None, "int_value": None, "float_value": None, "double_value": None}
    params = [{"key": key, "value": empty | {kind: value}} for key, (kind, value) in values.items()]
    shown = [{"item_id": f"{i}", "item_name": f"bow {i}", "item_category": "bows"} for i in items]
    at = NOON + second * 1_000_000
    return {"event_name": name, "event_timestamp": at, "user_pseudo_id": user, "event_params": params,
            "items": shown}  # fmt: skip


GA4 = [
    ga4("view_item_list", 0, [3, 1, 2]),
    ga4("select_item", 5, [1]),
    ga4("select_item", 6, [1]),
    ga4("add_to_cart", 9, [2]),
    ga4("view_item_list", 20, [2], term="bat", user="b.2"),
    ga4("select_item", 25, [9], term="bat", user="b.2"),  # was in no list
    ga4("view_item", 30, [3], term=None),
    ga4("page_view", 31, []),
]
PRODUCTS = "contexts_com_snowplowanalytics_snowplow_ecommerce_product_1"
PAGE = "contexts_com_snowplowanalytics_snowplow_web_page_1"
ACTION = "unstruct_event_com_snowplowanalytics_snowplow_ecommerce_snowplow_ecommerce_action_1"


def snowplow(type_, items, page, query):
    return {
        "domain_userid": "u",
        "derived_tstamp": "2026-01-05 12:00:00.000",
        "page_urlquery": query,
        ACTION: {"type": type_, "name": "search results"},
        PRODUCTS: [{"id": f"{i}", "name": f"bow {i}", "category": "bows"} for i in items],
        PAGE: [{"id": page}],
    }


SNOWPLOW = [
    snowplow("list_view", [2, 3], "p1", "sort=new&q=red+bow"),
    snowplow("list_click", [3], "p1", "sort=new&q=red+bow"),
    snowplow("list_view", [1], "p2", "page=2"),
    snowplow("transaction", [1], "p3", None),
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", ["ga4", "snowplow"])
def test_events_of_web_analytics_become_searches_with_clicks(tmp_path, name, kind):
    source = tmp_path / "source"
    source.mkdir()
    events = GA4 if name == "ga4" else SNOWPLOW
    if kind == "jsonl":
        (source / "events_20260105.jsonl").write_text("".join(json.dumps(row) + "\n" for row in events))
    else:
        pq.write_table(pa.Table.from_pylist(events), source / "events_20260105.parquet")
    report = import_logs(name, source, tmp_path / "logs")
    rows = pq.read_table(tmp_path / "logs/search_impressions", partitioning=None).to_pylist()
    found = sorted(tuple(row.get(column) for column in NAMES) for row in rows)
    counts = report.tables["search_impressions"]
    if name == "ga4":
        assert found == [
            ("bat", 1, 2, False, False),
            ("red bow", 1, 3, False, False),
            ("red bow", 2, 1, True, False),
            ("red bow", 3, 2, False, True),
        ]
        assert counts.reasons["unmatched_clicks"] == 1
        assert counts.others == 2  # a view of one item and of a page
        (opened,) = pq.read_table(tmp_path / "logs/feed_events", partitioning=None).to_pylist()
        assert (opened["item_id"], opened["watched_at"]) == (3, NOON + 30_000_000)
    else:
        assert found == [("red bow", 1, 2, False, None), ("red bow", 2, 3, True, None)]
        assert (counts.reasons, counts.others) == ({"unmapped_query": 1}, 1)
    items = pq.read_table(tmp_path / "logs/items.parquet").to_pylist()
    assert [(item["item_id"], item["ocr_cover"], item["category"]) for item in items] == [
        (i, f"bow {i}", "bows") for i in (1, 2, 3)
    ]
    assert check(tmp_path / "logs").faults == ()


def test_jdsearch_and_kuaisearch_lists_become_impressions(tmp_path):
    jd = tmp_path / "jd"
    jd.mkdir()
    head = "query candidate_wid_list candidate_label_list history_qry_list history_wid_list history_type_list"
    line = "12\x1832\t456_457_789\t3.0_0.0_1.0\t-1\t889\tORD\t0_5\n"
    head = "\t".join([*head.split(), "history_time_list"])
    (jd / "user_behavior_data.txt").write_text(f"{head}\n{line}")
    names = [
        "wid",
        "name",
        "brand_id",
        "brand_name",
        *(f"cate_{of}_{i}" for i in "1234" for of in ("id", "name")),
    ]
    product = ["5\x186", "1", "7", *["1", "8"] * 4, "2"]
    lines = ["\t".join([*names, "shop_id"]), *("\t".join([wid, *product]) for wid in ("456", "457", "789"))]
    (jd / "product_meta_data.txt").write_text("\n".join(lines) + "\n")
    import_logs("jdsearch", jd, tmp_path / "jd_logs")
    rows = pq.read_table(tmp_path / "jd_logs/search_impressions", partitioning=None).to_pylist()
    assert [(row["query"], row["item_id"], row["clicked"], row["liked"]) for row in rows] == [
        ("t12 t32", 456, True, True),
        ("t12 t32", 457, False, False),
        ("t12 t32", 789, True, False),
    ]
    assert pq.read_table(tmp_path / "jd_logs/items.parquet")["ocr_cover"].to_pylist() == ["t5 t6"] * 3

    kuai = tmp_path / "kuai"
    kuai.mkdir()
    search = {"user_id": 1, "session_id": 4, "query": "\u79cb\u5b63", "time_index": 60, "split": "train"}
    lists = {"impressed_item_ids": [8, 9], "clicked_item_ids": [9], "purchased_item_ids": []}
    (kuai / "recall.jsonl").write_text(json.dumps(search | lists) + "\n")
    fields = ["brand_name", "seller_name", *(f"category_level{level}_name" for level in "123")]
    items = [{"item_id": i, "item_title": "\u536b\u8863", **dict.fromkeys(fields, "UNKNOWN")} for i in (8, 9)]
    (kuai / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    import_logs("kuaisearch", kuai, tmp_path / "kuai_logs")
    rows = pq.read_table(tmp_path / "kuai_logs/search_impressions", partitioning=None).to_pylist()
    assert [(row["rank"], row["item_id"], row["clicked"]) for row in rows] == [(1, 8, False), (2, 9, True)]
    assert {row["searched_at"] for row in rows} == {1_735_693_200_000_000}  # 2025-01-01 01:00 UTC
    assert set(pq.read_table(tmp_path / "kuai_logs/items.parquet")["keyword"].to_pylist()) == {None}
