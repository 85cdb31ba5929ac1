"""`crops split` and `train`: a retriever from graded samples; `crops evaluate`: models on a later day."""

from __future__ import annotations

import contextlib
import json
import operator
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow.parquet as pq
import typer

from crops import evaluation
from crops.cli.options import Options, brought, command, of_recipe, say_baseline, shown, verdict
from crops.config import RECIPES, RunConfig
from crops.engine.mined import days_seen, read_mined
from crops.errors import CropsError, RegressionError
from crops.evaluation import MIN_QUERIES, Evaluation, Slices, TestSets, build_slices
from crops.evaluation.trec import evaluate_run, read_qrels, read_run, write_qrels, write_run
from crops.labels import ALL_SOURCES, SEARCH_SOURCES, Source, parse_sources
from crops.outputs import (
    MANIFEST,
    RESOLVED_CONFIG,
    cache_folder,
    console,
    ended,
    publish,
    read_manifest,
    timed,
    to_json,
    write_manifest,
)
from crops.pipeline import (
    BM25,
    day_testsets,
    document_texts,
    load_documents,
    load_retriever,
    require_models,
    say_other_fields,
)
from crops.pretrained import with_readable_encoder
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
from crops.report.training import training_page
from crops.retrieval import ExactRetriever, load_items, own_ids
from crops.retrieval.catalogue import sample_texts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from crops import training

FEWEST_RESAMPLES = 100
"""During a training the means count, not their intervals."""


@command
def split(
    samples: Annotated[Path, typer.Argument(help="Output of `crops mine`.")],
    store: Annotated[str, typer.Argument(help="Where to: a folder, or a URI such as s3://bucket/samples.")],
    buckets: Annotated[
        int, typer.Option(help="How many; at least as many as there will be processes.", min=1)
    ] = 16,
    *,
    run: Annotated[RunConfig, Options()],
) -> dict[str, Any]:
    """Write samples in buckets of whole queries; each process of `crops train STORE` reads its share."""
    from crops import training

    found = training.split(samples, store, buckets, run.engine.memory)
    rows = sum(bucket["rows"]["samples"] for bucket in found["buckets"])
    ended(f"{rows:,} samples in {buckets} buckets in [bold]{store}[/bold]", f"crops train {store} MODEL")
    return found


@command
def train(
    samples: Annotated[str, typer.Argument(help="Output of `crops mine`, or of `crops split`: also a URI.")],
    out: Annotated[Path, typer.Argument(help="Folder for the model (a plain SentenceTransformer).")],
    encoder: str | None = None,
    init: str | None = None,
    sources: Annotated[
        str | None, typer.Option(help="Learn only from these, of search,p1,p2,p3.", show_default="all")
    ] = None,
    eval_logs: Annotated[
        Path | None,
        typer.Option(help="Accepted logs of a later day: evaluate during the training, keep the best."),
    ] = None,
    eval_day: Annotated[
        str | None, typer.Option(help="That day, YYYY-MM-DD; not the test day.", show_default="the last")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Drop the checkpoints of an interrupted run, do not resume.")
    ] = False,
    *,
    run: Annotated[
        RunConfig,
        Options(
            recipe="recipe",
            encoder="training.encoder",
            fields="document.fields",
            init="training.init",
            loss="training.loss",
            steps="training.steps",
            learning_rate="training.learning_rate",
            batch_queries="training.batch_queries",
            encode_chunk="training.encode_chunk",
            bf16="training.bf16",
            report_to="training.report_to",
            seed="seed",
        ),
    ],
) -> dict[str, Any]:
    """Train a dual encoder on ragged groups of graded documents; resumes if interrupted."""
    if init is not None and encoder is None:
        run = run.model_copy(update={"training": run.training.changed(encoder=_preset_of(Path(init)))})
    from crops import training  # torch takes seconds to import: not for --help

    keep = parse_sources(sources.split(",")) if sources else ALL_SOURCES
    if run.recipe is not None:
        _require_recipe(samples, keep if sources else None, run, split=training.is_split(samples))
    arm = training.Samples(Path(samples), keep, run.engine.memory, fields=run.document.fields)
    data = training.SplitSamples(samples, arm) if training.is_split(samples) else arm
    if isinstance(data, training.SplitSamples) and eval_logs is not None:
        raise CropsError("--eval-logs needs the output of `crops mine`, not of `crops split`")
    texts = data.sample_texts() if isinstance(data, training.SplitSamples) else sample_texts(samples)
    run = with_readable_encoder(texts, run)
    evaluation = None if eval_logs is None else _evaluation(eval_logs, eval_day, Path(samples), run)
    learned = training.train(
        data, out, run.training, seed=run.seed, cache=cache_folder(), evaluation=evaluation, fresh=fresh
    )
    if training.is_first_process():
        write_page(training_page([out]), out / "report.html")
        made = f"model in [bold]{out}[/bold], its curves in report.html"
        if training.is_split(samples):
            ended(made, verdict(shown(out), Path("MINED"), None, (), of_recipe(run)))
        else:
            _ended(made, Path(samples), out, keep, run)
    return learned


