"""`crops train`: a retriever from graded samples."""

from __future__ import annotations

import contextlib
import operator
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crops.cli.options import Options, brought, command, of_recipe, say_baseline, shown, verdict
from crops.config import RECIPES, RunConfig
from crops.engine.mined import read_mined
from crops.errors import CropsError
from crops.labels import ALL_SOURCES, SEARCH_SOURCES, Source, parse_sources
from crops.outputs import RESOLVED_CONFIG, cache_folder, ended, read_manifest
from crops.pipeline import day_testsets, document_texts, with_readable_encoder
from crops.report import write_page
from crops.report.training import training_page
from crops.retrieval import ExactRetriever, load_items
from crops.retrieval.catalogue import sample_texts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from crops.training import Evaluation

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
    """Return the encoder that a model of ours was trained as; any other model is named by its folder.

    Raises:
        CropsError: there is no such folder.
    """
    if not model.is_dir():
        raise CropsError(f"{model} is not a folder; name the model to continue from")
    if not (model / RESOLVED_CONFIG).exists():
        return str(model)
    resolved = tomllib.loads((model / RESOLVED_CONFIG).read_text())
    return str(resolved.get("training", {}).get("encoder", model))


def _evaluation(logs: Path, day: str | None, samples: Path, run: RunConfig) -> Evaluation:
    """Return the evaluation on the CT and QR sets of a day, to be used during the training."""
    from crops.encoders import rendering_of
    from crops.evaluation import evaluate
    from crops.training import Evaluation

    testsets = day_testsets(logs, day, None, samples, run)
    settings = run.evaluation.model_copy(update={"resamples": FEWEST_RESAMPLES})
    document = document_texts(logs, run, before=testsets.days[0])

    def metrics(encoder: SentenceTransformer) -> dict[str, float]:
        rendering = rendering_of(encoder).of(document.fields)
        ids, texts = load_items(logs, testsets.candidate_ids(), rendering, document.queries)
        retriever = ExactRetriever(encoder, ids, texts, render_query=rendering.query)
        summary = evaluate(retriever, testsets, settings, run.seed).summary
        return {name: value.mean for name, value in summary.items()}

    return Evaluation(metrics, run.training.eval_metric)
