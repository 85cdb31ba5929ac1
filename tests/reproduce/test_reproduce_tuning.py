"""`--tune`: each method once, kept as JSON, and made again where a kill tore the file off."""

import json

import pytest
from typer.testing import CliRunner

from crops.cli.app import app
from crops.config import load_config
from crops.reproduce import produce, run
from crops.reproduce.design import Design, build_world
from crops.training import methods as grid
from crops.training.samples import FOLDS


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The methods that were tuned; the best point names its method."""
    tuned = []

    def tune_method(name, samples, out, config, *, seed, cache, folds, fields):
        tuned.append(name)
        found = {"method": name, "points": [], "best": {"docs_per_source": len(name)}}
        (out / "models").mkdir(parents=True)
        (out / f"{name}.json").write_text(json.dumps(found))
        return found

    monkeypatch.setattr(grid, "tune_method", tune_method)
    monkeypatch.setattr(run, "make_samples", lambda cell, out, *rest: out / "mined" / "samples-1")
    return tuned


def test_every_method_of_the_target_is_tuned_once(asked, tmp_path):
    world, design = build_world("default", "tiny", 0), Design(load_config(), {"dpr": {"negatives": 4}})
    first = produce.tuned(design, "table3", world, tmp_path, 1)
    assert asked == ["crops"]  # the ablation takes its settings
    assert first.points["crops"] == {"docs_per_source": 5}
    assert "dpr" not in first.points  # stored settings are not mixed with new ones
    asked.clear()
    second = produce.tuned(design, "all", world, tmp_path, 1)
    rivals = ["bm25", "nce", "dpr", "ance", "adore", "trisampler", "fs_lr"]
    assert asked == [*rivals, "infonce_graded", "softmax_ce", "softmax_ce_lower"]
    assert second.points["crops"] == first.points["crops"]
    assert not list(tmp_path.glob("tuned/*/models"))


def test_other_steps_and_folds_are_tuned_anew_and_torn_files_too(asked, tmp_path):
    world = build_world("default", "tiny", 0)
    produce.tuned(Design(load_config()), "table4", world, tmp_path, 1)
    asked.clear()
    (torn,) = tmp_path.glob("tuned/*/crops.json")
    torn.write_text('{"method": "cro')
    produce.tuned(Design(load_config()), "table4", world, tmp_path, 1)
    assert asked == ["crops"]
    asked.clear()
    produce.tuned(Design(load_config(None, training__steps=7)), "table4", world, tmp_path, 1)
    assert asked == ["infonce_graded", "softmax_ce", "crops", "softmax_ce_lower"]
    asked.clear()
    for folds in (3, 3):
        produce.tuned(Design(load_config()), "table3", world, tmp_path, folds)
    assert asked == ["crops"]


def test_as_many_folds_as_there_are_may_be_asked_for():
    result = CliRunner().invoke(app, ["reproduce", "table3", "--tune", "--folds", str(FOLDS + 1)])
    assert result.exit_code == 2
    assert f"less than or equal to {FOLDS}" in result.output
