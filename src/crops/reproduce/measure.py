"""Makes a cell: world, check, mining, test sets, training, evaluation; what is there is not made again."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crops.config import RunConfig
from crops.errors import CropsError
from crops.evaluation import (
    Evaluation,
    Facts,
    TestSets,
    build_facts,
    evaluate,
    load_facts,
    load_testsets,
    save_facts,
    save_testsets,
)
from crops.outputs import publish, read_manifest, write_manifest
from crops.platform import platform_version
from crops.reproduce.cells import Cell, mined_name, sets_name, world_name, world_run
from crops.reproduce.folder import CELLS, MINED, MODELS, TESTS, WORLDS, is_done, write_atomically
from crops.reproduce.learn import learn
from crops.reproduce.paper import BM25
from crops.reproduce.stages import Stages
from crops.reproduce.version import CODE_VERSION, RESULTS_VERSION
from crops.reproduce.worlds import World
from crops.retrieval import load_items

COMMAND = "reproduce"


def make_world(world: World, out: Path, stages: Stages) -> Path:
    """Return the folder of a world, with world/ and checked/ in it; simulate and check it if need be."""
    folder = out / WORLDS / world_name(world)
    run = world_run(world)
    if not is_done(folder / "world"):
        stages.simulate(folder / "world", run)
    if not is_done(folder / "checked"):
        stages.check(folder / "world" / "logs", folder / "checked", run.engine.memory)
    return folder


def make_samples(cell: Cell, out: Path, stages: Stages, generated: Path | None) -> Path:
    """Return the samples of a cell; mine them first if need be."""
    folder = out / MINED / mined_name(cell)
    if not is_done(folder):
        world = make_world(cell.world, out, stages)
        days = read_manifest(world / "world", "simulate")["days"]
        engine = cell.run.engine.model_copy(update={"days": (days["train"],)})
        run = cell.run.model_copy(update={"engine": engine})
        stages.mine(world / "checked" / "accepted", folder, run, generated if cell.generated else None)
    return folder


def make_testsets(cell: Cell, out: Path, stages: Stages, generated: Path | None) -> Path:
    """Return the test sets of a cell's world with their facts; build them first if need be."""
    folder = out / TESTS / sets_name(cell)
    if not is_done(folder):
        world, samples = make_world(cell.world, out, stages), make_samples(cell, out, stages, generated)
        days = read_manifest(world / "world", "simulate")["days"]
        logs, truth = world / "checked" / "accepted", world / "world" / "truth"
        # Whatever a cell mined, it is tested by the default engine's reading of the test day.
        run = cell.run.model_copy(update={"engine": RunConfig().engine})
        testsets = stages.testsets(logs, days["test"], truth, samples, run)
        facts = build_facts(logs, days["train"], testsets, truth, run.engine.memory)
        with publish(folder, COMMAND) as staging:
            save_testsets(testsets, staging)
            save_facts(facts, staging)
            write_manifest(
                staging, COMMAND, config=run.dump(), seconds={}, day=testsets.day, counts=testsets.counts
            )
    return folder


def make_cell(cell: Cell, out: Path, stages: Stages, generated: Path | None) -> Path:
    """Return the folder of a finished cell; make it and all it needs first if need be.

    It holds cell.json, values.parquet (`crops.evaluation.results.VALUES`), queries.parquet (frequency and
    senses) and, of a training, training_log.jsonl and evaluations.jsonl.

    Raises:
        CropsError: the samples were mined from the test day, or a stage failed.
    """
    folder = out / CELLS / cell.name()
    if is_done(folder):
        return folder
    samples = make_samples(cell, out, stages, generated)
    tests = make_testsets(cell, out, stages, generated)
    testsets, facts = load_testsets(tests), load_facts(tests)
    refuse_overlap(samples, testsets.day)
    model = out / MODELS / cell.name()
    trained = {} if cell.method == BM25 else _train(cell, samples, model)
    logs = make_world(cell.world, out, stages) / "checked" / "accepted"
    start = time.process_time()
    evaluation = _evaluate(cell, model, logs, testsets, facts, stages)
    seconds = {"evaluate_cpu": time.process_time() - start}
    with publish(folder, COMMAND) as staging:
        pq.write_table(evaluation.values, staging / "values.parquet")
        pq.write_table(_described(testsets, facts), staging / "queries.parquet")
        for name in ("training_log.jsonl", "evaluations.jsonl"):
            if (model / name).exists():
                shutil.copy(model / name, staging / name)
        written = _cell_json(cell, samples, testsets, evaluation, trained)
        (staging / "cell.json").write_text(json.dumps(written, indent=2, default=str) + "\n")
        write_manifest(staging, COMMAND, config=cell.run.dump(), seconds=seconds, cell=folder.name)
    shutil.rmtree(model, ignore_errors=True)
    _facts_file(model).unlink(missing_ok=True)
    return folder


def _facts_file(model: Path) -> Path:
    """Return where the facts of a finished training are until it is evaluated."""
    return model.with_name(f"{model.name}.json")


def _train(cell: Cell, samples: Path, model: Path) -> dict[str, Any]:
    """Train the model unless a run that ended before the evaluation did; return the facts of the training."""
    facts = _facts_file(model)
    if not (is_done(model) and facts.exists()):
        write_atomically(facts, json.dumps(learn(cell, samples, model), default=str))
    trained: dict[str, Any] = json.loads(facts.read_text())
    return trained


def refuse_overlap(samples: Path, test_day: str) -> None:
    """Refuse to test on a day that the training samples were mined from.

    Raises:
        CropsError: they overlap.
    """
    days = json.loads((samples / "report.json").read_text())["days"]
    if test_day in days:
        raise CropsError(
            f"{samples} was mined from {test_day}, the test day; mine an earlier day: it must be unseen"
        )


def _evaluate(
    cell: Cell, model: Path, logs: Path, testsets: TestSets, facts: Facts, stages: Stages
) -> Evaluation:
    ids, texts = load_items(logs, testsets.candidate_ids())
    if cell.method == BM25:
        from crops.retrieval import BM25Retriever

        return evaluate(
            BM25Retriever(ids, texts, **cell.point), testsets, cell.run.evaluation, cell.run.seed, facts
        )
    retriever = stages.retriever(model, ids, texts, logs)
    return evaluate(retriever, testsets, cell.run.evaluation, cell.run.seed, facts)


def _described(testsets: TestSets, facts: Facts) -> pa.Table:
    seen = testsets.queries.select(["query_id", "seen"])
    return facts.queries.join(seen, "query_id", join_type="left outer").sort_by("query_id")


def _cell_json(
    cell: Cell, samples: Path, testsets: TestSets, evaluation: Evaluation, trained: dict[str, Any]
) -> dict[str, Any]:
    mined = json.loads((samples / "report.json").read_text())
    return {
        "method": cell.method,
        "world": cell.world.name,
        "size": cell.world.platform.size,
        "seed": cell.world.seed,
        "encoder": cell.run.training.encoder,
        "point": dict(cell.point),
        "validated": cell.validated,
        "platform": platform_version(),
        "results": RESULTS_VERSION,
        "code": CODE_VERSION,
        "settings": cell.run.model_dump(mode="json"),
        "test_day": testsets.day,
        "test_counts": testsets.counts,
        "mined_days": mined["days"],
        "mined_labels": mined["labels"],
        "p3_coverage": mined["p3_coverage"],
        "metrics": {name: {"mean": one.mean, "n": one.n} for name, one in evaluation.summary.items()},
        "training": trained,
    }
