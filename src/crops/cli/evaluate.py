"""`crops evaluate`: a model on the test sets of a day."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer

from crops import evaluation
from crops.cli.options import Options, command, of_recipe, shown
from crops.config import RunConfig
from crops.engine.mined import days_seen
from crops.errors import CropsError, RegressionError
from crops.evaluation import MIN_QUERIES, Evaluation, Slices, TestSets, build_slices
from crops.evaluation.trec import evaluate_run, read_qrels, read_run, write_qrels, write_run
from crops.outputs import MANIFEST, console, ended, publish, timed, to_json, write_manifest
from crops.pipeline import (
    BM25,
    day_testsets,
    load_documents,
    load_retriever,
    require_models,
    say_other_fields,
)
from crops.report import printed, write_page
from crops.report.evaluation import (
    Basis,
    Compared,
    breakdown_tables,
    compared,
    differences_table,
    evaluation_page,
    gain_tables,
    headline,
    main_metrics,
    means_tables,
    saturation,
)
from crops.report.side_by_side import SIMULATED_USERS
from crops.retrieval import own_ids

COMMAND = "evaluate"
PAGE = "report.html"
SIGNIFICANT = 0.05


@command
def evaluate(
    model: Annotated[
        list[str], typer.Argument(help="Model folders to compare, or bm25; with --qrels TREC run files.")
    ],
    logs: Annotated[Path | None, typer.Option(help="Accepted logs that hold the test day.")] = None,
    day: Annotated[
        list[str] | None,
        typer.Option(
            help="Test day, YYYY-MM-DD, or FIRST..LAST; repeat to pool several.",
            show_default="the last, up to today",
        ),
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
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html, summary.json and per-query values.")
    ] = None,
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
            recipe="recipe",
            fields="document.fields",
            relevance="relevance.model",
            independent="evaluation.independent_theta",
            seed="seed",
        ),
    ],
) -> dict[str, Evaluation]:
    """Evaluate models on a later day: clicks (CT), reformulations (QR) and, with truth, what is relevant.

    Several days are pooled: what a query asks for is then what was clicked for it on any of them. The first
    model is compared with each other one, or all with that of --against, on the same queries. With --samples
    also by frequency of the query. With --against a significant loss on any metric of the table (p < 0.05,
    corrected by Holm) raises `crops.errors.RegressionError`.
    """
    models = list(dict.fromkeys([*model, *([against] if against else [])]))
    if trec and out is None:
        raise CropsError("--trec writes into the folder of --out; name one")
    if qrels is not None:
        results = _of_runs(models, qrels, run, out)
        return finish(results, against, Basis(qrels.name), run, out)
    if logs is None:
        raise CropsError("name the logs of the test day with --logs, or qrels for TREC runs with --qrels")
    require_models(models)
    testsets = day_testsets(logs, day, truth, samples, run)
    slices = None if samples is None else slices_of(logs, samples, testsets, truth, run)
    results = _of_day(models, logs, testsets, slices, run, out, trec, expanded)
    # Nobody is behind what a simulation shows.
    k = run.engine.k if truth is None else min(run.engine.k, SIMULATED_USERS)
    served = next((one for one in models if one.partition(":")[0] != BM25), None)
    then = None if served is None else f"crops index {shown(served)} {shown(logs)}{of_recipe(run)}"
    return finish(results, against, Basis(testsets.day, testsets, slices, k), run, out, then)


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
        CropsError: one of them was trained on such a day.
    """
    names = file_names(models)
    for name in models:
        for test_day in testsets.days:
            refuse_trained_on(name, test_day)
        say_other_fields(name, run.document.fields)
    results: dict[str, Evaluation] = {}
    seconds: dict[str, float] = {}
    catalogue = load_documents(logs, run, testsets.days[0], testsets.candidate_ids(), expanded=expanded)
    own = own_ids(logs) if trec else {}
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
                    query_ids = asked["query_id"].to_numpy()
                    write_run(path, query_ids, ids, scores.tolist(), names[name], own)
        if folder is not None:
            write_results(folder, results)
            if trec:
                write_qrels(folder / "ct.qrels", testsets.ct, own)
                write_qrels(folder / "qr.qrels", testsets.qr, own)
                if testsets.truth is not None:
                    write_qrels(folder / "annotation.qrels", testsets.truth.annotation, own)
            counted = {"days": testsets.days, "counts": testsets.counts}
            write_manifest(folder, COMMAND, config=run.dump(), seconds=seconds, **counted)
    return results


