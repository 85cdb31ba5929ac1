"""The methods of the tables on a small mined folder: what each sees, and what it leaves alone."""

import dataclasses
import json
import runpy
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from by_hand import stored
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.labels import Source
from crops.outputs import read_manifest
from crops.training import methods
from crops.training.methods import METHODS, find_method, fit_method, tune_method, validate

QUERIES, ITEMS = 30, 60


@pytest.fixture
def mined(write_mined):
    """30 queries of 6 topics; each has a click, a skip, and of every other source one document."""
    sources = [Source.CLICKED, Source.EXPOSED, Source.UNEXPOSED, Source.REFORMULATION, Source.FEED]
    rows = [
        (query, 1 + (query + 6 * place) % ITEMS, source)
        for query in range(QUERIES)
        for place, source in enumerate(sources)
    ]
    items = {1 + i: f"d{i % 6}_{i // 6 % 4} d{i % 6}_{i // 24 % 4}" for i in range(ITEMS)}
    queries = {i: (f"q{i % 6}_{i // 6 % 4} q{i % 6}_{i // 12 % 4}", 1) for i in range(QUERIES)}
    folder = write_mined(rows, items, queries)
    (folder / "report.json").write_text(json.dumps({"days": ["2026-01-05", "2026-01-06"]}))
    return folder


