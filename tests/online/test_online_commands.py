"""`crops experiment` and `crops bubble-loop` refuse at once what cannot be run; a tiny one runs whole."""

import json
import sys

import pytest

from crops.cli.bubble_loop import bubble_loop
from crops.cli.experiment import experiment
from crops.errors import CropsError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": "baseline"}, "at least two arms"),
        ({"arms": "baseline,crops,baseline"}, "each once"),
        ({"arms": "baseline,+p4"}, r"unknown arm '\+p4'; arms: baseline"),
        ({"models": "dense,spare"}, "unknown model 'spare'.*sparse"),
        ({"days": 0}, "--days 0: an experiment lasts from 1 to 28 days"),
        ({"days": 29}, "--days 29"),
        ({"share": 0.4}, "sum to 1.6"),
        ({"share": 0.0}, "share 0.0"),
    ],
)
def test_impossible_experiments_are_refused_before_any_work(tmp_path, options, message):
    with pytest.raises(CropsError, match=message):
        experiment(tmp_path / "out", size="tiny", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": "crops,-p9"}, "unknown arm '-p9'"),
        ({"model": "both"}, "unknown model 'both'"),
        ({"days": 40}, "40"),
    ],
)
def test_impossible_loops_are_refused_before_any_work(tmp_path, options, message):
    with pytest.raises(CropsError, match=message):
        bubble_loop(tmp_path / "out", size="tiny", **options)
    assert not (tmp_path / "out").exists()


def test_a_tiny_experiment_from_nothing_to_logs_and_back(tmp_path, monkeypatch):
    settings = tmp_path / "run.toml"
    settings.write_text(
        '[training]\nsteps = 2\nbatch_queries = 8\n[relevance]\nmodel = "none"\n[platform]\nsessions = 60\n'
    )
    analysed = []
    module = sys.modules["crops.cli.experiment"]
    monkeypatch.setattr(module, "analyse_experiment", lambda out, *_: analysed.append(out))
    options = {"size": "tiny", "days": 1, "arms": "baseline,+p1", "models": "dense", "share": 0.3}
    out = experiment(tmp_path / "out", **options, config=settings)
    plan = json.loads((out / "plan.json").read_text())
    assert [(one["name"], one["route"]) for one in plan["experiments"]] == [("dense", "dense"), ("aa", None)]
    written = {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    day = plan["days"][0]
    for arm in ("baseline", "+p1"):
        assert f"paired/dense/{arm}/truth/searches/day={day}/part-0.parquet" in written
    assert f"live/logs/exposures/day={day}/part-0.parquet" in written
    # again: nothing is simulated, mined or trained anew
    experiment(tmp_path / "out", **options, config=settings)
    assert analysed == [out, out]
    assert written == {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    with pytest.raises(CropsError, match="plan of another experiment"):
        experiment(tmp_path / "out", **{**options, "share": 0.2}, config=settings)
    with pytest.raises(CropsError, match="simulated with other settings"):
        experiment(tmp_path / "out", **options, seed=1, config=settings)
