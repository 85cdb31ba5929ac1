"""`--tune`: each method once a world and fold, kept as JSON, and made again where a kill tore it off."""

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
    """The methods that were tuned, with seed and fold where it is not the first world's first.

    Of three points the second is best in the world of seed 0, the third by more in that of seed 1.
    """
    tuned = []

    def tune_method(name, samples, out, config, *, seed, cache, fold, fields):
        tuned.append((name, seed, fold) if seed or fold else name)
        points = [
            {"point": {"docs_per_source": most}, "metrics": {"score": score}}
            for most, score in zip((1, 2, 4), (0.1, 0.0, 0.4) if seed else (0.1, 0.3, 0.2), strict=True)
        ]
        found = {"method": name, "points": points}
        (out / "models").mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps(found))
        return found

    monkeypatch.setattr(grid, "tune_method", tune_method)
    monkeypatch.setattr(run, "make_samples", lambda cell, out, *rest: out / f"samples-{cell.run.seed}")
    return tuned


def test_every_method_of_the_target_is_tuned_once(asked, tmp_path):
    world, design = build_world("default", "tiny", 0), Design(load_config(), {"dpr": {"negatives": 4}})
    first = produce.tuned(design, "table3", [world], tmp_path, 1)
    assert asked == ["crops"]  # the ablation takes its settings
    assert first.points["crops"] == {"docs_per_source": 2}
    assert "dpr" not in first.points  # stored settings are not mixed with new ones
    asked.clear()
    second = produce.tuned(design, "all", [world], tmp_path, 1)
    rivals = ["bm25", "nce", "dpr", "ance", "adore", "trisampler", "fs_lr"]
    assert asked == [*rivals, "infonce_graded", "softmax_ce", "softmax_ce_lower"]
    assert second.points["crops"] == first.points["crops"]
    assert not list(tmp_path.glob("tuned/*/models"))


def test_other_steps_and_folds_are_tuned_anew_and_torn_files_too(asked, tmp_path):
    world = build_world("default", "tiny", 0)
    produce.tuned(Design(load_config()), "table4", [world], tmp_path, 1)
    asked.clear()
    (torn,) = tmp_path.glob("tuned/*/crops.json")
    torn.write_text('{"method": "cro')
    produce.tuned(Design(load_config()), "table4", [world], tmp_path, 1)
    assert asked == ["crops"]
    asked.clear()
    produce.tuned(Design(load_config(None, training__steps=7)), "table4", [world], tmp_path, 1)
    assert asked == ["infonce_graded", "softmax_ce", "crops", "softmax_ce_lower"]
    asked.clear()
    for folds in (3, 3):
        produce.tuned(Design(load_config()), "table3", [world], tmp_path, folds)
    assert asked == [("crops", 0, 1), ("crops", 0, 2)]  # the first fold is read


def test_the_best_point_is_that_of_the_mean_over_worlds_and_folds(asked, tmp_path):
    worlds = [build_world("default", "tiny", seed) for seed in (0, 1)]
    found = produce.tuned(Design(load_config()), "table3", worlds, tmp_path, 2)
    assert asked == ["crops", ("crops", 1, 0), ("crops", 0, 1), ("crops", 1, 1)]
    # 0.3 against 0.2 in one world, 0.0 against 0.4 in the other
    assert found.points["crops"] == {"docs_per_source": 4}


def test_as_many_folds_as_there_are_may_be_asked_for():
    result = CliRunner().invoke(app, ["reproduce", "table3", "--tune", "--folds", str(FOLDS + 1)])
    assert result.exit_code == 2
    assert f"less than or equal to {FOLDS}" in result.output
