"""Makes a cell: world, check, mining, test sets, training, evaluation; what is there is not made again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from crops import pipeline
from crops.config import RunConfig
from crops.engine.documents import expand
from crops.errors import CropsError
from crops.evaluation import (
    Evaluation,
    Slices,
    TestSets,
    build_slices,
    evaluate,
    load_slices,
    load_testsets,
    save_slices,
    save_testsets,
)
from crops.outputs import cache_folder, publish, write_manifest, write_text
from crops.pipeline import (
    Simulated,
    day_testsets,
    is_done,
    load_documents,
    load_retriever,
    mine_day,
    refuse_mined,
)
from crops.platform import platform_version
from crops.reproduce.design import (
    BM25,
    CODE_VERSION,
    METRICS_VERSION,
    ORACLES,
    RESULTS_VERSION,
    Cell,
    World,
    expansion_name,
    mined_name,
    sets_name,
    world_name,
)
from crops.reproduce.oracle import mine_oracle

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

COMMAND = "reproduce"


def make_world(world: World, out: Path) -> Simulated:
    """Return a world with its checked logs; simulate and check it if need be."""
    run = RunConfig(seed=world.seed, platform=world.platform)
    return pipeline.make_world(out / WORLDS / world_name(world), run)


def make_samples(cell: Cell, out: Path, generated: Path | None) -> Path:
    """Return the samples of a cell; mine them first if need be."""
    folder = out / MINED / mined_name(cell)
    if not is_done(folder):
        world = make_world(cell.world, out)
        if cell.method in ORACLES:
            mine_oracle(cell.method, world, folder, cell.run)
        else:
            mine_day(world.logs, world.day("train"), folder, cell.run, generated if cell.generated else None)
    return folder


def make_expansion(cell: Cell, out: Path) -> Path:
    """Return the queries that join the texts of a cell; mine and expand rewordings first if need be."""
    folder = out / EXPANDED / expansion_name(cell)
    if not is_done(folder):
        assert cell.rewordings is not None
        expand(make_samples(cell.rewordings, out, None), folder, cell.run.expansion)
    return folder


def make_testsets(cell: Cell, out: Path, generated: Path | None) -> Path:
    """Return the test sets of a cell's world with their slices; build them first if need be."""
    folder = out / TESTS / sets_name(cell)
    if not is_done(folder):
        world, samples = make_world(cell.world, out), make_samples(cell, out, generated)
        # Whatever a cell mined, it is tested by the default engine's reading of the test day.
        run = cell.run.model_copy(update={"engine": RunConfig().engine})
        testsets = day_testsets(world.logs, world.day("test"), world.truth, samples, run)
        slices = build_slices(world.logs, world.day("train"), testsets, world.truth, run.engine.memory)
        with publish(folder, COMMAND) as staging:
            save_testsets(testsets, staging)
            save_slices(slices, staging)
            write_manifest(
                staging, COMMAND, config=run.dump(), seconds={}, day=testsets.day, counts=testsets.counts
            )
    return folder


def make_cell(cell: Cell, out: Path, generated: Path | None) -> Path:
    """Return the folder of a finished cell; make it and all it needs first if need be.

    It holds cell.json, values.parquet (`crops.evaluation.evaluate.VALUES`), queries.parquet (frequency and
    senses) and, of a training, training_log.jsonl and evaluations.jsonl.

    Raises:
        CropsError: the samples were mined from the test day, or a stage failed.
    """
    folder = out / CELLS / cell.name()
    if is_done(folder):
        return folder
    samples = make_samples(cell, out, generated)
    tests = make_testsets(cell, out, generated)
    testsets, slices = load_testsets(tests), load_slices(tests)
    refuse_mined(samples, testsets.day)
    model = out / MODELS / cell.name()
    facts = model.with_name(f"{model.name}.json")  # of a finished training, until it is evaluated
    trained: dict[str, Any] = {}
    if cell.trained != BM25:
        if not (is_done(model) and facts.exists()):
            write_text(facts, json.dumps(learn(cell, samples, model), default=str))
        trained = json.loads(facts.read_text())
    logs = make_world(cell.world, out).logs
    start = time.process_time()
    expanded = None if cell.rewordings is None else make_expansion(cell, out)
    evaluation = _evaluate(cell, model, logs, testsets, slices, expanded)
    seconds = {"evaluate_cpu": time.process_time() - start}
    with publish(folder, COMMAND) as staging:
        pq.write_table(evaluation.values, staging / "values.parquet")
        pq.write_table(_described(testsets, slices), staging / "queries.parquet")
        for name in ("training_log.jsonl", "evaluations.jsonl"):
            if (model / name).exists():
                shutil.copy(model / name, staging / name)
        written = _cell_json(cell, samples, testsets, evaluation, trained)
        (staging / "cell.json").write_text(json.dumps(written, indent=2, default=str) + "\n")
        write_manifest(staging, COMMAND, config=cell.run.dump(), seconds=seconds, cell=folder.name)
    shutil.rmtree(model, ignore_errors=True)
    facts.unlink(missing_ok=True)
    return folder


def _evaluate(
    cell: Cell, model: Path, logs: Path, testsets: TestSets, slices: Slices, expanded: Path | None
) -> Evaluation:
    from crops.retrieval import BM25Retriever

    ids, texts = load_documents(logs, cell.run, testsets.days[0], testsets.candidate_ids(), expanded=expanded)
    retriever = (
        BM25Retriever(ids, texts, **cell.point)
        if cell.trained == BM25
        else load_retriever(model, ids, texts, logs)
    )
    return evaluate(retriever, testsets, cell.run.evaluation, cell.run.seed, slices)


