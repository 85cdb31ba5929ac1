import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.config import EvaluationConfig, ReformulationConfig
from crops.errors import CropsError
from crops.evaluation import build_testsets, load_testsets, save_testsets
from crops.logs import open_logs
from crops.text import query_id

DAY = "2026-01-05"
NOON = 1_767_614_400_000_000
MIDNIGHT = NOON + 12 * 3_600_000_000
SECOND = 1_000_000
PIE, TART = query_id("apple pie"), query_id("apple tart")

ITEMS = [
    *({"item_id": item} for item in range(1, 7)),
    {"item_id": 7, "uploaded_at": MIDNIGHT - 1},
    {"item_id": 8, "uploaded_at": MIDNIGHT},
]


def search(search_id, user_id, query, at, **rows):
    """Impressions of one event: item -> columns, e.g. i3={"rank": 1}."""
    event = {"search_id": search_id, "user_id": user_id, "query": query, "searched_at": NOON + at * SECOND}
    return [{**event, "item_id": int(name[1:]), **columns} for name, columns in rows.items()]


IMPRESSIONS = [
    # User 1 searches again in other words and clicks there: 3 and 4 are credited to the first query.
    *search(11, 1, "Apple Pie", 0, i1={"rank": 1, "clicked": True}, i2={"rank": 2}),
    *search(12, 1, "apple tart", 30, i3={"rank": 1, "clicked": True}, i4={"rank": 2, "clicked": True}),
    # User 2 types the same query otherwise; the old system's list has all three stages.
    *search(21, 2, "apple  PIE", 60, i2={"rank": 2, "clicked": True}, i5={"rank": 1},
            i4={"stage": "unexposed", "pre_score": 0.2}, i1={"stage": "unexposed", "pre_score": 0.2},
            i3={"stage": "unexposed", "pre_score": 0.9}, i6={"stage": "unexposed"},
            i7={"stage": "filtered", "pre_score": 1.0}),
    # A search without a click, and a click on an item that was not there on the test day.
    *search(31, 3, "apple pie", 90, i1={"rank": 1}),
    *search(41, 4, "new things", 0, i8={"rank": 1, "clicked": True}),
    # Another day: no part of any set.
    *search(51, 5, "apple pie", -86_400, i6={"rank": 1, "clicked": True}),
]  # fmt: skip
SEARCH_NEEDS = {11: 1, 12: 1, 21: 2, 31: 2, 51: 1}
GRADES = [(1, 1, 2), (1, 3, 1), (1, 4, 3), (2, 2, 3), (2, 5, 2), (2, 8, 3), (9, 1, 3)]


def all_but(item):
    def scorer(batches):
        for batch in batches:
            scores = [0.6 if text == f"item {item}" else 0.7 for text in batch.column("right").to_pylist()]
            yield batch.append_column("score", pa.array(scores, pa.float64()))

    return scorer


@pytest.fixture(scope="module")
def logs(tmp_path_factory, write_logs):
    return open_logs(write_logs(tmp_path_factory.mktemp("logs"), ITEMS, IMPRESSIONS))


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth")
    pq.write_table(
        pa.table({"search_id": list(SEARCH_NEEDS), "need_id": list(SEARCH_NEEDS.values())}),
        folder / "searches.parquet",
    )
    columns = dict(zip(("need_id", "item_id", "grade"), zip(*GRADES, strict=True), strict=True))
    pq.write_table(pa.table(columns), folder / "grades.parquet")
    return folder


def always(score):
    def scorer(batches):
        for batch in batches:
            yield batch.append_column("score", pa.array([score] * batch.num_rows, pa.float64()))

    return scorer


def build(logs, truth=None, seed=0, seen=None, day=DAY, independent=None, **options):
    scorers = {name: options.pop(name, None) for name in ("relevance", "similarity")}
    given = {"truth": truth, "independent": independent, "seed": seed, "seen": seen, **scorers}
    return build_testsets(logs, [day], EvaluationConfig(**options), ReformulationConfig(), **given)


def rows(table):
    return list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))


def test_candidates_were_uploaded_before_the_day_ended(logs):
    testsets = build(logs)
    assert testsets.qr_independent is testsets.truth is None
    assert not any("independent" in name or "both" in name for name in testsets.counts)
    assert testsets.candidate_ids().tolist() == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(CropsError, match="2027-01-01"):
        build(logs, day="2027-01-01")


