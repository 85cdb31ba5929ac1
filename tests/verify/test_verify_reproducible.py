"""Slow proofs, run by `make verify`."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.verify

SETTINGS = '[platform]\nsize = "tiny"\n[training]\nsteps = 20\nbatch_queries = 32\n'


def run_demo(folder: Path, threads: int) -> dict[str, str]:
    """Run the demo in a process of its own and return the hash of every table it wrote."""
    folder.mkdir()
    (folder / "run.toml").write_text(SETTINGS)
    command = [sys.executable, "-c", "from crops.cli import main; main()"]
    command += ["demo", "--out", str(folder / "out"), "--config", str(folder / "run.toml")]
    subprocess.run(
        command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
    )
    tables = sorted((folder / "out").rglob("*.parquet"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in tables}


def test_same_seed_same_bytes_in_two_processes(tmp_path):
    first, second = (run_demo(tmp_path / name, threads=1) for name in ("a", "b"))
    assert len(first) > 15
    assert first == second
