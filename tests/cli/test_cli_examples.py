"""Each recipe of `examples/logs` runs whole: from raw files to an index that a server answers from."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from crops.cli.app import app
from crops.config import ServingConfig
from crops.labels import Source
from crops.logs.guess import write_guess
from crops.serving.app import make_app
from crops.serving.service import open_service

EXAMPLES = Path(__file__).parents[2] / "examples" / "logs"
RECIPES = sorted(path.parent.name for path in EXAMPLES.glob("*/run.sh"))
WHOLE = {"impressions", "ubi", "jdsearch"}
"""With a guessed map, without one, and without a later day to test on: once mined, all logs are alike."""
sys.path.append(str(EXAMPLES))
import make_logs  # noqa: E402


@pytest.fixture
def recipe(request, tmp_path, monkeypatch):
    for name in (request.param, "small.toml"):
        copy = shutil.copytree if (EXAMPLES / name).is_dir() else shutil.copy
        copy(EXAMPLES / name, tmp_path / name)
    source = tmp_path / request.param / "out" / "source"
    source.mkdir(parents=True)
    make_logs.KINDS[request.param](source)
    monkeypatch.chdir(tmp_path / request.param)
    return request.param


@pytest.mark.parametrize(("recipe", "whole"), [
    *((recipe, recipe in WHOLE) for recipe in RECIPES),
    *(pytest.param(recipe, True, marks=pytest.mark.verify) for recipe in RECIPES if recipe not in WHOLE),
], indirect=["recipe"])  # fmt: skip
def test_a_recipe_goes_from_raw_files_to_samples_and_a_served_index(recipe, whole):
    lines = Path("run.sh").read_text().splitlines()
    commands = [line.split()[1:] for line in lines if line.startswith("crops ")]
    assert f"python ../make_logs.py {recipe} out/source" in "\n".join(lines)
    assert len(commands) <= 6
    if "crops import --guess" in "\n".join(lines):
        write_guess(Path("out/source"), Path("out/map.toml"))
        guessed = Path("out/map.toml").read_text().replace("out/map.toml", "map.toml")
        assert guessed == Path("map.toml").read_text()
    mined = [words[0] for words in commands].index("mine") + 1
    for words in commands if whole else commands[:mined]:
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (words, result.output, result.exception)
    sources = pq.read_table("out/mined/samples.parquet")["sources"].to_pylist()
    reworded = sum(one & Source.REFORMULATION > 0 for one in sources)  # what "desk lamp" led to, for "lamp"
    assert reworded > 10 or (recipe == "jdsearch" and reworded == 0)
    if not whole:
        return
    served, patient = {"index": ("out/index", "new")}, ServingConfig(max_wait_s=30, timeout_s=60)
    service = open_service(served, patient, Path("out/mined"))
    with TestClient(make_app(service)) as client:
        assert len(client.post("/search", json={"query": "lamp", "k": 3}).json()["hits"]) == 3
