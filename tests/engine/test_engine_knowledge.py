import json
import random

import pyarrow as pa
import pytest
from handmade import DAY, P3, clicked, evidence, labels, run, shown, write_logs

from crops.config import EngineConfig
from crops.engine import mine
from crops.engine.backend import DuckDBBackend
from crops.engine.knowledge import _first_sql, synthetic_id
from crops.engine.merge import PRIME
from crops.errors import CropsError
from crops.text import content_id, query_id

SEARCHES = [clicked(1, 1, "red shoes", 0, 1), shown(2, 2, "boots", 0, 2)]


def document(query, title, caption="", tags="", **more):
    return {"query": query, "ocr_cover": title, "photo_caption": caption, "keyword": tags, **more}


def test_generated_documents_are_positives_with_negative_ids(tmp_path):
    tables, report = run(
        tmp_path,
        SEARCHES,
        generated=[
            document("red shoes", "Ruby slippers", "three pairs", "shoes red", click_query="red heels|pumps"),
            document("Red  Shoes", "Running in red", model="some-llm", seed=4),  # the same query, normalised
            document("unknown query", "Nobody asked"),
        ],
    )
    first = synthetic_id(("Ruby slippers", "three pairs", "shoes red"))
    second = synthetic_id(("Running in red", "", ""))
    assert first < 0
    assert second < 0
    samples = labels(tables, ["red shoes", "boots"])
    assert samples == {
        ("red shoes", 1): (4, 8),
        ("red shoes", first): (4, P3),
        ("red shoes", second): (4, P3),
        ("boots", 2): (3, 4),
    }
    texts = {row["item_id"]: row for row in tables["synthetic_items"]}
    assert set(texts) == {first, second}
    assert {name: value for name, value in texts[first].items() if value is not None} == {
        "item_id": first,
        "ocr_cover": "Ruby slippers",
        "photo_caption": "three pairs",
        "keyword": "shoes red",
        "click_query": "red heels|pumps",
    }
    # Two queries, one with a generation; two of the four samples are generated.
    assert report["p3_coverage"] == {"queries": 2, "with_generation": 1, "without_generation": 1,
                                     "share_of_queries": 0.5, "samples": 2,
                                     "share_of_samples": 0.5}  # fmt: skip
    assert report["sources"]["p3"] == {"candidates": 3, "of_mined_queries": 2, "kept": 2}
    row = dict.fromkeys(("search_id", "via_query_id", "watched_at", "theta"))
    row |= {"query_id": query_id("red shoes"), "source": 16, "day": DAY}
    assert evidence(tables, P3) == [{**row, "item_id": item} for item in sorted((first, second))]


def test_synthetic_id_is_the_content_hash_with_the_sign_bit(tmp_path):
    fields = ("a", None, "b")
    assert synthetic_id(fields) == synthetic_id(("a", "", "b"))
    assert synthetic_id(("a", "b", "")) != synthetic_id(("", "a", "b"))
    number = content_id("a\x1f\x1fb")
    assert synthetic_id(fields) % 2**63 == number % 2**63
    assert synthetic_id(fields) < 0
    # one document for two queries is one item; the id is blind to click_query: the smallest is taken
    clicks = (("red shoes", "z"), ("boots", "a"), ("boots", "a"))
    generated = [document(query, "Footwear", click_query=text) for query, text in clicks]
    tables, report = run(tmp_path / "one", SEARCHES, generated=generated)
    assert [row["click_query"] for row in tables["synthetic_items"]] == ["a"]
    assert len(evidence(tables, P3)) == 2
    assert report["novelty"]["all"] == {"positives": 1, "never_shown": 0, "share": 0.0}


def test_no_generation_is_said_unless_p3_is_off(tmp_path):
    absent = "no generated document for any of these queries: P3 is absent"
    for name, generated in (("none", None), ("empty", []), ("other", [document("unknown", "Nobody asked")])):
        tables, report = run(tmp_path / name, SEARCHES, generated=generated)
        assert tables["synthetic_items"] == []
        assert report["p3_coverage"]["share_of_queries"] == 0.0
        assert absent in report["notes"]
    off = ("search", "p1", "p2")
    tables, report = run(tmp_path / "off", SEARCHES, generated=[document("boots", "Boots")], sources=off)
    assert tables["synthetic_items"] == []
    assert absent not in report["notes"]


