"""`crops demo --judged`: the same training, evaluation and report on real texts and human grades."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from crops.cli.demo_report import judged_report
from crops.cli.evaluate import results_table, write_results
from crops.cli.models import BM25, load_retriever
from crops.config import RunConfig, TrainingConfig
from crops.evaluation import Evaluation, Fold, evaluate_judged, folds, pool_evaluations
from crops.logs import Judged, load_judged
from crops.outputs import cache_folder, console, publish, timed, write_manifest
from crops.report import write_report

if TYPE_CHECKING:
    from crops.training import TrainingData

FOLDS = 5
LOSSES = ("infonce_binary", "h_infonce")
DOCS_PER_GRADE = 8
"""Documents drawn per grade and step: a judged query has a few dozen, not the hundreds of a log."""


def judged_demo(folder: Path, out: Path, run: RunConfig, positive_label: int | None) -> Path:
    """Compare BM25, the untrained encoders and both losses on a judged collection, split by query.

    Args:
        folder: holds docs.parquet, queries.parquet and qrels.parquet.
        out: where models, values and the report go.
        run: settings; `training.positive_label` becomes the collection's positive label.
        positive_label: lowest grade that counts as relevant; the collection's top grade when None.

    Raises:
        CropsError: the collection is unusable.
    """
    start = time.perf_counter()
    seconds: dict[str, float] = {}
    judged = load_judged(folder, positive_label)
    if judged.rejects:
        console.print(f"left out: {judged.rejects}")
    console.print(f"document text = {' + '.join(judged.text_columns)}")
    parts = folds(judged.query_ids(), FOLDS, run.seed)
    results = {}
    names = dict.fromkeys([BM25, "minilm", run.training.encoder])
    for name in names:
        with timed(seconds, f"{name}, untrained"):
            retriever = load_retriever(name, judged.item_ids(), judged.texts)
            label = "BM25" if name == BM25 else f"{name}, untrained"
            results[label] = evaluate_judged(retriever, judged, judged.query_ids(), run.evaluation, run.seed)
    for loss in LOSSES:
        with timed(seconds, loss):
            results[loss] = _cross_validated(loss, judged, parts, out, run)
    seconds["total"] = time.perf_counter() - start
    with publish(out / "evaluation", "evaluate") as staging:
        write_results(staging, results)
        write_manifest(staging, "evaluate", config=run.dump(), seconds=seconds, rejects=judged.rejects)
    write_report(judged_report(run, judged, results, seconds), out / "report.html")
    console.print(results_table(results, f"{folder.name}, {len(judged.queries)} queries in {FOLDS} folds"))
    console.print(f"open [bold]{out / 'report.html'}[/bold]")
    return out / "report.html"


def _cross_validated(loss: str, judged: Judged, parts: list[Fold], out: Path, run: RunConfig) -> Evaluation:
    """Train on four folds, test on the fifth, and put the five test parts together."""
    from crops import training  # torch takes seconds to import: not for --help

    evaluations = []
    for number, fold in enumerate(parts):
        data = _training_part(judged, fold)
        settings = TrainingConfig(
            **{
                **run.training.model_dump(),
                "loss": loss,
                "positive_label": judged.positive_label,
                "docs_per_source": max(run.training.docs_per_source, DOCS_PER_GRADE),
                "batch_queries": min(run.training.batch_queries, max(2, data.groups // 2)),
            }
        )
        model = out / "models" / f"{loss}-{number}"
        training.train(data, model, settings, seed=run.seed, cache=cache_folder())
        retriever = load_retriever(model, judged.item_ids(), judged.texts)
        evaluations.append(evaluate_judged(retriever, judged, fold.test, run.evaluation, run.seed))
    return pool_evaluations(evaluations, run.evaluation.resamples, run.seed)


def _training_part(judged: Judged, fold: Fold) -> TrainingData:
    from crops.training import from_judgements

    docs = pa.table({"doc_id": judged.item_ids(), "text": pa.array(judged.texts)})
    queries = pa.table({"query_id": judged.query_ids(), "text": pa.array(judged.queries)})
    mine = judged.judgements.filter(pc.is_in(judged.judgements["query_id"], pa.array(fold.train)))
    return from_judgements(docs, queries, mine.rename_columns(["query_id", "doc_id", "grade"]))
