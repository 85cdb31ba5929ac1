"""theta's logistic: fitted on judged pairs of files and logs, stored, and what it is worth, by hand."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

from crops.errors import CropsError
from crops.labels import Source
from crops.relevance import (
    Calibration,
    Pairs,
    StoredCalibration,
    fit,
    load_calibration,
    log_pairs,
    read_pairs,
    store_calibration,
)
from crops.relevance.calibrate import (
    AlphaPoint,
    Bin,
    by_alpha,
    calibration_error,
    held_out,
    log_loss,
    reliability,
)
from crops.schema import EVIDENCE, ITEMS, QUERIES, SAMPLES
from crops.text import query_id

ENTRY = StoredCalibration(8.0, -2.5, "abc", "by hand", 10, 0.6, 0.9, 0.8, "2026-01-01")


def test_fit_of_two_cosines_is_saturated():
    # Two distinct cosines, two parameters: the fit gives each cosine its share of relevant pairs,
    # 1 of 4 at cosine 0 and 3 of 4 at cosine 1: b = ln(1/3), a + b = ln 3.
    cosines = np.array([0.0] * 4 + [1.0] * 4)
    relevant = np.array([True, False, False, False, True, True, True, False])
    fitted = fit(cosines, relevant)
    assert fitted.b == pytest.approx(-math.log(3), abs=1e-7)
    assert fitted.a == pytest.approx(2 * math.log(3), abs=1e-7)
    # a x + b = 0 gives 1/2; = ln 3 gives 3/4
    probabilities = Calibration(a=4.0, b=-2.0).probability(np.array([0.5, (math.log(3) + 2) / 4]))
    assert probabilities == pytest.approx([0.5, 0.75])


@pytest.mark.parametrize("balanced", [True, False])
def test_fit_equals_sklearn(balanced: bool):
    rng = np.random.default_rng(0)
    relevant = rng.random(500) < 0.2
    cosines = np.clip(rng.normal(np.where(relevant, 0.5, 0.3), 0.15), -1, 1)
    fitted = fit(cosines, relevant, None if balanced else np.ones(500))
    oracle = LogisticRegression(C=np.inf, class_weight="balanced" if balanced else None, tol=1e-10)
    oracle.fit(cosines[:, None], relevant)
    assert (fitted.a, fitted.b) == pytest.approx((oracle.coef_[0, 0], oracle.intercept_[0]), rel=1e-4)


@pytest.mark.parametrize(("cosines", "relevant", "message"), [
    ([0.1, 0.9], [True, True], "one of the two is missing"),
    ([0.1, 0.2, 0.8, 0.9], [False, False, True, True], "separates"),
    ([0.1, 0.2, 0.8, 0.9], [True, True, False, False], "separates"),
    ([0.1, 0.5, 0.4, 0.9], [True, True, False, False], "does not rise"),
])  # fmt: skip
def test_pairs_that_cannot_be_calibrated(cosines: list[float], relevant: list[bool], message: str):
    with pytest.raises(CropsError, match=message):
        fit(np.array(cosines), np.array(relevant))


def test_calibrations_are_stored_by_kind_and_model_and_refused_for_others(tmp_path):
    path = tmp_path / "calibrations.json"
    for kind in ("relevance", "similarity"):
        store_calibration(path, kind, "mine", ENTRY)
    assert load_calibration("relevance", "mine", "abc", path) == Calibration(8.0, -2.5)
    assert set(json.loads(path.read_text())) == {"relevance", "similarity"}
    with pytest.raises(CropsError, match="fitted for weights abc, but the model found has xyz"):
        load_calibration("relevance", "mine", "xyz", path)
    with pytest.raises(CropsError, match=r"no similarity calibration for model 'minilmm'.*'minilm'.*Fit one"):
        load_calibration("similarity", "minilmm", "abc")
    for content in ("not json", '{"relevance": {"mine": {"a": 1.0}}}'):
        path.write_text(content)
        with pytest.raises(CropsError, match="calibrations.json"):
            load_calibration("relevance", "mine", "abc", path)


P = np.array([0.9, 0.7, 0.3, 0.8, 0.2, 0.1])
RELEVANT = np.array([True, True, False, False, False, False])
# Weights: 6 / (2 * 2) = 1.5 for each of 2 relevant, 6 / (2 * 4) = .75 for each of 4 irrelevant pairs.


def test_precision_and_recall_by_hand():
    # Above .75: .9 (1.5, right) and .8 (.75, wrong): 1.5 / 2.25; recall 1.5 / 3.
    assert by_alpha(P, RELEVANT, [0.75, 0.25, 0.9]) == [
        AlphaPoint(0.75, 2, pytest.approx(2 / 3), pytest.approx(0.5)),
        AlphaPoint(0.25, 4, pytest.approx(3 / 4.5), pytest.approx(1.0)),
        AlphaPoint(0.9, 0, None, 0.0),  # the comparison is strict; nothing kept has no precision
    ]
    with pytest.raises(CropsError, match="relevant and irrelevant"):
        by_alpha(P, np.ones(6, np.bool_), [0.5])


def test_reliability_by_hand():
    # Two bins: below .5 (.3, .2, .1: none relevant) and from .5 (.9, .7 of weight 1.5, .8 of .75).
    low, high = reliability(P, RELEVANT, bins=2)
    assert low == Bin(pytest.approx(0.2), 0.0, 3)
    assert high == Bin(pytest.approx((0.9 * 1.5 + 0.7 * 1.5 + 0.8 * 0.75) / 3.75), pytest.approx(0.8), 3)
    # Empty bins are left out, and 1 is in the last.
    bins = reliability(np.array([0.0, 1.0]), np.array([False, True]))
    assert [(one.predicted, one.observed) for one in bins] == [(0.0, 0.0), (1.0, 1.0)]
    # Low bin: .75 * (.3 + .2 + .1) = .45; high: 1.5 * (-.1 - .3) + .75 * .8 = 0. (.45 + 0) / 6 = .075.
    assert calibration_error(P, RELEVANT, bins=2) == pytest.approx(0.075)
    # (1.5 (ln .9 + ln .7) + .75 (ln .7 + ln .2 + ln .8 + ln .9)) / -6
    expected = -(1.5 * np.log(0.63) + 0.75 * np.log(0.7 * 0.2 * 0.8 * 0.9)) / 6
    assert log_loss(P, RELEVANT) == pytest.approx(expected)


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
    path = tmp_path / "pairs.parquet"
    columns = {"Query": ["no"], "query": ["fig"], "TEXT": ["no"], "text": ["a tree"], "relevant": [1]}
    pq.write_table(pa.table(columns), path)
    assert (read_pairs(path).left, read_pairs(path).right) == (["fig"], ["a tree"])
    pq.write_table(pa.table({name: columns[name] for name in ("Query", "text", "relevant")}), path)
    with pytest.raises(CropsError, match="need the columns query, text, relevant"):
        read_pairs(path)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("pairs.csv", "query,text,relevant\na,b,1\na,\u200b,0\n", "pair 2: no text in column 'text'"),
    ("pairs.csv", "query,text\na,b\n", "need the columns query, text, relevant"),
    ("pairs.csv", "query,text,relevant\n", "no pairs"),
    ("pairs.csv", "query,text,relevant\na,b,maybe\n", "pair 1: relevant is 'maybe'"),
    ("pairs.xlsx", "", "ends in"),
    ("none.csv", None, "cannot read the pairs"),
    ("truth/grades.parquet", None, "outside the evaluated world"),
])  # fmt: skip
def test_bad_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(CropsError, match=message):
        read_pairs(tmp_path / name)


def test_queries_are_held_out_whole_and_about_half_of_them():
    queries = [f"query {number // 2}" for number in range(1000)]
    held = held_out(Pairs(queries, queries, np.ones(1000, np.bool_)))
    assert (held[::2] == held[1::2]).all()
    assert 0.4 < held.mean() < 0.6


@pytest.fixture
def mined(tmp_path):
    """Fig: item 1 clicked twice, 2 once, 3 and 4 only dropped; cat: item 5 clicked twice."""
    queries = [{"query_id": query_id(q), "query": q, "searches": 9, "users": 9} for q in ("fig", "cat")]
    pairs = [("fig", 1, 8), ("fig", 2, 8), ("fig", 3, 1), ("fig", 4, 1), ("cat", 5, 8), ("cat", 4, 5)]
    samples = [
        {"query_id": query_id(q), "item_id": i, "label": 1, "sources": s, "weight": 1.0} for q, i, s in pairs
    ]
    clicks = [("fig", 1, 1), ("fig", 1, 2), ("fig", 2, 1), ("cat", 5, 3), ("cat", 5, 4)]
    known = {"source": int(Source.CLICKED), "day": "2024-05-01"}
    evidence = [known | {"query_id": query_id(q), "item_id": i, "search_id": s} for q, i, s in clicks]
    items = [{"item_id": item, "ocr_cover": f"item {item}"} for item in range(1, 6)]
    for table, rows in ((QUERIES, queries), (ITEMS, items), (SAMPLES, samples), (EVIDENCE, evidence)):
        full = [dict.fromkeys(table.names()) | row for row in rows]
        pq.write_table(pa.Table.from_pylist(full, schema=table.arrow()), tmp_path / f"{table.name}.parquet")
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