def _ended(made: str, samples: Path, out: Path, keep: Source, run: RunConfig) -> None:
    """Say what comes next, as exactly as the mining knows it: the verdict, and the baseline to see by."""
    logs, held, report, options = None, (), {}, of_recipe(run)
    with contextlib.suppress(CropsError):  # samples that are no mining train a model, too
        mined = read_mined(samples)
        samples, report = mined.folder, mined.report
        logs = next(iter(mined.logs)) if len(mined.logs) == 1 else None
        held = read_manifest(mined.folder, "mine").get("held_out", ())
    if report.get("sources", {}).get("p1", {}).get("theta") == "none":
        options += " --relevance none"
    if not keep & ~SEARCH_SOURCES:
        ended(made, verdict(f"MODEL {shown(out)}", samples, logs, held, options))
        return
    ended(made, verdict(shown(out), samples, logs, held, options))
    if run.recipe is None and brought(report):
        base = shown(out.with_name(f"{out.name}-base"))
        say_baseline(samples, base, verdict(f"{shown(out)} {base}", samples, logs, held, options))


def _require_recipe(samples: str, keep: Source | None, run: RunConfig, *, split: bool) -> None:
    """Refuse a recipe beside sources that are not its own, or samples that were mined otherwise.

    What is split does not say how it was mined.
    """
    recipe, remedy = f"--recipe {run.recipe}", "leave one of the two out"
    if keep is not None and keep != parse_sources(run.engine.sources):
        own = ",".join(run.engine.sources)
        raise CropsError(f"--sources contradicts {recipe}, which learns from {own}; {remedy}")
    if split:
        return
    mined = read_mined(Path(samples)).config
    for setting in (name for name in RECIPES[str(run.recipe)] if name.startswith("engine.")):
        of = operator.attrgetter(setting.removeprefix("engine."))
        if of(mined) != of(run.engine):
            raise CropsError(
                f"{samples} was mined with {setting} = {of(mined)!r}, {recipe} has {of(run.engine)!r}; "
                f"mine with {recipe}, or train without it"
            )


def _preset_of(model: Path) -> str:
    """Return the encoder that a model of ours was trained as; any other model is named by its folder."""
    if not model.is_dir():
        raise CropsError(f"{model} is not a folder; name the model to continue from")
    if not (model / RESOLVED_CONFIG).exists():
        return str(model)
    resolved = tomllib.loads((model / RESOLVED_CONFIG).read_text())
    return str(resolved.get("training", {}).get("encoder", model))


def _evaluation(logs: Path, day: str | None, samples: Path, run: RunConfig) -> training.Evaluation:
    """Return the evaluation on the CT and QR sets of a day, to be used during the training."""
    from crops import training
    from crops.encoders import rendering_of

    testsets = day_testsets(logs, day, None, samples, run)
    settings = run.evaluation.model_copy(update={"resamples": FEWEST_RESAMPLES})
    document = document_texts(logs, run, before=testsets.days[0])

    def metrics(encoder: SentenceTransformer) -> dict[str, float]:
        rendering = rendering_of(encoder).of(document.fields)
        ids, texts = load_items(logs, testsets.candidate_ids(), rendering, document.queries)
        retriever = ExactRetriever(encoder, ids, texts, render_query=rendering.query)
        summary = evaluation.evaluate(retriever, testsets, settings, run.seed).summary
        return {name: value.mean for name, value in summary.items()}

    return training.Evaluation(metrics, run.training.eval_metric)