def test_ct_holds_the_clicks_of_the_day_by_normalised_query(logs):
    testsets = build(logs)
    expected = [(PIE, 11, 1), (PIE, 21, 2), (TART, 12, 3), (TART, 12, 4)]
    assert rows(testsets.ct) == sorted(expected)
    assert testsets.counts["ct_pairs"] == 4
    assert testsets.counts["ct_queries"] == 2
    assert testsets.counts["ct_pairs_outside_catalogue"] == 1  # item 8 of "new things"
    assert testsets.counts["searches"] == 5
    assert testsets.counts["queries"] == 3


def test_qr_is_credited_to_the_first_query_and_validated_by_theta(logs):
    assert rows(build(logs).qr) == [(PIE, 11, 3), (PIE, 11, 4)]
    assert rows(build(logs, relevance=all_but(4)).qr) == [(PIE, 11, 3)]


def test_qr_by_truth_needs_no_theta(logs, truth):
    # Item 3 has grade 1 for need 1, item 4 grade 3: theta errs on both.
    testsets = build(logs, truth, relevance=all_but(4))
    assert rows(testsets.qr) == [(PIE, 11, 3)]
    assert rows(testsets.truth.qr) == [(PIE, 11, 4)]


def test_qr_by_an_editor_takes_what_any_need_of_the_query_would(tmp_path, logs, truth):
    """Need 2 is search 21's: with grade 2 for it, item 3 is right for the pie, but not for search 11."""
    pq.write_table(pq.read_table(truth / "searches.parquet"), tmp_path / "searches.parquet")
    needs, items, grades = zip(*GRADES, (2, 3, 2), strict=True)
    pq.write_table(
        pa.table({"need_id": needs, "item_id": items, "grade": grades}), tmp_path / "grades.parquet"
    )
    found = build(logs, tmp_path)
    assert rows(found.truth.qr) == [(PIE, 11, 4)]
    assert rows(found.truth.qr_editor) == [(PIE, 11, 3), (PIE, 11, 4)]
    assert found.counts["qr_editor_queries"] == 1


def test_qr_by_an_independent_theta_uses_its_own_relevance_and_similarity(logs):
    # The candidates are 3 and 4 of "apple pie". The thetas keep one each; no pair is kept by both.
    testsets = build(logs, relevance=all_but(4), independent=(all_but(3), always(0.5)))
    assert rows(testsets.qr) == [(PIE, 11, 3)]
    assert rows(testsets.qr_independent) == [(PIE, 11, 4)]
    names = ("qr_pairs", "qr_independent_pairs", "qr_independent_queries", "qr_pairs_of_both")
    assert [testsets.counts[name] for name in names] == [1, 1, 1, 0]
    # Without a theta of training both candidates are in QR, and the independent one agrees on item 4.
    testsets = build(logs, independent=(all_but(3), always(0.5)))
    assert [testsets.counts[name] for name in names] == [2, 1, 1, 1]
    # Its similarity alone decides on its set, and that of training only on QR.
    testsets = build(logs, independent=(always(1), always(0.49)))
    assert (len(testsets.qr), rows(testsets.qr_independent)) == (2, [])
    testsets = build(logs, similarity=always(0.49), independent=(always(1), always(1)))
    assert (len(testsets.qr), rows(testsets.qr_independent)) == (0, [(PIE, 11, 3), (PIE, 11, 4)])
    assert PIE in testsets.queries["query_id"].to_pylist()


def test_qr_by_an_independent_theta_is_sampled_as_the_others(tmp_path, write_logs):
    pairs = [
        row
        for user in range(1, 9)
        for row in (
            *search(2 * user, user, f"query {user}", 0, i1={}),
            *search(2 * user + 1, user, "apple tart", 30, i3={"clicked": True}),
        )
    ]
    sets = build(open_logs(write_logs(tmp_path, ITEMS, pairs)), independent=(always(1), always(1)), max_qr=5)
    assert sets.counts["qr_independent_queries"] == 8
    assert len(sets.qr_independent["query_id"].unique()) == 5
    assert sets.qr_independent.equals(sets.qr)  # the same candidates, seed and limit


def test_annotation_is_the_old_list_of_the_first_event_with_the_majority_need(logs, truth):
    annotation = build(logs, truth).truth.annotation
    # "apple pie": need 2 twice, need 1 once; event 21 is the first. Exposed by rank, then by pre_score, equal
    # ones by id, none last; filtered item 7 was not ranked.
    expected = [(1, 5, 2), (2, 2, 3), (3, 3, 0), (4, 1, 0), (5, 4, 0), (6, 6, 0)]
    assert [row[1:] for row in rows(annotation) if row[0] == PIE] == [(2, *row) for row in expected]
    cut = build(logs, truth, ndcg_pool=2).truth.annotation
    assert [row[2:4] for row in rows(cut) if row[0] == PIE] == [(1, 5), (2, 2)]