@pytest.fixture
def config(random_encoder):
    return TrainingConfig(
        init=str(random_encoder), batch_queries=8, steps=12, learning_rate=0.02, temperature=0.05
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_sees_the_same_queries_and_documents(mined, config, tmp_path, name):
    facts = fit_method(name, mined, tmp_path / "model", config, seed=0)
    assert (facts["steps"], facts["queries_seen"]) == (12, 96)
    assert facts["documents_per_step"] == pytest.approx(facts["budget"], rel=0.1)
    assert facts["documents_seen"] == pytest.approx(12 * facts["documents_per_step"])
    assert np.isfinite(facts["loss"])
    assert {"train_seconds", "cpu_seconds"} <= facts.keys()
    assert read_manifest(tmp_path / "model", "train")["method"] == name
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").encode_query("q0_0").shape == (16,)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".model")] == []


def test_documents_of_an_llm_do_not_raise_the_budget(write_mined, config, tmp_path):
    """What FS-LR may see is what CroPS may see, with P3 and without."""
    rows = [(query, -1 - query, Source.KNOWLEDGE) for query in range(QUERIES)]
    rows += [(query, 1 + query % ITEMS, Source.CLICKED) for query in range(QUERIES)]
    items = {item: f"d{abs(item) % 6}_0" for _, item, _ in rows}
    written = write_mined(rows, items, {i: (f"q{i % 6}_0", 1) for i in range(QUERIES)})
    (written / "report.json").write_text(json.dumps({"days": ["2026-01-06"]}))
    short = config.model_copy(update={"steps": 1})
    budgets = [
        fit_method(name, written, tmp_path / name, short, seed=0)["budget"] for name in ("fs_lr", "crops")
    ]
    assert budgets == [8, 8]  # a click of each of the batch's 8 queries


def test_the_baselines_know_clicks_alone(mined, config, tmp_path, monkeypatch):
    seen = []
    learned = {"seconds": {"train": 0.0}}
    monkeypatch.setattr(methods, "train", lambda data, *a, **k: seen.append(data) or learned)
    for name in ("dpr", "fs_lr", "plus_p1", "p1_at_4"):
        fit_method(name, mined, tmp_path / name, config, seed=0, documents=64)
    found = []
    for number, data in enumerate(seen):
        groups = stored(data, tmp_path / str(number)).read(np.array([0]))
        found.append(groups.label)
    assert [sorted(set(labels.tolist())) for labels in found] == [[4], [2, 3, 4], [2, 3, 4, 5], [2, 3, 4]]
    assert len(found[0]) == QUERIES


def test_adore_leaves_documents_bit_identical_and_moves_the_query_tower(mined, config, tmp_path, monkeypatch):
    monkeypatch.setattr(methods.shutil, "rmtree", lambda *a, **k: None)
    facts = fit_method("adore", mined, tmp_path / "model", config, seed=0, point={"query_share": 0.5})
    star = SentenceTransformer(str(tmp_path / ".model.star"), device="cpu")
    adore = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    texts = [f"d{topic}_{n}" for topic in range(6) for n in range(4)]
    np.testing.assert_array_equal(adore.encode_document(texts), star.encode_document(texts))
    assert not np.allclose(adore.encode_query(["q0_0 q0_1"]), star.encode_query(["q0_0 q0_1"]))
    assert facts["star"]["steps"] == 6
    assert facts["refreshes"] == 2


def test_the_same_seed_gives_the_same_model(mined, config, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        short = config.model_copy(update={"steps": 4})
        fit_method("trisampler", mined, tmp_path / name, short, seed=seed, documents=40)
    weights = {
        name: SentenceTransformer(str(tmp_path / name), device="cpu")[0].embedding.weight.detach()
        for name in "abc"
    }
    assert torch.equal(weights["a"], weights["b"])
    assert not torch.equal(weights["a"], weights["c"])


def test_items_of_a_later_day_are_no_negatives(mined, config, tmp_path):
    def draw():
        return fit_method("nce", mined, tmp_path / "model", config, seed=0, documents=100_000)

    # A catalogue smaller than the budget gives what it has: 8 clicks, and for each 59 others as noise.
    assert draw()["documents_per_step"] == 8 * ITEMS
    table = pq.read_table(mined / "items.parquet")
    late = int(datetime(2026, 1, 7, tzinfo=UTC).timestamp()) * 1_000_000
    uploaded = [late - 1 if i <= 10 else late for i in table["item_id"].to_pylist()]
    place = table.column_names.index("uploaded_at")
    pq.write_table(
        table.set_column(place, table.schema.field("uploaded_at"), [uploaded]), mined / "items.parquet"
    )
    assert draw()["documents_per_step"] < 8 * 12


@pytest.mark.parametrize(("name", "changes", "options", "message"), [
    ("dprr", {}, {}, r"unknown method 'dprr'; known: adore, ance, dpr, .*'dpr'"),
    ("dpr", {}, {"point": {"negative": 1}}, r"unknown setting 'negative' of a method; .*'negatives'"),
    ("dpr", {"init": None, "encoder": "two_tower"}, {}, "dpr: BM25 reads texts and two_tower ids"),
    ("fs_lr", {"train_documents": False}, {}, "queries share the documents' tower; set towers = separate"),
])  # fmt: skip
def test_what_a_method_cannot_do_is_named(mined, config, tmp_path, name, changes, options, message):
    with pytest.raises(CropsError, match=message):
        fit_method(name, mined, tmp_path / "model", config.model_copy(update=changes), seed=0, **options)


def test_every_method_has_as_many_points_to_try_and_each_is_valid():
    assert {len(method.grid) for method in METHODS.values()} == {6}
    for method in METHODS.values():
        assert all(method.settings(point) for point in method.grid)


def test_tuning_scores_every_point_on_the_held_out_queries(mined, config, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "dpr", dataclasses.replace(find_method("dpr"), grid=METHODS["dpr"].grid[:2]))
    found = tune_method("dpr", mined, tmp_path / "tuned", config, seed=0)
    assert [one["point"] for one in found["points"]] == list(METHODS["dpr"].grid)
    assert all(0 <= one["metrics"]["score"] <= 1 for one in found["points"])
    assert json.loads((tmp_path / "tuned" / "dpr.json").read_text()) == found
    lexical = tune_method("bm25", mined, tmp_path / "tuned", config, seed=0)
    assert len(lexical["points"]) == 12
    assert lexical["points"][0]["point"].keys() == {"k1", "b"}


def test_each_fold_is_judged_by_a_model_that_did_not_see_it(mined, config, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "dpr", dataclasses.replace(find_method("dpr"), grid=METHODS["dpr"].grid[:2]))
    trained, judged = [], []

    def fit(name, samples, out, **options):
        facts = fit_method(name, samples, out, **options)
        trained.append((options["held_out"], options["documents"], facts["budget"], facts["groups"]))
        return facts

    def look(retriever, sets):
        judged.append(sets.queries)
        return validate(retriever, sets)

    monkeypatch.setattr(methods, "fit_method", fit)
    monkeypatch.setattr(methods, "validate", look)
    for fold in range(3):
        tune_method("dpr", mined, tmp_path / "tuned", config, seed=0, fold=fold)
    assert [fold for fold, *_ in trained] == [0, 0, 1, 1, 2, 2]
    assert [groups for *_, groups in trained] == [QUERIES - 3] * 6
    # The budget of documents is the first point's, for all.
    assert [documents for _, documents, *_ in trained[:2]] == [None, trained[0][2]]
    texts = {row["query_id"]: row["query"] for row in pq.read_table(mined / "queries.parquet").to_pylist()}
    assert judged[::2] == [[texts[fold + 10 * n] for n in range(3)] for fold in range(3)]


def test_a_baseline_of_ones_own_is_one_file_and_trains(mined, config, tmp_path):
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "extending" / "baseline.py"))
    facts = fit_method("middle_ranks", mined, tmp_path / "model", config, seed=0)
    METHODS.pop("middle_ranks")
    assert facts["refreshes"] == 1
    assert facts["documents_per_step"] == pytest.approx(facts["budget"], rel=0.1)
