"""A run that is killed and started again ends as if it had never stopped."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from by_hand import with_column
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.training import fit, train, trainer
from crops.training.runs import last_checkpoint, work_folder

SCRIPT = """
import pickle, sys
from pathlib import Path
from crops.training import train
data, config = pickle.loads(Path(sys.argv[1]).read_bytes())
train(data, Path(sys.argv[2]), config, seed=0)
"""


@pytest.fixture
def config(tiny_dropout):
    """A transformer with dropout: an exact continuation needs the random state too."""
    return TrainingConfig(
        encoder=str(tiny_dropout), batch_queries=5, steps=12, learning_rate=1e-3, checkpoint_steps=4
    )


def result(folder):
    """All weights, the log, and the temperature."""
    model = SentenceTransformer(str(folder), device="cpu")
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    manifest = json.loads((folder / "manifest.json").read_text())
    return weights, (folder / "training_log.jsonl").read_text(), manifest["temperature"]


def assert_same(one, other):
    assert one[0].keys() == other[0].keys()
    for name, value in one[0].items():
        np.testing.assert_array_equal(value, other[0][name], err_msg=name)
    assert one[1:] == other[1:]


class Killed(Exception):
    pass


def kill_at(monkeypatch, step):
    real = trainer._GroupTrainer.compute_loss

    def killed(self, *args, **kwargs):
        if self.state.global_step == step:
            raise Killed
        return real(self, *args, **kwargs)

    monkeypatch.setattr(trainer._GroupTrainer, "compute_loss", killed)


@pytest.mark.parametrize("encoder", ["transformer", "static"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    toy, config, random_encoder, tmp_path, monkeypatch, encoder
):
    if encoder == "static":
        config = config.model_copy(update={"init": str(random_encoder)})
    train(toy, tmp_path / "whole", config, seed=0)
    with monkeypatch.context() as patch:
        kill_at(patch, 10)
        with pytest.raises(Killed):
            train(toy, tmp_path / "model", config, seed=0)
    assert not (tmp_path / "model").exists()
    work = work_folder(tmp_path / "model")
    assert last_checkpoint(work).name == "checkpoint-8"
    assert len((work / "training_log.jsonl").read_text().splitlines()) == 10
    train(toy, tmp_path / "model", config, seed=0)
    assert_same(result(tmp_path / "model"), result(tmp_path / "whole"))
    assert not work.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "whole"]


@pytest.mark.verify
def test_a_process_killed_in_mid_run_goes_on(toy, config, tmp_path):
    """kill -9 of a real process, at no particular moment after its first checkpoint."""
    config = config.model_copy(update={"steps": 120, "checkpoint_steps": 20})
    job, out, whole = tmp_path / "job", tmp_path / "model", tmp_path / "whole"
    job.write_bytes(pickle.dumps((toy, config)))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(job), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    deadline = time.monotonic() + 120
    while last_checkpoint(work_folder(out)) is None:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    train(toy, out, config, seed=0)
    train(toy, whole, config, seed=0)
    assert_same(result(out), result(whole))


@pytest.fixture
def interrupted(toy, config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, 6)
        with pytest.raises(Killed):
            train(toy, tmp_path / "model", config, seed=0)
    return tmp_path / "model"


def test_a_checkpoint_of_another_configuration_seed_or_training_set_is_refused(toy, config, interrupted):
    other = config.model_copy(update={"learning_rate": 0.5, "beta": 0.0})
    changes = (
        r"\(beta: 0.5 -> 0.0, learning_rate: 0.001 -> 0.5\); repeat its settings to resume, pass --fresh"
    )
    for data, settings, seed, message in (
        (toy, other, 0, f"checkpoint-4 was made with another configuration {changes}"),
        (toy, config, 1, r"\(seed: 0 -> 1\)"),
        (with_column(toy, "weight", [2.0]), config, 0, "checkpoint-4 was made from other training data"),
    ):
        with pytest.raises(CropsError, match=message):
            train(data, interrupted, settings, seed=seed)
    assert last_checkpoint(work_folder(interrupted)).name == "checkpoint-4"
    train(toy, interrupted, other, seed=0, fresh=True)
    assert not work_folder(interrupted).exists()


def test_what_does_not_decide_the_result_may_change_and_half_a_checkpoint_is_not_used(
    toy, config, interrupted, tmp_path
):
    half = work_folder(interrupted) / "checkpoint-6"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    train(toy, interrupted, config.model_copy(update={"checkpoint_steps": 3}), seed=0)
    train(toy, tmp_path / "whole", config, seed=0)
    assert_same(result(interrupted), result(tmp_path / "whole"))


def test_a_run_without_a_checkpoint_leaves_nothing_behind(toy, config, tmp_path, monkeypatch):
    kill_at(monkeypatch, 2)
    with pytest.raises(Killed):
        train(toy, tmp_path / "model", config, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_run_killed_while_its_model_is_saved_goes_on(toy, config, tmp_path, monkeypatch):
    """All twelve steps are done and the last checkpoint is written: nothing is left but to save."""

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(fit, "save_encoder", killed)
        with pytest.raises(Killed):
            train(toy, tmp_path / "model", config, seed=0)
    assert last_checkpoint(work_folder(tmp_path / "model")).name == "checkpoint-12"
    train(toy, tmp_path / "model", config, seed=0)
    train(toy, tmp_path / "whole", config, seed=0)
    assert_same(result(tmp_path / "model"), result(tmp_path / "whole"))
