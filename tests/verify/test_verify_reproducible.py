"""Slow proofs, run by `make verify`."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.verify

SETTINGS = '[platform]\nsize = "tiny"\n[training]\nsteps = 20\nbatch_queries = 32\n'


def run(command: str, folder: Path, threads: int) -> dict[str, str]:
    """Run a command in a process of its own and return the hash of every file of data that it wrote."""
    folder.mkdir()
    (folder / "run.toml").write_text(SETTINGS)
    arguments = [sys.executable, "-c", "from crops.cli import main; main()", command]
    arguments += ["--out", "out"] if command == "demo" else ["out"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(
        [*arguments, "--config", "run.toml"], check=True, capture_output=True, cwd=folder, env=environment
    )
    files = sorted([*folder.rglob("*.parquet"), *folder.rglob("*.safetensors")])
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_world_does_not_depend_on_the_number_of_cores(tmp_path):
    one, two = (run("simulate", tmp_path / str(threads), threads) for threads in (1, 2))
    assert "out/deployed_model/model.safetensors" in one
    assert one == two


def test_same_seed_same_bytes_in_two_processes(tmp_path):
    first, second = (run("demo", tmp_path / name, threads=1) for name in ("a", "b"))
    assert len(first) > 15
    assert first == second