def _described(testsets: TestSets, slices: Slices) -> pa.Table:
    seen = testsets.queries.select(["query_id", "seen"])
    return slices.queries.join(seen, "query_id", join_type="left outer").sort_by("query_id")


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
        "repeat": cell.repeat,
        "platform": platform_version(),
        "results": RESULTS_VERSION,
        "code": CODE_VERSION,
        "metrics_version": METRICS_VERSION,
        "settings": cell.run.model_dump(mode="json"),
        "test_day": testsets.day,
        "test_counts": testsets.counts,
        "mined_days": mined["days"],
        "mined_labels": mined["labels"],
        "p3_coverage": mined["p3_coverage"],
        "metrics": {name: {"mean": one.mean, "n": one.n} for name, one in evaluation.summary.items()},
        "training": trained,
    }


# The training of a cell: the method's own, or one that is watched on the validation queries.


WATCHED_STEPS = 25
"""Steps between two looks at the validation queries."""
_APART = 1_000_000
"""Between the seeds of two trainings in one world: no world has that of another's second training."""
SCORE = "score"
"""Mean of validation recall@100 on clicks and on reformulations (`crops.training.methods`)."""


def learn(cell: Cell, samples: Path, model: Path) -> dict[str, Any]:
    """Train a cell's method, write its model and return what `crops.training.methods.fit_method` returns.

    A validated cell is trained without the validation queries and evaluated on them every `WATCHED_STEPS`
    (evaluations.jsonl), to the last step.

    Raises:
        CropsError: the method is unknown, or its training failed.
    """
    # torch takes seconds to import: not for --help
    from crops.encoders import rendering_for
    from crops.retrieval import ExactRetriever
    from crops.training import Evaluation as EvaluateFn
    from crops.training.methods import fit_method, load_catalogue, validate, validation_sets

    config = cell.run.training
    watched: dict[str, Any] = {}
    if cell.validated:
        config = config.model_copy(update={"eval_steps": WATCHED_STEPS, "patience": config.steps})
        rendering = rendering_for(config).of(cell.run.document.fields)
        catalogue = load_catalogue(samples, rendering)
        sets = validation_sets(samples, catalogue.ids)

        def metrics(encoder: SentenceTransformer) -> dict[str, float]:
            return validate(ExactRetriever(encoder, *catalogue, render_query=rendering.query), sets)

        watched = {"held_out": 0, "evaluation": EvaluateFn(metrics, SCORE)}
    facts = fit_method(
        cell.trained,
        samples,
        model,
        config,
        seed=cell.run.seed + _APART * cell.repeat,
        cache=cache_folder(),
        point=cell.point or None,
        fields=cell.run.document.fields,
        **watched,
    )
    return {**facts, "steps": config.steps}


# The folder of a reproduction: what is in it, who may write it, and whether it is ours.


_FACTS = "reproduce.json"
_LOCK = ".lock"
CELLS, WORLDS, MINED, TESTS, MODELS, FIGURES = "cells", "worlds", "mined", "tests", "models", "figures"
EXPANDED, TUNED = "expanded", "tuned"
_STAGES = (CELLS, WORLDS, MINED, EXPANDED, TESTS, MODELS, FIGURES)


@contextlib.contextmanager
def opened(out: Path) -> Iterator[Path]:
    """Hold the folder of a reproduction for one process, and sweep up what a killed one left.

    Raises:
        CropsError: it is a file, holds other things, was made by another version of the platform or of the
            results, or another process is at work in it.
    """
    if out.exists() and not out.is_dir():
        raise CropsError(f"{out} is a file; name a folder for the cells and tables")
    with naming_full_disk(out):
        out.mkdir(parents=True, exist_ok=True)
        with (out / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CropsError(
                    f"another `crops reproduce` is at work in {out}; wait for it, or name another --out"
                ) from error
            _identify(out)
            # Half-written folders of a killed process go; checkpoints stay, a training resumes from them.
            for stage in _STAGES:
                for pattern in (".*.tmp", ".*.old", "*/.*.tmp", "*/.*.old"):
                    for left in (out / stage).glob(pattern):
                        shutil.rmtree(left, ignore_errors=True)
            yield out


def _identify(out: Path) -> None:
    """Write into a new folder which versions make its cells; compare them with those of an old one."""
    facts = {"platform": platform_version(), "results": RESULTS_VERSION}
    path = out / _FACTS
    if not path.exists():
        if strangers := [file.name for file in out.iterdir() if file.name != _LOCK]:
            raise CropsError(
                f"{out} holds files that `crops reproduce` did not write ({strangers[0]}); name another"
            )
        write_text(path, json.dumps(facts, indent=2) + "\n")
        return
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise CropsError(
            f"{path} is damaged: {error}; remove it if the folder is from this version"
        ) from error
    for name, value in facts.items():
        if found.get(name) != value:
            raise CropsError(
                f"{out} was made by {name} version {found.get(name)}, this is {value}: their cells must not "
                "stand in one table; name another --out, or run the version that made it"
            )


def remove_outdated(out: Path) -> int:
    """Remove the cells that lack metrics, and with them all test sets; return how many cells."""
    cells = [
        file.parent
        for file in out.glob(f"{CELLS}/*/cell.json")
        if json.loads(file.read_text()).get("metrics_version") != METRICS_VERSION
    ]
    for folder in [*cells, *(out.glob(f"{TESTS}/*") if cells else ())]:
        shutil.rmtree(folder)
    return len(cells)


@contextlib.contextmanager
def naming_full_disk(out: Path) -> Iterator[None]:
    """Turn "no space left" into a CropsError that says how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CropsError(
            f"the disk of {out} is full ({error}); free space and run the same command again: "
            "finished cells are kept"
        ) from error
