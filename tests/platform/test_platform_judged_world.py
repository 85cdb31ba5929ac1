"""The world of a judged collection: six documents whose grades are known."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.config import PlatformConfig
from crops.errors import CropsError
from crops.platform import JudgedWorld, build_platform, simulate_day, write_truth
from crops.platform.world import SIZES, read_judged_world
from crops.retrieval import BM25Retriever

DOCS = [
    ("d1", "red boots", "leather, size 40"),
    ("d2", "blue boots", "rubber"),
    ("d3", "winter boots", "warm and red"),
    ("d4", "oak table", "for six"),
    ("d5", None, "a glass table"),
    ("d6", "vase", None),
]
QUERIES = [
    ("q1", "red boots"),
    ("q2", "Winter  boots women"),
    ("q3", "oak table"),
    ("q4", "unanswered boots"),
]
QRELS = [
    ("q1", "d1", 3), ("q1", "d3", 1), ("q2", "d3", 3), ("q2", "d2", 2), ("q3", "d4", 3), ("q3", "d5", 2),
    ("q3", "d6", 0), ("q4", "d2", 1),
]  # fmt: skip


def write_collection(folder, docs=DOCS, queries=QUERIES, qrels=QRELS):
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns, rows in (
        ("docs", ("doc_id", "title", "text"), docs),
        ("queries", ("query_id", "text"), queries),
        ("qrels", ("query_id", "doc_id", "grade"), qrels),
    ):
        values = zip(*rows, strict=True)
        pq.write_table(
            pa.table(dict(zip(columns, map(list, values), strict=True))), folder / f"{name}.parquet"
        )
    return folder


def read(folder) -> JudgedWorld:
    return read_judged_world(folder, SIZES["tiny"], 4, np.random.default_rng(0))


@pytest.fixture
def world(tmp_path) -> JudgedWorld:
    return read(write_collection(tmp_path / "collection"))


def test_needs_are_answered_queries_with_heads_from_shared_words(world):
    # q4 has no document of grade 2 or more. "boots" is in two of the three answered queries: their head;
    # the words of "oak table" and "winter ... women" are in one query each: the alphabet decides.
    assert world.intents.names == (
        ("boots", "red boots", "red boots"),
        ("boots", "winter boots", "winter boots women"),
        ("oak", "oak table", "oak table"),
    )


def test_stop_words_are_no_heads(tmp_path):
    queries = [("q1", "table for one"), ("q2", "boots for women"), ("q3", "the one")]
    qrels = [("q1", "d4", 3), ("q2", "d1", 3), ("q3", "d2", 3)]
    world = read(write_collection(tmp_path / "stop", queries=queries, qrels=qrels))
    assert {names[2]: names[0] for names in world.intents.names}["boots for women"] == "boots"


def need_of(world: JudgedWorld, text: str) -> int:
    return next(row for row, names in enumerate(world.intents.names) if names[2] == text)


def test_grades_are_the_judgements_and_zero_elsewhere(world):
    everything = np.arange(6)
    expected = {
        "red boots": [3, 0, 1, 0, 0, 0],
        "winter boots women": [0, 2, 3, 0, 0, 0],
        "oak table": [0, 0, 0, 3, 2, 0],
    }
    for text, grades in expected.items():
        assert world.relevance(np.array(need_of(world, text)), everything).tolist() == grades
    both = np.array([[need_of(world, "red boots")], [need_of(world, "oak table")]])
    assert world.relevance(both, np.array([[0, 3], [0, 3]])).tolist() == [[3, 0], [0, 3]]


def test_documents_belong_to_the_need_that_they_answer_best(world):
    texts = [world.intents.names[need][2] for need in world.corpus.need[:5]]
    assert texts == ["red boots", "winter boots women", "winter boots women", "oak table", "oak table"]
    # d6 was judged to answer nothing: it has no need, but lies beside the query it was judged for
    assert world.corpus.need[5] == -1
    senses = [world.intents.names[need_of(world, text)][1] for text in [*texts, "oak table"]]
    names = sorted({(head, sense) for head, sense, _ in world.intents.names})
    assert [names[row][1] for row in world.corpus.sense] == senses
    assert world.corpus.title == tuple(title for _, title, _ in DOCS)
    assert world.corpus.caption == tuple(text for _, _, text in DOCS)
    assert not world.corpus.partial.any()


def test_documents_that_nobody_judged_lie_anywhere(tmp_path):
    docs = [*DOCS, *((f"x{row}", "thing", f"number {row}") for row in range(300))]
    world = read(write_collection(tmp_path / "many", docs))
    assert (world.corpus.need[6:] == -1).all()
    assert np.bincount(world.corpus.sense[6:]).min() > 60


def test_vaguer_phrases_are_the_querys_own_words(world):
    phrases = world.intents.phrases
    for row, text in enumerate(phrases.text):
        need = phrases.need[row]
        if need >= 0:
            head, sense, query = world.intents.names[need]
            assert text == query
            assert set(head.split()) <= set(sense.split()) <= set(query.split())
    assert (np.diff(phrases.level) >= 0).all()
    assert world.intents.sense_demand.sum() == pytest.approx(1)


def test_rejected_rows_are_named(tmp_path):
    docs = [*DOCS, ("d7", None, "  "), (None, "no id", "x"), ("d1", "again", "x")]
    queries = [*QUERIES, ("q5", " "), ("q1", "again")]
    qrels = [*QRELS, ("q9", "d1", 3), ("q1", "d9", 3), ("q1", "d7", 3), ("q1", "d2", -1), ("q1", "d1", 2)]
    world = read(write_collection(tmp_path / "dirty", docs, queries, qrels))
    assert [tuple(row.values()) for row in world.rejected.to_pylist()] == [
        ("docs", 6, "empty_text"),
        ("docs", 7, "missing_id"),
        ("docs", 8, "duplicate_id"),
        ("queries", 4, "empty_text"),
        ("queries", 5, "duplicate_id"),
        ("qrels", 8, "unknown_query"),
        ("qrels", 9, "unknown_doc"),
        ("qrels", 10, "unknown_doc"),
        ("qrels", 11, "missing_or_negative_grade"),
        ("qrels", 12, "duplicate_pair"),
    ]
    assert len(world.corpus) == 6
    assert world.relevance(np.array(need_of(world, "red boots")), np.array(0)) == 3


@pytest.mark.parametrize(("qrels", "message"), [
    ([("q1", "d1", 4)], "column grade: 4 is above 3"),
    ([("q1", "d1", 1), ("q2", "d2", 0)], "no query has a document of grade 2 or more"),
    ([("q1", "gone", 3)], "no judgement joins a query to a document; left out: 1 rows"),
])  # fmt: skip
def test_unusable_judgements_are_refused(tmp_path, qrels, message):
    with pytest.raises(CropsError, match=message):
        read(write_collection(tmp_path / "bad", qrels=qrels))


def test_an_unknown_world_is_refused(tmp_path):
    with pytest.raises(
        CropsError, match=r"setting 'platform\.world' = '.*nowhere': neither 'topics' nor a folder"
    ):
        build_platform(PlatformConfig(size="tiny", world=str(tmp_path / "nowhere")), 0)


def test_days_run_on_real_documents_as_on_topics(tmp_path):
    folder = write_collection(tmp_path / "collection")
    platform = build_platform(PlatformConfig(size="tiny", world=str(folder)), 0)
    texts = [f"{title or ''} {text or ''}" for _, title, text in DOCS]
    logs = simulate_day(platform, 1, 200, {"bm25": BM25Retriever(np.arange(1, 7), texts)})
    queries = set(logs.impressions["query"].to_pylist())
    assert queries & {"red boots", "boots", "winter boots women", "oak table"}
    assert pa.compute.max(logs.impressions["item_id"]).as_py() <= 6
    write_truth(tmp_path / "truth", platform, [(logs.search_ids, logs.search_needs)])
    grades = pq.read_table(tmp_path / "truth" / "grades.parquet").to_pylist()
    found = {
        (platform.world.intents.names[row["need_id"]][2], row["item_id"], row["grade"]) for row in grades
    }
    texts_of = {number: " ".join(text.lower().split()) for number, text in QUERIES}
    assert found == {(texts_of[q], int(d[1]), grade) for q, d, grade in QRELS if grade and q != "q4"}
