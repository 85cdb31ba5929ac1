"""Two processes that gather their documents do what one does on the same batch."""

import multiprocessing
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import worker
from by_hand import training_data
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.training import read_log, train
from crops.training.model import Share


@pytest.fixture(scope="module")
def ragged():
    """Nine groups of 1 to 9 documents, labels 0 to 5, documents shared and left out by caps."""
    random = np.random.default_rng(1)
    sizes = np.arange(1, 10)
    words = [f"d{topic}_{n}" for topic in range(6) for n in range(4)]
    pairs = int(sizes.sum())
    label = random.integers(0, 6, pairs)
    label[np.cumsum(sizes) - 1] = 5
    doc = np.concatenate([random.choice(20, size, replace=False) for size in sizes])
    texts = [" ".join(random.choice(words, 1 + i % 4)) for i in range(20)]
    ends = np.cumsum(sizes)
    groups = [
        (f"q{i % 6}_{i % 4} q{i % 5}_0", [(doc[j], label[j], 0) for j in range(end - size, end)])
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    return training_data(groups, texts, ids=np.arange(20) + 100)


@pytest.fixture(scope="module")
def configs(random_encoder, tiny_transformer):
    base = {"batch_queries": 9, "docs_per_source": 2, "steps": 3, "learning_rate": 1e-2}
    static = TrainingConfig(init=str(random_encoder), **base)
    return [
        static,
        TrainingConfig(init=str(tiny_transformer), **base),
        TrainingConfig(init=str(tiny_transformer), encode_chunk=2, **base),
        *(static.model_copy(update={"loss": loss}) for loss in ("infonce_binary", "softmax_ce", "nce")),
    ]


@pytest.fixture(scope="module")
def two(ragged, configs, tmp_path_factory):
    """The folder that two processes wrote."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        multiprocessing.get_context("fork").Process(
            target=worker.run, args=(ragged, configs, out, {**shared, "RANK": rank, "LOCAL_RANK": rank})
        )
        for rank in "01"
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
    assert [process.exitcode for process in started] == [0, 0]
    return out


def test_loss_and_gradients_equal_those_of_one_process(ragged, configs, two):
    ranks = [torch.load(two / f"rank{rank}.pt") for rank in (0, 1)]
    for number, config in enumerate(configs):
        one = worker.gradients(ragged, config)
        parts = [rank[number] for rank in ranks]
        assert sum(part["anchors"] for part in parts) == one["anchors"]
        assert parts[0]["anchors"] != parts[1]["anchors"]
        assert sum(part["encoded"] for part in parts) == one["encoded"]
        for part in parts:
            torch.testing.assert_close(part["loss"], one["loss"], rtol=1e-10, atol=0)
            assert part["gradients"].keys() == one["gradients"].keys() >= {"log_temperature"}
            for name, gradient in one["gradients"].items():
                torch.testing.assert_close(part["gradients"][name], gradient, rtol=1e-8, atol=1e-12, msg=name)


def test_a_run_of_two_processes_equals_a_run_of_one(ragged, configs, two, tmp_path):
    train(ragged, tmp_path / "model", configs[0], seed=0)
    for column, other in zip(read_log(tmp_path / "model"), read_log(two / "model"), strict=True):
        np.testing.assert_allclose(column, other, rtol=1e-5)
    one, both = (SentenceTransformer(str(folder / "model"), device="cpu") for folder in (tmp_path, two))
    texts = ragged.docs["text"].to_pylist()
    np.testing.assert_allclose(one.encode(texts), both.encode(texts), atol=1e-4)
    assert sorted(Path(two).iterdir()) == [two / name for name in ("model", "rank0.pt", "rank1.pt")]


def test_queries_are_shared_out_whole_and_evenly():
    """Groups of 6, 5, 4, 3 documents for two processes: 6 + 4 and 5 + 3; equal ids stay together."""
    query_index = np.repeat(np.arange(4), [3, 6, 4, 5])
    first, second = (Share(rank, 2).of_queries(np.arange(4), query_index) for rank in (0, 1))
    assert first.tolist() == [False, True, True, False]
    assert second.tolist() == [True, False, False, True]
    same = Share(0, 2).of_queries(np.array([7, 8, 7, 9]), query_index)
    assert same[0] == same[2]
    with pytest.raises(CropsError, match="a batch of 1 queries for 2 processes"):
        Share(0, 2).of_queries(np.array([7, 7]), np.array([0, 1]))
