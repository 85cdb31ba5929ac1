"""Optimisers, precision, trackers, evaluation during the training, and steps that must not be applied."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from by_hand import with_column
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.training import Evaluation, read_log, train, trainer
from crops.training.model import GroupLoss
from crops.training.runs import last_checkpoint, work_folder


@pytest.fixture
def config(random_encoder):
    def make(**changes):
        settings = {"init": str(random_encoder), "batch_queries": 12, "steps": 10, "learning_rate": 0.02}
        return TrainingConfig(**{**settings, **changes})

    return make


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_the_optimiser_is_fused_and_spares_tau(toy, config, tmp_path, monkeypatch, name, kind):
    made = []
    real = trainer._optimizer
    monkeypatch.setattr(trainer, "_optimizer", lambda *args: made.append(real(*args)) or made[-1])
    train(toy, tmp_path / "model", config(steps=1, optimizer=name, weight_decay=0.1), seed=0)
    assert type(made[0]) is kind
    groups = [(group["weight_decay"], group["fused"]) for group in made[0].param_groups]
    assert groups == [(0.1, True), (0.0, True)]


def test_the_learning_rate_warms_up_and_falls(toy, config, tmp_path):
    """Ten steps, two of warm-up: 0, 1/2, 1, 7/8, ... of the peak; the log has the rate of the next step."""
    train(toy, tmp_path / "model", config(warmup=0.2), seed=0)
    lines = (tmp_path / "model" / "training_log.jsonl").read_text().splitlines()
    rates = [json.loads(line)["learning_rate"] for line in lines]
    np.testing.assert_allclose(rates, 0.02 * np.array([4, 8, 7, 6, 5, 4, 3, 2, 1, 0]) / 8)


def test_bf16_encodes_in_bf16_and_keeps_single_weights(toy, tiny_transformer, tmp_path, monkeypatch):
    seen = []
    real = GroupLoss.forward

    def forward(self, **inputs):
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return real(self, **inputs)

    monkeypatch.setattr(GroupLoss, "forward", forward)
    runs = {}
    for name in (False, True):
        config = TrainingConfig(encoder=str(tiny_transformer), batch_queries=6, steps=3, bf16=name)
        runs[name] = train(toy, tmp_path / str(name), config, seed=0)["loss"]
    assert seen == [None] * 3 + [torch.bfloat16] * 3
    assert runs[True] == pytest.approx(runs[False], rel=0.03)
    saved = SentenceTransformer(str(tmp_path / "True"), device="cpu")
    assert {p.dtype for p in saved.parameters()} == {torch.float32}


def test_compile_is_for_transformers(toy, config, tiny_transformer, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: compiled.append((type(self).__name__, options))
    )
    settings = TrainingConfig(encoder=str(tiny_transformer), batch_queries=6, steps=1, compile=True)
    train(toy, tmp_path / "model", settings, seed=0)
    assert compiled == [("BertModel", {"dynamic": True})]
    with pytest.raises(CropsError, match="compile: this encoder has no transformer to compile"):
        train(toy, tmp_path / "static", config(compile=True), seed=0)


def test_a_tracker_gets_loss_temperature_and_learning_rate(toy, config, tmp_path, monkeypatch):
    told = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            told.append((args.run_name, state.global_step, logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    train(toy, tmp_path / "model", config(steps=3, report_to=("tensorboard",)), seed=0)
    log = read_log(tmp_path / "model")
    steps = [entry for entry in told if "loss" in entry[2]]
    assert [(name, step) for name, step, _ in steps] == [("model", 1), ("model", 2), ("model", 3)]
    np.testing.assert_allclose([logs["loss"] for *_, logs in steps], log.loss, rtol=1e-6)
    np.testing.assert_allclose([logs["temperature"] for *_, logs in steps], log.temperature)
    with pytest.raises(CropsError, match="report_to = abacus: .*abacus is not supported"):
        train(toy, tmp_path / "other", config(report_to=("abacus",)), seed=0)


def scripted(values, seen=None):
    """An evaluation that answers with the given values in turn and keeps what it saw."""
    answers = iter(values)

    def metrics(encoder):
        assert not encoder.training
        if seen is not None:
            seen.append(encoder.encode(["q0_0 never_seen", "d1_1"]))
        return {"recall": next(answers), "other": 0.0}

    return Evaluation(metrics, "recall")


def test_the_best_weights_are_kept_and_the_training_stops(toy, config, tmp_path):
    """Best at the second evaluation, then two without a new best: stop after the fourth, 8 of 10 steps."""
    seen = []
    facts = train(
        toy,
        tmp_path / "model",
        config(eval_steps=2, patience=2),
        seed=0,
        evaluation=scripted([0.1, 0.5, 0.4, 0.5], seen),
    )
    assert len(read_log(tmp_path / "model").step) == 8
    kept = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(["q0_0 never_seen", "d1_1"])
    np.testing.assert_array_equal(kept, seen[1])
    assert (kept != seen[3]).any()
    lines = (tmp_path / "model" / "evaluations.jsonl").read_text().splitlines()
    found = [(line["step"], line["eval_recall"]) for line in map(json.loads, lines)]
    assert found == [(2, 0.1), (4, 0.5), (6, 0.4), (8, 0.5)]
    log = read_log(tmp_path / "model")
    assert facts["temperature"] == pytest.approx(log.temperature[4], rel=1e-6)


def test_a_run_with_evaluations_resumes_with_its_patience(toy, config, tmp_path, monkeypatch):
    settings = config(eval_steps=2, patience=2)
    real = trainer._GroupTrainer.compute_loss

    def killed(self, *args, **kwargs):
        if self.state.global_step == 7:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._GroupTrainer, "compute_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            train(toy, tmp_path / "a", settings, seed=0, evaluation=scripted([0.1, 0.5, 0.4]))
    assert last_checkpoint(work_folder(tmp_path / "a")).name == "checkpoint-6"
    train(toy, tmp_path / "a", settings, seed=0, evaluation=scripted([0.3]))
    train(toy, tmp_path / "b", settings, seed=0, evaluation=scripted([0.1, 0.5, 0.4, 0.3]))
    for name in ("training_log.jsonl", "evaluations.jsonl"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    one, other = (SentenceTransformer(str(tmp_path / name), device="cpu") for name in "ab")
    texts = toy.docs["text"].to_pylist()
    np.testing.assert_array_equal(one.encode(texts), other.encode(texts))


def test_metrics_that_are_unknown_or_have_no_value_are_named(toy, config, tmp_path):
    unknown = Evaluation(lambda encoder: {"recall": 1.0, "ndcg": 1.0}, "mrr")
    for evaluation, message in (
        (scripted([float("nan")]), "no query of the evaluation has a value of 'recall'"),
        (unknown, "no metric 'mrr' to stop by; known: recall, ndcg"),
    ):
        with pytest.raises(CropsError, match=message):
            train(toy, tmp_path / "model", config(eval_steps=1), seed=0, evaluation=evaluation)


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), r"step 3: .*NaN.*The step was not applied"), (0.0, r"step 3: .*length 0.*not applied")],
)
def test_broken_embeddings_stop_the_run(toy, config, tmp_path, monkeypatch, value, message):
    calls, kept = [], []
    real = GroupLoss.forward

    def forward(self, **inputs):
        calls.append(None)
        if len(calls) == 3:
            self.encoder[0].embedding.weight.data[:] = value
        kept.append(self.log_temperature.item())
        return real(self, **inputs)

    monkeypatch.setattr(GroupLoss, "forward", forward)
    with pytest.raises(CropsError, match=message):
        train(toy, tmp_path / "model", config(), seed=0)
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("error", "kind", "message"), [
    (MemoryError(), CropsError, "step 1: the batch does not fit in memory; set encode_chunk"),
    (torch.OutOfMemoryError("CUDA out of memory."), CropsError, "step 1: .* set encode_chunk"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), CropsError, "step 1: .* set encode_chunk"),
    (RuntimeError("shapes differ"), RuntimeError, "shapes differ"),
])  # fmt: skip
def test_a_batch_that_does_not_fit_suggests_chunks(toy, config, tmp_path, monkeypatch, error, kind, message):
    def forward(self, **inputs):
        raise error

    monkeypatch.setattr(GroupLoss, "forward", forward)
    with pytest.raises(kind, match=message):
        train(toy, tmp_path / "model", config(), seed=0)


def test_groups_of_one_label_and_bare_queries_are_counted_aloud(toy, config, tmp_path, capsys):
    """One label only: the group is contrasted with the others' documents, and trains."""
    data = with_column(toy, "label", [4] * 4 + [0] * 4)
    bare = pa.Table.from_pylist([{"query_id": 99, "query": "q0_0", "searches": 1.0}], toy.queries.schema)
    data = replace(data, queries=pa.concat_tables([toy.queries, bare]))
    facts = train(data, tmp_path / "model", config(steps=2), seed=0)
    said = " ".join(capsys.readouterr().err.split())
    assert "1 groups have one label only: other queries' documents are their only contrast" in said
    assert "1 groups have no anchor and are left out" in said
    assert "1 queries have no document and are left out" in said
    assert (facts["groups"], facts["dropped_groups"]) == (17, 1)