def test_shown_items_come_before_others_where_no_rank_was_logged(tmp_path, write_logs, truth):
    shown = search(11, 1, "apple pie", 0, i1={"stage": "unexposed", "pre_score": 0.9}, i4={"pre_score": 0.1})
    annotation = build(open_logs(write_logs(tmp_path, ITEMS, shown)), truth).truth.annotation
    assert [row[2:4] for row in rows(annotation)] == [(1, 4), (2, 1)]


def test_a_tie_of_needs_goes_to_the_smaller_id(tmp_path, logs, truth):
    pq.write_table(pa.table({"search_id": [11, 21], "need_id": [2, 1]}), tmp_path / "searches.parquet")
    pq.write_table(pq.read_table(truth / "grades.parquet"), tmp_path / "grades.parquet")
    testsets = build(logs, tmp_path)
    assert testsets.truth.annotation["need_id"].unique().to_pylist() == [1]
    assert testsets.counts["searches_without_need"] == 3


def test_needs_and_grades_of_the_day_are_kept(logs, truth):
    sets = build(logs, truth).truth
    assert rows(sets.needs) == sorted([(PIE, 1, 1), (PIE, 2, 2), (TART, 1, 1)])
    # Not item 8, which is no candidate, and not need 9, which nobody had.
    assert rows(sets.grades) == [(1, 1, 2), (1, 3, 1), (1, 4, 3), (2, 2, 3), (2, 5, 2)]


def test_seen_queries_are_flagged(logs, truth):
    assert build(logs).queries["seen"].null_count == 2
    queries = build(logs, truth, seen={TART}).queries
    assert dict(zip(queries["query"].to_pylist(), queries["seen"].to_pylist(), strict=True)) == {
        "apple pie": False,
        "apple tart": True,
    }
    assert dict(zip(queries["query"].to_pylist(), queries["searches"].to_pylist(), strict=True)) == {
        "apple pie": 3,
        "apple tart": 1,
    }


def test_samples_are_whole_queries_drawn_by_the_seed(tmp_path, write_logs):
    clicks = [
        row
        for query in range(40)
        for row in search(query + 1, query, f"query {query}", 0, i1={"clicked": True}, i2={"clicked": True})
    ]
    logs = open_logs(write_logs(tmp_path, ITEMS, clicks))
    first, again, other = (build(logs, max_ct=30, seed=seed).ct for seed in (0, 0, 1))
    assert len(first) == 60
    assert len(np.unique(first["query_id"].to_numpy())) == 30
    assert first.equals(again)
    assert not first.equals(other)


def test_saved_and_loaded_sets_are_equal(tmp_path, logs, truth):
    independent = (all_but(3), always(1))
    full = build(logs, truth, seen=[PIE], independent=independent)
    for name, testsets in {"with": full, "without": build(logs)}.items():
        folder = tmp_path / name
        folder.mkdir()
        save_testsets(testsets, folder)
        assert load_testsets(folder) == testsets
    (tmp_path / "with" / "truth_qr_editor.parquet").unlink()  # sets that were built before there was one
    assert load_testsets(tmp_path / "with").truth.qr_editor is None


def test_a_damaged_folder_is_refused(tmp_path, logs):
    with pytest.raises(CropsError, match="does not hold test sets"):
        load_testsets(tmp_path)
    save_testsets(build(logs), tmp_path)
    (tmp_path / "ct.parquet").write_bytes(b"half")
    with pytest.raises(CropsError, match="does not hold test sets"):
        load_testsets(tmp_path)


def test_an_annotators_file_is_no_truth(tmp_path, logs):
    judged = tmp_path / "judgements.csv"
    judged.write_text("day,query,item_id,grade\n")
    with pytest.raises(CropsError, match="is a file and no truth: judgements of an annotator err"):
        build(logs, judged)


def test_faulty_truth_is_refused(tmp_path, logs, truth):
    with pytest.raises(CropsError, match=r"searches\.parquet is missing"):
        build(logs, tmp_path)
    pq.write_table(pq.read_table(truth / "searches.parquet"), tmp_path / "searches.parquet")
    pq.write_table(pa.table({"need_id": [1], "grade": [1]}), tmp_path / "grades.parquet")
    with pytest.raises(CropsError, match="lacks the columns item_id"):
        build(logs, tmp_path)
