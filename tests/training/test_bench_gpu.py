"""The GPU benchmark runs on tiny shapes anywhere and measures only on a GPU; chunks follow its memory."""

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from crops.losses.kernel import CHUNK_BYTES, chunk_bytes
from crops.training.pool import CPU_TOKENS, tokens_per_pass


@pytest.fixture(scope="module")
def bench():
    folder = str(Path(__file__).parents[2] / "benchmarks" / "gpu")
    sys.path.insert(0, folder)
    import bench_gpu

    yield bench_gpu
    sys.path.remove(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_measures_nothing(bench, capsys):
    with pytest.raises(SystemExit, match="no CUDA device"):
        bench.main([])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("model", ["static", "qwen2-0.5b"])
def test_every_part_runs_on_tiny_shapes(bench, model, capsys):
    bench.main(["--tiny", "--models", model])
    out = capsys.readouterr().out
    assert "NO MEASUREMENT" in out
    rows = [line for line in out.splitlines() if line.startswith("| crops")]
    assert len(rows) == (3 if model == "static" else 6)  # steps, memory, waits; each with encode_chunk too


def test_waits_are_counted_by_the_line_that_waits(bench):
    waits = bench.Waits()
    state = SimpleNamespace(global_step=bench.WARM_UP + 1)
    with waits.counting():
        for _ in range(2):
            warnings.warn_explicit("called a synchronizing CUDA operation", UserWarning, "a/b/c/d.py", 7)
        warnings.warn_explicit("another", UserWarning, "a/b/c/d.py", 8)
    waits.on_step_begin(None, state, None)
    waits.on_step_end(None, state, None)
    assert waits.places == {"b/c/d.py:7": 2}
    assert waits.steps == 1


def test_chunks_follow_the_memory_of_the_device(monkeypatch):
    """80 GiB: 1.25 GiB of scores and 40,960 tokens; a CPU has its measured sizes."""
    properties = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert chunk_bytes(torch.device("cuda")) == 5 * 2**28
    assert tokens_per_pass(torch.device("cuda")) == 40_960
    assert chunk_bytes(torch.device("cpu")) == CHUNK_BYTES
    assert tokens_per_pass(torch.device("cpu")) == CPU_TOKENS
