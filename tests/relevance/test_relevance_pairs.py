"""Judged pairs from files and from logs."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError
from crops.labels import Source
from crops.relevance import Pairs, log_pairs, read_pairs
from crops.relevance.calibrate import held_out
from crops.schema import EVIDENCE, ITEMS, QUERIES, SAMPLES
from crops.text import query_id


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_three_forms_read_the_same(tmp_path, suffix):
    path = tmp_path / f"pairs{suffix}"
    rows = [("fig", "a tree, indoors", 1), ("fig", "a car", 0)]
    if suffix == ".csv":
        path.write_text("query,text,relevant\n" + "".join(f'{q},"{t}",{r}\n' for q, t, r in rows))
    elif suffix == ".jsonl":
        path.write_text("".join(f'{{"query": "{q}", "text": "{t}", "relevant": {r}}}\n' for q, t, r in rows))
    else:
        columns = zip(*rows, strict=True)
        pq.write_table(pa.table(dict(zip(("query", "text", "relevant"), columns, strict=True))), path)
    pairs = read_pairs(path)
    assert (pairs.left, pairs.right) == (["fig", "fig"], ["a tree, indoors", "a car"])
    assert pairs.relevant.tolist() == [True, False]


def test_columns_that_differ_in_case_are_not_taken_for_the_pairs(tmp_path):
    columns = {"Query": ["no"], "query": ["fig"], "TEXT": ["no"], "text": ["a tree"], "relevant": [1]}
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    pairs = read_pairs(tmp_path / "pairs.parquet")
    assert (pairs.left, pairs.right) == (["fig"], ["a tree"])
    pq.write_table(
        pa.table({"Query": ["fig"], "text": ["a tree"], "relevant": [1]}), tmp_path / "pairs.parquet"
    )
    with pytest.raises(CropsError, match="need the columns query, text, relevant"):
        read_pairs(tmp_path / "pairs.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("query,text,relevant\na,b,1\na,\u200b,0\n", "pair 2: no text in column 'text'"),
        ("query,text\na,b\n", "need the columns query, text, relevant"),
        ("query,text,relevant\n", "no pairs"),
        ("query,text,relevant\na,b,1\na,,0\n", "pair 2: no text in column 'text'"),
        ("query,text,relevant\na,b,maybe\n", "pair 1: relevant is 'maybe'"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(CropsError, match=message):
        read_pairs(tmp_path / "pairs.csv")


def test_other_kinds_missing_files_and_truth_are_refused(tmp_path):
    with pytest.raises(CropsError, match="ends in"):
        read_pairs(tmp_path / "pairs.xlsx")
    with pytest.raises(CropsError, match="cannot read the pairs"):
        read_pairs(tmp_path / "none.csv")
    with pytest.raises(CropsError, match="outside the evaluated world"):
        read_pairs(tmp_path / "truth" / "grades.parquet")


def test_queries_are_held_out_whole_and_about_half_of_them():
    queries = [f"query {number // 2}" for number in range(1000)]
    held = held_out(Pairs(queries, queries, np.ones(1000, np.bool_)))
    assert (held[::2] == held[1::2]).all()
    assert 0.4 < held.mean() < 0.6


def write(folder, table, rows):
    full = [dict.fromkeys(table.names()) | row for row in rows]
    pq.write_table(pa.Table.from_pylist(full, schema=table.arrow()), folder / f"{table.name}.parquet")


@pytest.fixture
def mined(tmp_path):
    """Fig: item 1 clicked twice, 2 once, 3 and 4 only dropped; cat: item 5 clicked twice."""
    write(
        tmp_path,
        QUERIES,
        [{"query_id": query_id(q), "query": q, "searches": 9, "users": 9} for q in ("fig", "cat")],
    )
    write(tmp_path, ITEMS, [{"item_id": item, "ocr_cover": f"item {item}"} for item in range(1, 6)])
    pairs = [("fig", 1, 8), ("fig", 2, 8), ("fig", 3, 1), ("fig", 4, 1), ("cat", 5, 8), ("cat", 4, 5)]
    write(
        tmp_path,
        SAMPLES,
        [
            {"query_id": query_id(q), "item_id": i, "label": 1, "sources": s, "weight": 1.0}
            for q, i, s in pairs
        ],
    )
    clicks = [("fig", 1, 1), ("fig", 1, 2), ("fig", 2, 1), ("cat", 5, 3), ("cat", 5, 4)]
    write(
        tmp_path,
        EVIDENCE,
        [
            {
                "query_id": query_id(q),
                "item_id": i,
                "source": int(Source.CLICKED),
                "search_id": s,
                "day": "2024-05-01",
            }
            for q, i, s in clicks
        ],
    )
    return tmp_path


def test_confident_log_pairs(mined):
    pairs = log_pairs(mined)
    found = set(zip(pairs.left, pairs.right, pairs.relevant.tolist(), strict=True))
    relevant = {("fig", "item 1", True), ("cat", "item 5", True)}
    foreign = {("fig", "item 5", False), ("cat", "item 1", False)}
    assert relevant | foreign < found
    # One document of fig that was only ever dropped; cat's item 4 was shown as well.
    assert len(found - relevant - foreign) == 1
    assert (found - relevant - foreign) <= {("fig", "item 3", False), ("fig", "item 4", False)}


def test_no_confident_pair_is_an_error(mined):
    with pytest.raises(CropsError, match="lower min_searches"):
        log_pairs(mined, min_searches=3)
    with pytest.raises(CropsError, match="not an output of `crops mine`"):
        log_pairs(mined / "elsewhere")
