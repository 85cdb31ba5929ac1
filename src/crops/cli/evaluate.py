"""`crops evaluate`: a model on the test sets of a day."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer
from rich.table import Table

from crops import evaluation
from crops.cli.options import Options, command
from crops.config import RunConfig
from crops.errors import CropsError, RegressionError
from crops.evaluation import (
    FREQUENCIES,
    MIN_QUERIES,
    Evaluation,
    Interval,
    Slices,
    TestSets,
    build_slices,
    compare,
)
from crops.evaluation.significance import holm
from crops.evaluation.trec import evaluate_run, read_qrels, read_run, write_qrels, write_run
from crops.outputs import MANIFEST, console, publish, timed, to_json, write_manifest
from crops.pipeline import day_testsets, load_documents, load_retriever, say_other_fields

COMMAND = "evaluate"
_DETAIL = re.compile(r"_events|/catalogue|/seen|/unseen|mrr@|never_shown|senses@|\|")
"""Metrics that the printed table leaves out."""
SIGNIFICANT = 0.05


@command
def evaluate(
    model: Annotated[
        list[str], typer.Argument(help="Model folders to compare, or bm25; with --qrels TREC run files.")
    ],
    logs: Annotated[Path | None, typer.Option(help="Accepted logs that hold the test day.")] = None,
    day: Annotated[
        str | None, typer.Option(help="Test day, YYYY-MM-DD.", show_default="the last, up to today")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="truth/ of a simulation, for the metrics that need it.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Mined samples, to tell seen queries from unseen.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="The model in use: exit code 1 where another one is significantly worse."),
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option(help="TREC qrels that run files are evaluated with, in place of logs.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for per-query values and summary.json.")] = None,
    expanded: Annotated[
        Path | None, typer.Option(help="Output of `crops expand`: its queries join the texts of items.")
    ] = None,
    trec: Annotated[
        bool, typer.Option("--trec", help="Also write the rankings and test sets as TREC files into OUT.")
    ] = False,
    *,
    run: Annotated[
        RunConfig,
        Options(
            fields="document.fields",
            relevance="relevance.model",
            independent="evaluation.independent_theta",
            seed="seed",
        ),
    ],
) -> dict[str, Evaluation]:
    """Evaluate models on a later day: clicks (CT), reformulations (QR) and, with truth, what is relevant.

    With --samples also by frequency of the query. With --against every other model is compared with that one
    on the same queries: a significant loss on any metric of the table (p < 0.05, corrected by Holm) raises
    `crops.errors.RegressionError`.
    """
    models = list(dict.fromkeys([*model, *([against] if against else [])]))
    if trec and out is None:
        raise CropsError("--trec writes into the folder of --out; name one")
    if qrels is not None:
        results = _of_runs(models, qrels, run, out)
        return finish(results, against, qrels.name, run, out)
    if logs is None:
        raise CropsError("name the logs of the test day with --logs, or qrels for TREC runs with --qrels")
    testsets = day_testsets(logs, day, truth, samples, run)
    slices = None if samples is None else slices_of(logs, samples, testsets, truth, run)
    results = _of_day(models, logs, testsets, slices, run, out, trec, expanded)
    if testsets.qr_independent is not None:
        console.print(agreement(testsets.counts, run))
    if slices is not None:
        console.print(breakdown(results, slices, run.evaluation.recall_k))
    return finish(results, against, testsets.day, run, out)


def _of_runs(models: Sequence[str], qrels: Path, run: RunConfig, out: Path | None) -> dict[str, Evaluation]:
    """Evaluate run files against qrels.

    Raises:
        CropsError: a file cannot be read, or run and qrels share no query.
    """
    judged = read_qrels(qrels)
    results = {name: evaluate_run(read_run(Path(name)), judged, run.evaluation, run.seed) for name in models}
    if out is not None:
        with publish(out, COMMAND) as folder:
            write_results(folder, results)
            write_manifest(folder, COMMAND, config=run.dump(), seconds={}, qrels=str(qrels))
    return results


def _of_day(
    models: Sequence[str],
    logs: Path,
    testsets: TestSets,
    slices: Slices | None,
    run: RunConfig,
    out: Path | None,
    trec: bool,
    expanded: Path | None,
) -> dict[str, Evaluation]:
    """Evaluate models on the test sets of a day of logs.

    Raises:
        CropsError: one of them was trained on that day.
    """
    names = file_names(models)
    for name in models:
        refuse_trained_on(name, testsets.day)
        say_other_fields(name, run.document.fields)
    results: dict[str, Evaluation] = {}
    seconds: dict[str, float] = {}
    catalogue = load_documents(logs, run, testsets.day, testsets.candidate_ids(), expanded=expanded)
    with publish(out, COMMAND) if out else nullcontext() as folder:
        for name in models:
            with timed(seconds, f"evaluate {name}"):
                retriever = load_retriever(name, *catalogue, logs)
                results[name] = evaluation.evaluate(retriever, testsets, run.evaluation, run.seed, slices)
                if folder is not None and trec:
                    depth = max(run.evaluation.recall_k, run.evaluation.ndcg_k)
                    asked = testsets.queries
                    ids, scores = retriever.search(asked["query"].to_pylist(), depth)
                    path = folder / f"{names[name]}.run"
                    write_run(path, asked["query_id"].to_numpy(), ids, scores.tolist(), names[name])
        if folder is not None:
            write_results(folder, results)
            if trec:
                write_qrels(folder / "ct.qrels", testsets.ct)
                write_qrels(folder / "qr.qrels", testsets.qr)
                if testsets.truth is not None:
                    write_qrels(folder / "annotation.qrels", testsets.truth.annotation)
            counted = {"day": testsets.day, "counts": testsets.counts}
            write_manifest(folder, COMMAND, config=run.dump(), seconds=seconds, **counted)
    return results


def finish(
    results: dict[str, Evaluation], against: str | None, title: str, run: RunConfig, out: Path | None
) -> dict[str, Evaluation]:
    """Print the results, and compare them with the model in use.

    Raises:
        RegressionError: another model is significantly worse.
    """
    console.print(results_table(results, title))
    if out is not None:
        console.print(f"per-query values in [bold]{out}[/bold]; next: crops search MODEL QUERY --items LOGS")
    if against is not None:
        metrics = [name for name in results[against].summary if not _DETAIL.search(name)]
        gate(results, against, metrics, run)
    return results


def write_results(folder: Path, results: dict[str, Evaluation]) -> None:
    """Write `summary.json` and one Parquet file of per-query values per model."""
    summary = {
        name: {key: asdict(value) for key, value in one.summary.items()} for name, one in results.items()
    }
    names = file_names(list(results))
    (folder / "summary.json").write_text(to_json(summary))
    for name, one in results.items():
        pq.write_table(one.values, folder / f"{names[name]}.parquet")


def agreement(counts: dict[str, int], run: RunConfig) -> str:
    """Return a line on how many (search, item) pairs of QR both thetas keep."""
    own, other, both = (counts[name] for name in ("qr_pairs", "qr_independent_pairs", "qr_pairs_of_both"))
    either = own + other - both
    share = f" ({both / either:.0%} of those that either keeps)" if either else ""
    return (
        f"pairs of QR: {own:,} by {run.relevance.model}, {other:,} by {run.evaluation.independent_theta}, "
        f"{both:,} by both{share}"
    )


def results_table(results: dict[str, Evaluation], title: str) -> Table:
    """Return the means in %, one row per model; all metrics and the intervals are in summary.json."""
    metrics = [name for name in next(iter(results.values())).summary if not _DETAIL.search(name)]
    counts = next(iter(results.values())).summary
    heads = [f"{name.replace('/', chr(10))}\nn = {counts[name].n}" for name in metrics]
    table, names = Table("model", *heads, title=title), file_names(list(results))
    for name, one in results.items():
        cells = [_mean_cell(one.summary[metric]) for metric in metrics]
        table.add_row(names[name], *cells)
    notes = ["± half the width of the 95 % interval"]
    if any(0 < counts[metric].n < MIN_QUERIES for metric in metrics):
        notes.append(f"fewer than {MIN_QUERIES} queries carry none")
    if any(not counts[metric].n for metric in metrics):
        notes.append("–: no query has a value")
    table.caption = "; ".join(notes)
    return table


def _mean_cell(one: Interval) -> str:
    """Return a mean in % with half the width of its interval, or a dash for what is unknown."""
    if not one.n:
        return "–"
    half = "–" if one.n < MIN_QUERIES else f"{50 * (one.ci_high - one.ci_low):.1f}"
    return f"{100 * one.mean:.1f} ±{half}"


def gate(results: Mapping[str, Evaluation], against: str, metrics: Sequence[str], run: RunConfig) -> None:
    """Compare each model with the one in use, print the differences, and refuse a significant loss.

    Args:
        results: evaluations on the same queries, by model.
        against: the model in use.
        metrics: what counts.
        run: resamples and seed.

    Raises:
        RegressionError: a difference is below 0 with p < 0.05, corrected by Holm over models and metrics.
        CropsError: no metric has enough queries for a test.
    """
    found = {
        (name, metric): difference
        for name, one in results.items()
        if name != against
        for metric, difference in compare(one, results[against], run.evaluation.resamples, run.seed).items()
        if metric in metrics and difference.n > 0
    }
    if len(results) > 1 and all(one.n < MIN_QUERIES for one in found.values()):
        raise CropsError(
            f"no metric has {MIN_QUERIES} queries to compare with {against} on, so a test would say nothing; "
            "evaluate on a day with more searches"
        )
    corrected = dict(zip(found, holm([one.p for one in found.values()]), strict=True))
    table = Table(
        "model", "metric", "difference", "95 % interval", "p, corrected", title=f"Against {against}"
    )
    losses = []
    for (name, metric), one in found.items():
        p = corrected[name, metric]
        interval = one.ends("+.1f")
        told = "–" if one.n < MIN_QUERIES else f"{p:.3f}"
        table.add_row(name, metric, f"{100 * one.mean:+.2f}", interval, told)
        if one.mean < 0 and p < SIGNIFICANT:
            losses.append(f"{name} loses {-100 * one.mean:.2f} points of {metric} {interval}, p = {p:.3f}")
    console.print(table)
    if losses:
        raise RegressionError(f"significantly worse than {against}: {'; '.join(losses)}")


def refuse_trained_on(model: str, test_day: str) -> None:
    """Refuse a model of ours whose samples were mined from the test day; others do not name their samples.

    Raises:
        CropsError: test and training overlap.
    """
    manifest = Path(model) / MANIFEST
    if not manifest.is_file():
        return
    samples = json.loads(manifest.read_text()).get("samples")
    report = Path(samples or "") / "report.json"
    if samples and report.is_file() and test_day in json.loads(report.read_text())["days"]:
        raise CropsError(
            f"{model} was trained on {samples}, mined from {test_day} too; evaluate it on a day that its "
            "training has not seen"
        )


def slices_of(logs: Path, samples: Path, testsets: TestSets, truth: Path | None, run: RunConfig) -> Slices:
    """Return what breakdowns need; the training day is the last one mined before the test day."""
    days = json.loads((samples / "report.json").read_text())["days"]
    train_day = max([day for day in days if day < testsets.day] or days)
    return build_slices(logs, train_day, testsets, truth, run.engine.memory)


def breakdown(results: Mapping[str, Evaluation], slices: Slices, k: int) -> Table:
    """Return recall by frequency of the query, and of clicked items by age: means in %."""
    by_name = {name: slices.queries.filter(pc.field("frequency") == name) for name in FREQUENCIES}
    groups = {name: own["query_id"].to_numpy() for name, own in by_name.items()}
    ages = [metric for metric in next(iter(results.values())).summary if "|age=" in metric and "/" in metric]
    ages = [metric for metric in ages if not metric.endswith(("/seen", "/unseen"))]
    heads = [f"{metric} {name}" for metric in ("CT", "QR") for name in groups]
    heads += [f"CT {metric.rpartition('=')[2]} items" for metric in ages]
    title = f"Recall@{k} by frequency of the query and age of the item, %"
    table = Table("model", *heads, title=title, caption="–: no such query has a value")
    names = file_names(list(results))
    for name, one in results.items():
        cells = [
            _mean(one, f"recall@{k}/{metric}", ids) for metric in ("ct", "qr") for ids in groups.values()
        ]
        cells += [_mean(one, metric, None) for metric in ages]
        table.add_row(names[name], *cells)
    return table


def _mean(one: Evaluation, metric: str, ids: np.ndarray | None) -> str:
    rows = one.values.filter((pc.field("metric") == metric) & pc.field("value").is_valid())
    values = rows["value"].to_numpy()
    if ids is not None:
        values = values[np.isin(rows["query_id"].to_numpy(), ids)]
    return f"{100 * values.mean():.1f}\nn = {len(values)}" if len(values) else "–"


def file_names(models: Sequence[str]) -> dict[str, str]:
    """Return a file name for each model: the last part of its path, the whole where two share that.

    Raises:
        CropsError: even the whole paths of two models give one file name.
    """
    last = {model: _plain(Path(model).resolve().name) for model in models}
    twice = {name for name, count in Counter(last.values()).items() if count > 1}
    names = {model: _plain(str(model)) if name in twice else name for model, name in last.items()}
    if len(set(names.values())) < len(names):
        raise CropsError(f"{', '.join(models)}: two of these give one file name; rename a folder")
    return names


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9+._-]+", "-", text).strip("-")