def test_cap_per_query_is_a_seeded_choice(tmp_path):
    generated = [document("boots", f"Boots {number}") for number in range(20)] * 2  # twice is once
    runs = [
        run(tmp_path / name, SEARCHES, generated=generated, seed=seed, knowledge={"max_per_query": 3})[0]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, second, other = ({row["ocr_cover"] for row in tables["synthetic_items"]} for tables in runs)
    assert len(first) == 3
    assert first == second
    assert first != other


def test_cap_in_all_keeps_first_documents_before_second_ones(tmp_path):
    searches = [*SEARCHES, clicked(3, 3, "cake", 0, 3)]
    generated = [document(query, f"{query} {n}") for query in ("boots", "cake") for n in range(5)]
    limits = {"max_per_query": 3, "max_pairs": 2}
    tables, report = run(tmp_path / "two", searches, generated=generated, knowledge=limits)
    titles = [row["ocr_cover"] for row in tables["synthetic_items"]]
    assert sorted(title.split()[0] for title in titles) == ["boots", "cake"]
    assert report["sources"]["p3"]["kept"] == 2
    off, _ = run(tmp_path / "none", searches, generated=generated, knowledge={"max_pairs": 0})
    assert off["synthetic_items"] == []


@pytest.mark.parametrize("seed", [0, 1])
def test_the_first_pairs_by_place_and_chance_are_those_of_a_sort(seed):
    draw = random.Random(seed)
    rows = [(n % 40, n, draw.randint(1, 3), draw.choice([7, draw.randrange(PRIME)])) for n in range(500)]
    schema = pa.schema([(name, pa.int64()) for name in ("query_id", "item_id", "place", "chance")])
    table = pa.Table.from_arrays([pa.array(column) for column in zip(*rows, strict=True)], schema=schema)
    ordered = [(row[0], row[1]) for row in sorted(rows, key=lambda row: (row[2], row[3], row[0], row[1]))]
    with DuckDBBackend("500MB") as backend:
        backend.load("p3_placed", schema, table.to_batches())
        for most in (0, 1, 80, 81, 170, 499, 500, 10_000):
            found = backend.rows(_first_sql(backend, most))
            assert {(row["query_id"], row["item_id"]) for row in found} == {*ordered[:most]}


@pytest.mark.parametrize(("line", "message"), [
    ("{not json", "line 2: not JSON"),
    ("[1, 2]", "line 2: no text under 'query'"),
    (json.dumps({"ocr_cover": "x"}), "line 2: no text under 'query'"),
    (json.dumps({"query": "boots", "keyword": ["a"]}), r"line 2: 'keyword' is \['a'\]"),
    ('{"query": "boots", "keyword": "\\ud83d"}', "line 2: 'keyword' is"),
    (json.dumps({"query": "boots", "ocr_cover": " ", "keyword": "\u200b", "click_query": "x"}),
     "line 2: no text in any of ocr_cover"),
])  # fmt: skip
def test_a_bad_line_is_named_and_leaves_no_output(tmp_path, line, message):
    path = tmp_path / "generated.jsonl"
    path.write_text(json.dumps(document("boots", "Boots")) + "\n" + line + "\n")
    logs = write_logs(tmp_path / "logs", SEARCHES)
    with pytest.raises(CropsError, match=message):
        mine(logs, tmp_path / "out", EngineConfig(), relevance=None, similarity=None, generated=path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["generated.jsonl", "logs"]


@pytest.mark.parametrize("tail", [b'{"query": "boots", "ocr', b'\n{"query": "caf\xc3'])
def test_a_last_line_torn_by_a_kill_is_left_out(tmp_path, tail):
    path = tmp_path / "generated.jsonl"
    path.write_bytes(json.dumps(document("boots", "Boots")).encode() + b"\n" + tail)
    logs = write_logs(tmp_path / "logs", SEARCHES)
    report = mine(logs, tmp_path / "out", EngineConfig(), relevance=None, similarity=None, generated=path)
    assert report["sources"]["p3"]["kept"] == 1
    path.unlink()
    with pytest.raises(CropsError, match="generated.jsonl: cannot read the generated documents"):
        mine(logs, tmp_path / "out", EngineConfig(), relevance=None, similarity=None, generated=path)
