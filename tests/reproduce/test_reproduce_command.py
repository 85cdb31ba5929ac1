"""`crops reproduce` as a user types it, on a tiny world; and a cell that is made again by a second run."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from crops.cli.app import app
from crops.cli.simulate import reproduce as reproduce_command
from crops.config import load_config
from crops.errors import CropsError
from crops.reproduce import run
from crops.reproduce.design import Cell, base_run, build_world

SETTINGS = """
[training]
steps = 4
batch_queries = 16
dim = 16
[relevance]
model = "none"
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Figure 7 of a tiny world: two trainings of four steps."""
    folder = tmp_path_factory.mktemp("reproduce")
    (folder / "run.toml").write_text(SETTINGS)
    return folder, reproduce(folder)


def reproduce(folder, what="fig7"):
    arguments = ["reproduce", what, "--size", "tiny", "--seeds", "1", "--out", str(folder / "out")]
    return CliRunner().invoke(app, [*arguments, "--config", str(folder / "run.toml")])


def test_a_figure_from_nothing_and_what_its_cells_rest_on(done):
    folder, result = done
    assert result.exit_code == 0, result.output
    made = folder / "out" / "fig7"
    written = {"report.html", "results.md", "tables.json", "verdicts.json"}
    assert {path.name for path in made.iterdir()} == written
    assert "Figure 7: the temperature" in (made / "report.html").read_text()
    assert "| CroPS, seed 0 | 0.0500 |" in (made / "results.md").read_text()
    assert len(list((folder / "out" / "cells").iterdir())) == 2
    assert not any((folder / "out" / "models").iterdir())
    (cell,) = (folder / "out" / "cells").glob("crops-*")
    facts = json.loads((cell / "cell.json").read_text())
    known = {"method": "crops", "world": "default", "size": "tiny", "seed": 0, "test_day": "2026-01-08"}
    assert facts | known | {"mined_days": ["2026-01-06"]} == facts
    assert facts["settings"]["training"]["steps"] == facts["training"]["steps"] == 4
    assert facts["training"]["queries_seen"] == 64
    assert facts["platform"].startswith("cpsqa-open-v1+")
    assert {"recall@100/ct", "true_recall@100", "never_shown@100", "mrr@100/ct"} <= facts["metrics"].keys()


def test_a_second_run_makes_only_what_is_missing(done, monkeypatch):
    folder, _ = done
    (cell,) = (folder / "out" / "cells").glob("crops-*")
    before = (cell / "values.parquet").read_bytes()
    shutil.rmtree(cell)
    made = []
    monkeypatch.setattr(run, "make_cell", lambda one, *rest: made.append(one.name()) or run_make(one, *rest))
    assert reproduce(folder).exit_code == 0
    assert made == [cell.name]
    assert (cell / "values.parquet").read_bytes() == before


run_make = run.make_cell


def test_bad_requests_make_nothing(tmp_path):
    out = tmp_path / "out"
    for arguments, message in (
        ({"what": "table5"}, "unknown table 'table5'"),
        ({"what": "map", "trainings": 2}, "--trainings 2: map has one training a world"),
        ({"what": "table2", "seeds": "1,1"}, "1 is named twice"),
        ({"what": "table2", "size": "huge"}, "unknown size 'huge'"),
        ({"what": "table2", "worlds": "judged"}, "needs --judged FOLDER"),
        ({"what": "table2", "encoder": "minilmm"}, "Did you mean 'minilm'"),
        ({"what": "table2", "generated": tmp_path}, "no <size>-<world>-<seed>.jsonl"),
    ):
        with pytest.raises(CropsError, match=message):
            reproduce_command(out=out, **arguments)
    assert not out.exists()


def test_a_watched_training_is_looked_at_on_held_out_queries(done, tmp_path, monkeypatch):
    """Four steps, a look every two; the queries looked at are not trained on."""
    from crops.reproduce import make as learning

    folder, _ = done
    samples = min((folder / "out" / "mined").iterdir())
    world = build_world("default", "tiny", 0)
    settings = base_run(world, load_config(folder / "run.toml"))
    monkeypatch.setattr(learning, "WATCHED_STEPS", 2)
    facts = learning.learn(Cell(world, "softmax_ce", settings, validated=True), samples, tmp_path / "model")
    rows = [json.loads(line) for line in (tmp_path / "model" / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(0 <= row["eval_score"] <= 1 for row in rows)
    (plain,) = (folder / "out" / "cells").glob("crops-*")
    groups = json.loads((plain / "cell.json").read_text())["training"]["groups"]
    # one query in ten is held out, by its hash
    assert 0.8 * groups < facts["groups"] < 0.97 * groups
    assert facts["steps"] == 4