def finish(
    results: dict[str, Evaluation],
    against: str | None,
    tested: Basis,
    run: RunConfig,
    out: Path | None,
    then: str | None = None,
) -> dict[str, Evaluation]:
    """Print the results, leave their page in `out`, and compare them with the model in use.

    Args:
        results: by model.
        against: the model in use.
        tested: what they were evaluated on.
        run: the settings.
        out: folder of the page.
        then: the command that comes next.

    Raises:
        RegressionError: another model is significantly worse.
    """
    names = file_names(list(results))
    if "BM25" not in names.values():
        names |= {BM25: "BM25"} if BM25 in names else {}
    notes = []
    if tested.testsets is not None and tested.testsets.qr_independent is not None:
        notes.append(agreement(tested.testsets.counts, run))
    named = {names[name]: one for name, one in results.items()}
    if (saturated := saturation(named, tested, run)) is not None:
        notes.append(saturated)
    other = None if against is None else names[against]
    found = compared(named, other, main_metrics(named), run)
    tables = list(means_tables(named, tested.title))
    if found:
        tables.append(differences_table(found))
    if tested.slices is not None:
        tables += breakdown_tables(named, tested.slices, run.evaluation.recall_k)
    tables += gain_tables(named, other, tested, run.evaluation.recall_k)
    for sentence in headline(named, found, run):
        console.print(sentence, markup=False, highlight=False)
    for table in tables:
        console.print(printed(table))
    for note in notes:
        console.print(note, markup=False)
    if out is None:
        console.print("with --out FOLDER: a page with these figures and the queries behind them")
    else:
        write_page(evaluation_page(named, other, tested, run, notes, found), out / PAGE)
        ended(f"open [bold]{out / PAGE}[/bold]", then)
    if other is not None:
        gate(found, other, several=len(results) > 1)
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


def gate(found: Compared, against: str, *, several: bool) -> None:
    """Refuse a significant loss against the model in use.

    Args:
        found: the differences to it.
        against: the model in use.
        several: whether there is another model.

    Raises:
        RegressionError: a difference is below 0 with p < 0.05, corrected by Holm over models and metrics.
        CropsError: no metric has enough queries for a test.
    """
    if several and all(one.n < MIN_QUERIES for one, _ in found.values()):
        raise CropsError(
            f"no metric has {MIN_QUERIES} queries to compare with {against} on, so a test would say nothing; "
            "evaluate on a day with more searches"
        )
    losses = [
        f"{name} loses {-100 * one.mean:.2f} points of {metric} {one.ends('+.1f')}, p = {p:.3f}"
        for (name, _, metric), (one, p) in found.items()
        if one.mean < 0 and p < SIGNIFICANT
    ]
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
    made = json.loads(manifest.read_text())
    samples, days = made.get("samples"), made.get("days", [])
    report = Path(samples or "") / "report.json"
    if samples and report.is_file():
        days = days_seen(Path(samples))
    if samples and test_day in days:
        raise CropsError(
            f"{model} was trained on {samples}, mined from {test_day} too; evaluate it on a day that its "
            "training has not seen"
        )


def slices_of(logs: Path, samples: Path, testsets: TestSets, truth: Path | None, run: RunConfig) -> Slices:
    """Return what breakdowns need; the training day is the last one mined before the test day."""
    days = json.loads((samples / "report.json").read_text())["days"]
    train_day = max([day for day in days if day < testsets.days[0]] or days)
    return build_slices(logs, train_day, testsets, truth, run.engine.memory)


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