# `crops evaluate`: models on the test sets of a day.

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
        judged = read_qrels(qrels)
        results = {
            name: evaluate_run(read_run(Path(name)), judged, run.evaluation, run.seed) for name in models
        }
        if out is not None:
            with publish(out, COMMAND) as folder:
                write_results(folder, results)
                write_manifest(folder, COMMAND, config=run.dump(), seconds={}, qrels=str(qrels))
        return finish(results, against, Basis(qrels.name), run, out)
    if logs is None:
        raise CropsError("name the logs of the test day with --logs, or qrels for TREC runs with --qrels")
    require_models(models)
    testsets = day_testsets(logs, day, truth, samples, run)
    slices = None
    if samples is not None:
        mined = json.loads((samples / "report.json").read_text())["days"]
        train_day = max([one for one in mined if one < testsets.days[0]] or mined)  # the last one before
        slices = build_slices(logs, train_day, testsets, truth, run.engine.memory)
    results = _of_day(models, logs, testsets, slices, run, out, trec, expanded)
    # Nobody is behind what a simulation shows.
    k = run.engine.k if truth is None else min(run.engine.k, SIMULATED_USERS)
    served = next((one for one in models if one.partition(":")[0] != BM25), None)
    then = None if served is None else f"crops index {shown(served)} {shown(logs)}{of_recipe(run)}"
    return finish(results, against, Basis(testsets.day, testsets, slices, k), run, out, then)


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
    """Evaluate models on the test sets of a day of logs."""
    names = file_names(models)
    for name in models:
        for test_day in testsets.days:
            refuse_trained_on(name, test_day)
        say_other_fields(name, run.document.fields)
    results: dict[str, Evaluation] = {}
    seconds: dict[str, float] = {}
    catalogue = load_documents(logs, run, testsets.days[0], testsets.candidate_ids(), expanded=expanded)
    own = own_ids(logs) if trec else {}
    with publish(out, COMMAND) if out else contextlib.nullcontext() as folder:
        for name in models:
            with timed(seconds, f"evaluate {name}"):
                retriever = load_retriever(name, *catalogue, logs)
                results[name] = evaluation.evaluate(retriever, testsets, run.evaluation, run.seed, slices)
                if folder is not None and trec:
                    depth = max(run.evaluation.recall_k, run.evaluation.ndcg_k)
                    asked, path = testsets.queries, folder / f"{names[name]}.run"
                    ids, scores = retriever.search(asked["query"].to_pylist(), depth)
                    write_run(path, asked["query_id"].to_numpy(), ids, scores.tolist(), names[name], own)
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
    """Print the results, leave their page in `out`, and compare them with the model in use (`against`)."""
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
    """Refuse a significant loss against the model in use: p < 0.05, corrected by Holm.

    Args:
        found: the differences to it.
        against: the model in use.
        several: whether there is another model.
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
    """Refuse a model of ours whose samples were mined from the test day; others do not name their samples."""
    manifest = Path(model) / MANIFEST
    if not manifest.is_file():
        return
    made = json.loads(manifest.read_text())
    samples, days = made.get("samples"), made.get("days", [])
    if samples and not days and (Path(samples) / "report.json").is_file():
        days = days_seen(Path(samples))
    if samples and test_day in days:
        raise CropsError(
            f"{model} was trained on {samples}, mined from {test_day} too; evaluate it on a day that its "
            "training has not seen"
        )


def file_names(models: Sequence[str]) -> dict[str, str]:
    """Return a file name for each model: the last part of its path, the whole where two share that."""

    def plain(text: str) -> str:
        return re.sub(r"[^A-Za-z0-9+._-]+", "-", text).strip("-")

    last = {model: plain(Path(model).resolve().name) for model in models}
    twice = {name for name, count in Counter(last.values()).items() if count > 1}
    names = {model: plain(model) if name in twice else name for model, name in last.items()}
    if len(set(names.values())) < len(names):
        raise CropsError(f"{', '.join(models)}: two of these give one file name; rename a folder")
    return names
