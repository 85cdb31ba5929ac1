"""`crops train` as a user types it."""

import importlib
import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import crops
from crops.cli.app import app
from crops.errors import CropsError
from crops.report import render_page
from crops.report.training import training_page
from crops.training import TrainingLog, settles

train_command = importlib.import_module("crops.cli.models")  # the package has a function of that name


def log_of(temperatures):
    values = np.array(temperatures, dtype=float)
    return TrainingLog(np.arange(len(values)) + 1, np.ones(len(values)), values)


def test_where_the_temperature_settles():
    """0.05 falls by 0.001 a step to 0.03 at step 21; within 1 % of it, 0.0303, from step 21 on."""
    falling = [0.05 - 0.001 * i for i in range(20)]
    value, step = settles(log_of(falling + [0.03] * 180))
    assert (value, step) == (pytest.approx(0.03), 21)
    assert settles(log_of([0.04] * 50)) == (pytest.approx(0.04), 1)
    value, step = settles(log_of([0.05 - 0.0002 * i for i in range(100)]))
    assert step is None
    assert value == pytest.approx(np.mean([0.05 - 0.0002 * i for i in range(90, 100)]))


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """Twelve queries about three things, from real words, as `crops mine` writes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from crops.labels import Source
    from crops.schema import ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS

    folder = tmp_path_factory.mktemp("train") / "mined"
    folder.mkdir()
    words = ["water a ficus", "tune a guitar", "sourdough crust"]
    rows = {
        SAMPLES: [
            {"query_id": query, "item_id": item + 1, "label": 0, "sources": int(bit), "weight": 1.0}
            for query in range(12)
            for item, bit in ((query % 9, Source.CLICKED), ((query + 1) % 9, Source.EXPOSED))
        ],
        QUERIES: [
            {"query_id": query, "query": f"{words[query % 3]} {query}", "searches": 1 + query, "users": 1}
            for query in range(12)
        ],
        ITEMS: [{"item_id": item + 1, "ocr_cover": f"how to {words[item % 3]} well"} for item in range(9)],
        SYNTHETIC_ITEMS: [],
    }
    for table, records in rows.items():
        filled = [{name: record.get(name) for name in table.names()} for record in records]
        pq.write_table(pa.Table.from_pylist(filled, table.arrow()), folder / f"{table.name}.parquet")
    return folder


def test_train_writes_a_model_with_its_curves(mined, tmp_path):
    runner = CliRunner()
    out = tmp_path / "model"
    result = runner.invoke(app, ["train", str(mined), str(out), "--steps", "6", "--batch-queries", "8"])
    assert result.exit_code == 0, result.output
    page = (out / "report.html").read_text()
    assert "Temperature" in page
    assert page.index("model: the loss ") < page.index("The temperature goes from 0.0500 to 0.0")
    assert "There was no validation" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_init_goes_on_from_a_model_with_its_preset_and_temperature(mined, tmp_path):
    first = crops.train(mined, tmp_path / "first", steps=20, learning_rate=0.05, batch_queries=8)
    crops.train(mined, tmp_path / "second", init=tmp_path / "first", steps=2, batch_queries=8)
    log = (tmp_path / "second" / "training_log.jsonl").read_text().splitlines()
    assert json.loads(log[0])["temperature"] == pytest.approx(first["temperature"], rel=1e-5)
    resolved = (tmp_path / "second" / "config.toml").read_text()
    assert 'encoder = "static"' in resolved
    assert "learning_rate = 0.002" in resolved
    with pytest.raises(CropsError, match="nowhere is not a folder; name the model to continue from"):
        crops.train(mined, tmp_path / "third", init=tmp_path / "nowhere")


def test_several_runs_in_one_figure(mined, tmp_path):
    for name in ("a", "b"):
        crops.train(mined, tmp_path / name, steps=3, batch_queries=8)
    page = training_page([tmp_path / "a", tmp_path / "b"])
    assert [line.name for line in page.sections[0].figures[0].series] == ["a", "b"]
    assert render_page(page).count("<figure>") == 2
    with pytest.raises(CropsError, match=r"holds no training_log.jsonl"):
        training_page([mined])


def test_evaluation_during_the_training_reads_the_days_catalogue(mined, tmp_path, monkeypatch):
    """CT and QR come from `day_testsets`; the day is nine items and two queries with a click."""
    import pyarrow as pa

    from crops.evaluation import TestSets

    pairs = pa.table({"query_id": [0, 1], "search_id": [1, 2], "item_id": [1, 2]})
    queries = pa.table(
        {
            "query_id": [0, 1],
            "query": ["water a ficus", "tune a guitar"],
            "searches": [1, 1],
            "seen": pa.array([None, None], pa.bool_()),
        }
    )
    day = TestSets(
        ("2026-01-07",), 0, queries, pa.table({"item_id": list(range(1, 10))}), pairs, pairs, None, {}
    )
    asked = []
    monkeypatch.setattr(train_command, "day_testsets", lambda *args: asked.append(args[:4]) or day)
    settings = tmp_path / "run.toml"
    settings.write_text("[training]\neval_steps = 2\nsteps = 4\nbatch_queries = 8\n")
    crops.train(mined, tmp_path / "model", eval_logs=mined, eval_day="2026-01-07", config=settings)
    assert asked == [(mined, "2026-01-07", None, mined)]
    lines = (tmp_path / "model" / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
    # Nine items, k = 100: everything is found.
    assert json.loads(lines[0])["eval_recall@100/ct"] == 1.0
    page = (tmp_path / "model" / "report.html").read_text()
    assert "recall@100/ct on the validation day: 100.0 % at step 2, at best 100.0 % at step 2." in page


def test_a_recipe_refuses_sources_and_samples_that_are_not_its_own(mined, tmp_path, monkeypatch):
    from crops.config import RunConfig, with_recipe
    from crops.outputs import write_manifest

    samples = tmp_path / "samples"
    shutil.copytree(mined, samples)
    (samples / "report.json").write_text('{"pairs": 0, "days": []}')

    def mined_with(recipe):
        run = with_recipe(RunConfig(), recipe)
        write_manifest(samples, "mine", config=run.dump(), seconds={}, logs="logs")

    mined_with("paper")
    with pytest.raises(CropsError, match="--sources contradicts --recipe recommended, which learns"):
        crops.train(samples, tmp_path / "model", recipe="recommended", sources="search,p1")
    said = r"mined with engine.sources = .*'p3'\), --recipe recommended has .*'p2'\); mine with --recipe rec"
    with pytest.raises(CropsError, match=said):
        crops.train(samples, tmp_path / "model", recipe="recommended")
    mined_with("recommended")
    trained = {}
    monkeypatch.setattr(
        "crops.training.train", lambda data, out, settings, **_: trained.update(loss=settings.loss)
    )
    monkeypatch.setattr(train_command, "write_page", lambda *_: None)
    monkeypatch.setattr(train_command, "training_page", lambda *_: None)
    crops.train(samples, tmp_path / "model", recipe="recommended", sources="p2,search,p1")
    assert trained == {"loss": "softmax_ce_lower"}
