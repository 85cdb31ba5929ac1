"""The drop-in for sentence-transformers, and the code of docs/losses.md as it stands there."""

import copy
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import TrainerCallback

from crops.errors import CropsError
from crops.losses import GroupCollator, HInfoNCELoss, h_infonce

WORDS = "red blue green car boat plane dog cat fish fast slow big".split()
TEXTS = [f"{colour} {thing}" for colour in WORDS[:3] for thing in WORDS[3:9]]
SETTINGS = {"num_train_epochs": 4, "per_device_train_batch_size": 6, "learning_rate": 0.05,
            "logging_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True,
            "disable_tqdm": True, "seed": 0}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    vocabulary = {"[UNK]": 0} | {word: i + 1 for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")


def groups():
    """Two or three documents per query: ragged."""
    return [
        {
            "query": text,
            "documents": [f"fast {text}", f"slow {text.split()[1]}", "big"][: 2 + i % 2],
            "labels": [5, 3, 1][: 2 + i % 2],
        }
        for i, text in enumerate(TEXTS)
    ]


def doc_code(name):
    """The code block of docs/losses.md that defines `name`."""
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.S) if f"def {name}(" in code]
    space = {}
    exec(compile(block, "docs/losses.md", "exec"), space)
    return space[name]


def embed(model, texts):
    return torch.nn.functional.normalize(model.encode(texts, convert_to_tensor=True), dim=1)


def test_the_documented_trainer_lowers_the_loss_and_saves_a_plain_model(model, tmp_path):
    trainer = doc_code("fit")(model, groups(), str(tmp_path / "model"), **SETTINGS)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert trainer.loss.temperature != pytest.approx(0.05, rel=1e-3)
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    torch.testing.assert_close(embed(loaded, TEXTS), embed(model, TEXTS))


def test_the_documented_loop_lowers_the_loss():
    torch.manual_seed(0)
    encoder = torch.nn.Linear(8, 4)
    batch = torch.randn(4, 8), torch.randn(10, 8), torch.arange(10) % 4, torch.arange(10) % 3
    losses = list(doc_code("train")(encoder, [batch] * 30, lr=0.05))
    assert losses[-1] < 0.7 * losses[0]


def test_the_collator_keeps_groups_ragged_and_numbers_equal_texts(model):
    batch = GroupCollator(model.preprocess)(
        [
            {"query": "red", "documents": ["car", "boat"], "labels": [5, 0]},
            {"query": "blue", "documents": ["car"], "labels": [4]},
            {"query": "red", "documents": ["dog"], "labels": [1]},
        ]
    )
    index, grade, doc_id, query_id = batch["label"].T.tolist()
    assert (index, grade) == ([0, 0, 1, 2], [5, 0, 4, 1])
    assert doc_id[0] == doc_id[2] != doc_id[1]
    assert query_id[0] == query_id[3] != query_id[2]
    assert batch["query_input_ids"].tolist() == [1, 2, 1]
    assert batch["documents_input_ids"].tolist() == [4, 5, 4, 7]


