import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError
from crops.labels import SEARCH_SOURCES, Source
from crops.training import from_judgements, load_samples

S = Source
ITEMS = {1: "one", 2: "two", 3: "three", 4: "four", -5: "generated"}
ROWS = [
    (20, 1, S.CLICKED),
    (20, 2, S.EXPOSED | S.REFORMULATION),
    (10, 3, S.FILTERED | S.FEED),
    (10, 1, S.EXPOSED),
    (30, -5, S.KNOWLEDGE),
    (30, 4, S.CLICKED | S.KNOWLEDGE | S.FEED),
]


def groups(data):
    """{query text: [(document text, label, source), ...]}"""
    rows = {text: [] for text in data.query_texts}
    for group, doc, label, source in zip(
        data.group_of_pair(), data.doc, data.label, data.source, strict=True
    ):
        rows[data.query_texts[group]].append((data.doc_texts[doc], label, source))
    return rows


def test_groups_of_all_sources(write_mined):
    data = load_samples(write_mined(ROWS, ITEMS, {10: ("ten", 9), 20: ("twenty", 4), 30: ("thirty", 1)}))
    assert groups(data) == {
        "ten": [("one", 3, S.EXPOSED), ("three", 4, S.FEED)],
        "twenty": [("one", 4, S.CLICKED), ("two", 5, S.REFORMULATION)],
        # Three sources earn label 4: the click speaks first, so that it is drawn as a click.
        "thirty": [("generated", 4, S.KNOWLEDGE), ("four", 4, S.CLICKED)],
    }
    assert data.query_id.tolist() == [10, 20, 30]
    assert data.searches.tolist() == [9, 4, 1]
    assert data.doc_id[data.doc].tolist() == [1, 3, 1, 2, -5, 4]


def test_an_arm_labels_as_if_the_other_sources_had_not_spoken(write_mined):
    data = load_samples(write_mined(ROWS, ITEMS), keep=SEARCH_SOURCES)
    assert groups(data) == {
        "query 10": [("one", 3, S.EXPOSED), ("three", 1, S.FILTERED)],
        "query 20": [("one", 4, S.CLICKED), ("two", 3, S.EXPOSED)],
        "query 30": [("four", 4, S.CLICKED)],
    }
    assert groups(load_samples(write_mined(ROWS, ITEMS, folder="b"), keep=S.FEED)) == {
        "query 10": [("three", 4, S.FEED)],
        "query 30": [("four", 4, S.FEED)],
    }


def test_other_labels_may_be_given(write_mined):
    data = load_samples(write_mined(ROWS, ITEMS), labels={S.CLICKED: 2, S.REFORMULATION: 2, S.EXPOSED: 1})
    assert groups(data) == {
        "query 10": [("one", 1, S.EXPOSED)],
        "query 20": [("one", 2, S.CLICKED), ("two", 2, S.REFORMULATION)],
        "query 30": [("four", 2, S.CLICKED)],
    }


def test_groups_without_an_anchor_can_be_left_out(make_data):
    data = make_data([[(4, 8), (1, 1)], [(3, 4)], [(5, 64)]]).with_anchors(4)
    assert data.query_texts == ["query 0", "query 2"]
    assert data.offsets.tolist() == [0, 2, 3]
    assert data.label.tolist() == [4, 1, 5]
    assert data.doc.tolist() == [0, 1, 3]


def test_faults_of_a_mined_folder_are_named(write_mined, tmp_path):
    with pytest.raises(
        CropsError, match=r"samples.parquet is missing; name an output folder of `crops mine`"
    ):
        load_samples(tmp_path)
    with pytest.raises(CropsError, match="item 4 has a label but no text \\(1 such\\)"):
        load_samples(write_mined(ROWS, {i: t for i, t in ITEMS.items() if i != 4}, folder="a"))
    with pytest.raises(CropsError, match="query 20 has a label but no text"):
        load_samples(write_mined(ROWS, ITEMS, {10: ("ten", 1), 30: ("thirty", 1)}, folder="b"))
    mined = write_mined(ROWS[:1], ITEMS, folder="c")
    with pytest.raises(CropsError, match="no sample comes from the sources"):
        load_samples(mined, keep=S.FEED)
    path = mined / "samples.parquet"
    pq.write_table(pq.read_table(path).drop_columns("sources"), path)
    with pytest.raises(CropsError, match="samples.parquet has no column sources"):
        load_samples(mined)


DOCS = pa.table(
    {"doc_id": ["a", "b", "c", "z"], "title": ["A", "B", None, "Z"], "text": ["aa", "", "cc", "zz"]}
)
QUERIES = pa.table({"query_id": [7, 8, 9], "text": ["seven", "eight", "nine"]})


def qrels(rows):
    return pa.table(dict(zip(["query_id", "doc_id", "grade"], zip(*rows, strict=True), strict=True)))


def test_judgements_become_groups():
    data = from_judgements(DOCS, QUERIES, qrels([(9, "c", 0), (7, "a", 3), (9, "b", 2)]))
    found = groups(data)
    assert list(found) == ["seven", "nine"]
    assert found["seven"] == [("A aa", 3, 0)]
    assert sorted(found["nine"]) == [("B", 2, 0), ("cc", 0, 0)]
    assert len(set(data.doc_id[data.doc].tolist())) == 3
    assert "Z zz" not in data.doc_texts


@pytest.mark.parametrize(
    ("docs", "rows", "message"),
    [
        (DOCS, [(7, "q", 1)], "has a label but no text"),
        (DOCS, [(1, "a", 1)], "qrels: query 1 has a label but no text"),
        (DOCS, [(7, "a", -1)], "negative grade"),
        (DOCS.drop_columns(["title", "text"]), [(7, "a", 1)], "docs has no column text; it has doc_id"),
    ],
)
def test_faults_of_judgements_are_named(docs, rows, message):
    with pytest.raises(CropsError, match=message):
        from_judgements(docs, QUERIES, qrels(rows))


def test_selecting_nothing_is_empty(make_data):
    data = make_data([[(1, 1)], [(2, 2)]]).select(np.zeros(2, dtype=bool))
    assert (data.groups, data.offsets.tolist(), len(data.doc)) == (0, [0], 0)