@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_prompts_and_towers_train_on_the_same_path(toy, tiny_transformer, tmp_path, towers):
    config = TrainingConfig(
        encoder=str(tiny_transformer),
        batch_queries=6,
        steps=4,
        learning_rate=1e-2,
        towers=towers,
        query_prompt="q0_0 ",
    )
    train(toy, tmp_path / "model", config, seed=0)
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    query, document = model.encode_query("q1_1"), model.encode_document("q1_1")
    assert np.abs(query - document).max() > 1e-3
    log = read_log(tmp_path / "model")
    assert np.isfinite(log.loss).all()


def test_towers_of_tokens_are_narrowed_each_to_its_own(toy, config, random_encoder, tmp_path):
    """Words that only documents hold stay as they were in the query tower, and the reverse."""
    static = config(towers="separate", steps=4, eval_steps=2)
    train(toy, tmp_path / "model", static, seed=0, evaluation=scripted([0.1, 0.2]))
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    before = SentenceTransformer(str(random_encoder), device="cpu")
    np.testing.assert_array_equal(model.encode_query("d1_1"), before.encode("d1_1"))
    np.testing.assert_array_equal(model.encode_document("q1_1"), before.encode("q1_1"))
    assert np.abs(model.encode_query("q1_1") - before.encode("q1_1")).max() > 0
    assert np.abs(model.encode_document("d1_1") - before.encode("d1_1")).max() > 0