def test_ragged_loss_equals_the_function_with_ids(model):
    rows = [
        {"query": "red car", "documents": ["car", "boat"], "labels": [5, 1]},
        {"query": "blue", "documents": ["car", "red"], "labels": [4, 2]},
        {"query": "red car", "documents": ["dog"], "labels": [3]},
    ]
    loss = HInfoNCELoss(model, temperature=0.2, label_weights={5: 2.0})
    batch = GroupCollator(model.preprocess)(rows)
    features, labels = SentenceTransformerTrainer.collect_features(None, batch)
    expected = h_infonce(
        embed(model, ["red car", "blue", "red car"]),
        embed(model, ["car", "boat", "car", "red", "dog"]),
        torch.tensor([0, 0, 1, 1, 2]),
        torch.tensor([5, 1, 4, 2, 3]),
        temperature=0.2,
        query_id=torch.tensor([1, 2, 1]),
        doc_id=torch.tensor([1, 2, 1, 3, 4]),
        label_weights={5: 2.0},
    )
    assert loss(features, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def padded(model, columns, labels):
    features = [model.preprocess(column) for column in columns]
    return features, torch.tensor(labels)


def test_padded_slots_are_no_documents(model):
    columns = [["red", "blue"], ["car", "boat"], ["dog", ""]]
    loss = HInfoNCELoss(model, temperature=0.2)(*padded(model, columns, [[5, 0], [4, -1]]))
    index, labels = torch.tensor([0, 0, 1]), torch.tensor([5, 0, 4])
    expected = h_infonce(
        embed(model, columns[0]), embed(model, ["car", "dog", "boat"]), index, labels, temperature=0.2
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    # pairs with one grade each
    loss = HInfoNCELoss(model, temperature=0.2)(*padded(model, columns[:2], [5, 4]))
    both = (embed(model, column) for column in columns[:2])
    expected = h_infonce(*both, torch.arange(2), torch.tensor([5, 4]), temperature=0.2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    told = HInfoNCELoss(model, min_anchor_label=2)
    settings = {"min_anchor_label": 2, "label_weights": None, "margin": None}
    assert told.get_config_dict() == {"temperature": pytest.approx(0.05), **settings}
    assert "2511.15443" in told.citation


def trainer_of(model, loss, folder, evaluator=None, **settings):
    """Checkpoints at steps 4, 8 and 12 of 12."""
    settings = SETTINGS | {"save_strategy": "steps", "save_steps": 4} | settings
    return SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(output_dir=str(folder), **settings),
        train_dataset=Dataset.from_list(groups()),
        evaluator=evaluator,
        loss=loss,
        data_collator=GroupCollator(model.preprocess),
    )


class TwoTemperatures(torch.nn.Module):
    """A loss of losses, with a parameter of its own beside."""

    def __init__(self, model):
        super().__init__()
        self.first, self.second = HInfoNCELoss(model, 0.05), HInfoNCELoss(model, 0.5)
        self.balance = torch.nn.Parameter(torch.tensor([0.2, 0.8]))

    def forward(self, features, labels):
        features = list(features)
        weights = self.balance.softmax(0)
        return weights[0] * self.first(features, labels) + weights[1] * self.second(features, labels)


class Killed(TrainerCallback):
    """Ends a training in the middle, two steps after its second checkpoint."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 10:
            raise KeyboardInterrupt


def learned(loss):
    return {name: value.tolist() for name, value in loss.named_parameters() if "model" not in name}


@pytest.mark.parametrize("make", [HInfoNCELoss, TwoTemperatures])
def test_a_resumed_run_has_the_temperature_of_an_uninterrupted_one(model, tmp_path, make):
    start = copy.deepcopy(model)
    whole = trainer_of(model, make(model), tmp_path / "whole")
    whole.train()
    first, again = copy.deepcopy(start), copy.deepcopy(start)
    killed = trainer_of(first, make(first), tmp_path / "run")
    killed.add_callback(Killed)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer_of(again, make(again), tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 12
    assert learned(whole.loss) != learned(make(start))
    assert learned(resumed.loss) == learned(whole.loss)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_the_best_checkpoint_comes_back_with_its_temperature(model, tmp_path):
    seen = []
    loss = HInfoNCELoss(model)

    class Best(BaseEvaluator):
        """The first checkpoint is the best."""

        def __call__(self, *args, **kwargs):
            seen.append(loss.temperature)
            return {"first": float(len(seen) == 1)}

    trainer_of(
        model,
        loss,
        tmp_path,
        evaluator=Best(),
        eval_strategy="steps",
        eval_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="eval_first",
        greater_is_better=True,
    ).train()
    assert loss.temperature == seen[0] != seen[2]


def test_a_checkpoint_without_the_temperature_is_refused_and_a_fixed_one_is_not_saved(model, tmp_path):
    trainer_of(model, HInfoNCELoss(model), tmp_path / "learned", max_steps=4).train()
    (tmp_path / "learned" / "checkpoint-4" / "loss.safetensors").unlink()
    with pytest.raises(CropsError, match="checkpoint-4 does not hold the loss's log_temperature"):
        trainer_of(model, HInfoNCELoss(model), tmp_path / "learned").train(resume_from_checkpoint=True)

    def fixed(temperature, folder, **settings):
        loss = HInfoNCELoss(model, temperature, learn_temperature=False)
        return trainer_of(model, loss, tmp_path / folder, **settings)

    with pytest.raises(ValueError, match="parameter group"):  # the optimiser's, which had one more
        fixed(0.1, "learned").train(resume_from_checkpoint=True)
    fixed(0.05, "fixed", max_steps=4).train()
    assert not (tmp_path / "fixed" / "checkpoint-4" / "loss.safetensors").exists()
    other = fixed(0.1, "fixed")  # a fixed temperature is a setting
    other.train(resume_from_checkpoint=True)
    assert other.loss.temperature == pytest.approx(0.1)


def test_a_step_with_nan_weights_is_refused_not_applied(model, tmp_path):
    with torch.no_grad():
        model[0].embedding.weight[1] = math.nan
    with pytest.raises(CropsError, match=r"query_emb row \d holds NaN"):
        doc_code("fit")(model, groups(), str(tmp_path), **SETTINGS)
    assert model[0].embedding.weight[2:].isfinite().all()


def test_a_temperature_driven_to_zero_is_refused(model):
    loss = HInfoNCELoss(model)
    with torch.no_grad():
        loss.log_temperature.fill_(-200)
    with pytest.raises(CropsError, match=r"temperature is 0|temperature is 1\.\d*e-"):
        loss(*padded(model, [["red", "blue"], ["car", "boat"]], [5, 4]))
    with pytest.raises(CropsError, match="give a positive number"):
        HInfoNCELoss(model, temperature=0.0)


@pytest.mark.parametrize(("message", "columns", "labels"), [
    ("one text column", [["red"]], [5]),
    ("no integer grades", [["red"], ["car"]], [0.5]),
    ("labels have shape \\[1, 2\\] for 1 queries and 1", [["red"], ["car"]], [[5, 4]]),
    ("a label is -2", [["red"], ["car"]], [-2]),
    ("query_emb row 1 has no document", [["red", "blue"], ["car", ""]], [[5], [-1]]),
])  # fmt: skip
def test_batches_that_do_not_fit_are_named(model, message, columns, labels):
    with pytest.raises(CropsError, match=message):
        HInfoNCELoss(model)(*padded(model, columns, labels))


@pytest.mark.parametrize(("message", "row"), [
    ("lacks documents, labels", {"query": "red"}),
    ("'red' has 2 documents and 1 labels", {"query": "red", "documents": ["car", "dog"], "labels": [1]}),
    ("'red' has 0 documents", {"query": "red", "documents": [], "labels": []}),
])  # fmt: skip
def test_groups_that_are_none_are_named(model, message, row):
    with pytest.raises(CropsError, match=message):
        GroupCollator(model.preprocess)([row])


def test_the_table_loads_no_torch_and_the_functions_no_sentence_transformers():
    code = (
        "import sys; from crops.losses import LOSSES; early = 'torch' in sys.modules; "
        "from crops.losses import h_infonce; sys.exit(early or 'sentence_transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
