"""Makes a cell: world, check, mining, test sets, training, evaluation; what is there is not made again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops import simulation
from crops.config import RunConfig
from crops.engine import mine
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
from crops.evaluation.testsets import RELEVANT_GRADE
from crops.labels import DEFAULT_LABELS, Source
from crops.logs import open_logs
from crops.outputs import Scratch, cache_folder, is_done, publish, write_manifest, write_text
from crops.pipeline import day_testsets, load_documents, load_retriever, mine_day, refuse_mined
from crops.platform import platform_version, query_grades
from crops.reproduce.design import (
    BM25,
    CODE_VERSION,
    METRICS_VERSION,
    ORACLE_THETA,
    ORACLES,
    RESULTS_VERSION,
    Cell,
    World,
    expansion_name,
    mined_name,
    sets_name,
    world_name,
)
from crops.schema import SAMPLES
from crops.simulation import Simulated
from crops.text import PLAIN

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

COMMAND = "reproduce"


def make_world(world: World, out: Path) -> Simulated:
    """Return a world with its checked logs; simulate and check it if need be."""
    run = RunConfig(seed=world.seed, platform=world.platform)
    return simulation.make_world(out / WORLDS / world_name(world), run)


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


# What the truth would choose: the samples of the oracle rows, which say how much there is to gain. They are
# the only samples that truth has touched. No claim is theirs; they bound those of others.


RIGHT = 10
"""Documents that the oracle source gives a query, drawn among all that are right for it."""


def mine_oracle(oracle: str, world: Simulated, out: Path, run: RunConfig) -> None:
    """Mine the training day of a world with the truth in place of theta, or of all sources but search.

    Right is what an editor who never errs calls so: grade >= 2 for a need that the query's searches had.

    Args:
        oracle: one of `crops.reproduce.design.ORACLES`.
        out: folder of the samples.
    """
    from crops.training.methods import load_catalogue  # torch takes seconds to import: not for --help

    day = world.day("train")
    grades = query_grades(world.logs, [day], world.truth)
    right = grades.filter(pc.field("grade") >= RELEVANT_GRADE).select(["query_id", "item_id"])
    theta = RightScorer(right) if oracle == ORACLE_THETA else None
    sources = ("search", "p1", "p2") if theta else ("search",)
    # Not on a cluster: what is mined lies in a folder of this machine, and is changed here.
    engine = run.engine.model_copy(update={"engine": "duckdb", "days": (day,), "sources": sources})
    with Scratch("crops-oracle-") as scratch:
        mined = Path(scratch) / "mined"
        mine(
            open_logs(world.logs),
            mined,
            engine,
            relevance=theta,
            similarity=None,
            seed=run.seed,
            document=run.document,
            noted={"oracle": oracle},
        )
        if theta is None:
            known = pq.read_table(mined / "queries.parquet", columns=["query_id"])["query_id"]
            there = pa.array(load_catalogue(mined, PLAIN).ids)  # not what was uploaded later
            right = right.filter(
                pc.and_(
                    pc.is_in(right["query_id"], known.combine_chunks()), pc.is_in(right["item_id"], there)
                )
            )
            samples = add_right(pq.read_table(mined / "samples.parquet"), right, RIGHT, run.seed)
            pq.write_table(samples, mined / "samples.parquet")
        with publish(out, "mine") as folder:
            shutil.copytree(mined, folder, dirs_exist_ok=True)


@dataclass(frozen=True)
class RightScorer:
    """A theta that knows: 1 for the pairs that are right, 0 for all others."""

    right: pa.Table
    """query_id, item_id."""
    by_item = True

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Append `score` to each batch, by `left_key` and `right_key`."""
        known = set(zip(*(self.right[name].to_pylist() for name in ("query_id", "item_id")), strict=True))
        for batch in batches:
            keys = (batch.column(name).to_pylist() for name in ("left_key", "right_key"))
            scores = [float(pair in known) for pair in zip(*keys, strict=True)]
            yield batch.append_column("score", pa.array(scores, pa.float64()))


def add_right(samples: pa.Table, right: pa.Table, most: int, seed: int) -> pa.Table:
    """Return samples with up to `most` right pairs of each query, drawn by chance, as positives.

    Args:
        samples: rows of `crops.schema.SAMPLES`.
        right: query_id, item_id.
        most: pairs of a query.
    """
    bit = Source.PROMOTED
    drawn = right.take(np.random.default_rng(seed).permutation(len(right)))
    order = np.argsort(drawn["query_id"].to_numpy(), kind="stable")
    queries = drawn["query_id"].to_numpy()[order]
    first = np.searchsorted(queries, queries)
    drawn = drawn.take(order[np.arange(len(queries)) - first < most])
    added = drawn.append_column("added", pa.array([int(bit)] * len(drawn), pa.int64()))
    both = samples.join(added, ["query_id", "item_id"], join_type="full outer")
    sources = pc.bit_wise_or(both["sources"].fill_null(0), both["added"].fill_null(0))
    own = pa.scalar(DEFAULT_LABELS[bit], pa.int32())
    label = pc.if_else(both["added"].is_valid(), pc.max_element_wise(both["label"], own), both["label"])
    columns = [both["query_id"], both["item_id"], label, sources, both["weight"].fill_null(1.0)]
    table = pa.table(columns, names=SAMPLES.names()).cast(SAMPLES.arrow())
    return table.sort_by([("query_id", "ascending"), ("item_id", "ascending")])


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
