"""`crops demo`: a filter bubble forms and breaks, in one command."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
import pyarrow.compute as pc
import typer

from crops.cli.evaluate import write_results
from crops.cli.experiment import bubble_section
from crops.cli.options import Options, command, option
from crops.config import RunConfig, TrainingConfig, with_recipe
from crops.engine.documents import NothingToAddError, expand
from crops.errors import CropsError
from crops.evaluation import Evaluation, Fold, TestSets, evaluate_judged, folds, pool_evaluations
from crops.labels import SEARCH_SOURCES, Source
from crops.logs import Judged, load_judged
from crops.outputs import cache_folder, console, ended, publish, timed, write_manifest
from crops.pipeline import (
    BM25,
    day_testsets,
    evaluate_models,
    is_done,
    load_retriever,
    make_world,
    mine_day,
    packaged_documents,
    require_encoder,
    train_model,
    with_readable_encoder,
    with_readable_theta,
)
from crops.report import printed, write_page
from crops.report.demo import (
    Arm,
    coverage_text,
    demo_page,
    judged_page,
)
from crops.report.evaluation import means_tables
from crops.report.side_by_side import Cases, Reasons, choose_queries, side_by_side
from crops.retrieval.catalogue import SAMPLED, sample_texts

if TYPE_CHECKING:
    from crops.training import TrainingData

BASELINE = "baseline: search labels only"
MIN_P3_COVERAGE = 0.05
"""Below this share of training queries with a generated document, +P3 is not tested."""


def choose_arms(p3_share: float) -> tuple[dict[str, Source], dict[str, str]]:
    """Return the arms of the ablation, cumulative as in Table 3, and those left out with the reason.

    Args:
        p3_share: share of the training queries with a generated document.
    """
    p1 = SEARCH_SOURCES | Source.REFORMULATION
    p2 = p1 | Source.FEED
    arms = {BASELINE: SEARCH_SOURCES, "+ P1": p1}
    if p3_share < MIN_P3_COVERAGE:
        reason = f"{100 * p3_share:.1f} % of the training queries have a generated document; it takes 5 %"
        return {**arms, "P1 + P2": p2}, {"+ P3": reason}
    return {**arms, "+ P2": p2, "+ P3 = CroPS": p2 | Source.KNOWLEDGE}, {}


@command
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("out/demo"),
    judged: Annotated[
        Path | None,
        typer.Option(help="Instead of the simulation: a folder with docs, queries and qrels Parquet files."),
    ] = None,
    positive_label: Annotated[
        int | None,
        typer.Option(help="With --judged: lowest grade that counts as relevant.", show_default="the top"),
    ] = None,
    encoder: Annotated[str | None, option("training.encoder")] = None,
    *,
    run: Annotated[
        RunConfig,
        Options(size="platform.size", language="platform.language", recipe="recipe", seed="seed"),
    ],
) -> Path:
    """Simulate a platform, mine its logs, train with each source added, and report what changed.

    The last rows are ours: queries of rewordings in the texts that are searched, and `recommended`.
    With --recipe paper they are left out; with --recipe recommended all arms have its settings.
    """
    simulated = run  # the platform's own model is what its settings say, whatever encoder the arms have
    if encoder is not None:
        run = run.model_copy(update={"training": run.training.changed(encoder=encoder)})
    if judged is None and positive_label is not None:
        raise CropsError("--positive-label is the grade of a collection; name it with --judged")
    if judged is not None:
        simulation = sorted(run.platform.model_fields_set & {"size", "language"})
        if simulation := [*simulation, *(["recipe"] if run.recipe is not None else [])]:
            raise CropsError(
                f"--{simulation[0]} is of the simulation; --judged compares two losses on given grades"
            )
        return judged_demo(judged, out, run, positive_label)
    start = time.perf_counter()
    require_encoder(run.training)
    seconds: dict[str, float] = {}
    if is_done(out / "world"):  # nothing of a former demo may stand beside another world
        for folder in (one for pattern in _MADE for one in out.glob(pattern)):
            shutil.rmtree(folder)
        (out / REPORT).unlink(missing_ok=True)
    world = make_world(out, simulated, again=True)
    logs, truth, samples = world.logs, world.truth, out / "samples"
    run = with_readable_encoder(sample_texts(logs), with_readable_theta(logs, run))
    train_day, test_day = world.day("train"), world.day("test")
    mined = mine_day(logs, train_day, samples, run, packaged_documents())
    tested, not_tested = choose_arms(mined["p3_coverage"]["share_of_queries"] or 0.0)
    if "p3" not in run.engine.sources:
        not_tested = dict.fromkeys(not_tested, "p3 is not among engine.sources")
    arms = []
    for name, sources in tested.items():
        console.print(f"[bold]{name}[/bold]")
        arms.append(Arm(name, out / "models" / f"{int(sources):03d}", sources))
        train_model(samples, arms[-1].folder, run.training, run.seed, sources, run.document.fields)
    with timed(seconds, "evaluate"):
        testsets = day_testsets(logs, test_day, truth, samples, run)
        models: dict[str, str | Path] = {
            "BM25": BM25,
            f"{run.training.encoder}, untrained": run.training.encoder,
            "deployed: trained on its own clicks": world.world / "deployed_model",
            **{arm.name: arm.folder for arm in arms},
        }
        results, retrievers = evaluate_models(models, logs, testsets, run)
        if run.recipe != "paper":
            ours, left_out = _ours(out / "recommended", logs, train_day, testsets, run, arms[0])
            results, not_tested = results | ours, not_tested | left_out
        with publish(out / "evaluation", "evaluate") as folder:
            write_results(folder, results)
            facts = {"day": test_day, "counts": testsets.counts}
            write_manifest(folder, "evaluate", config=run.dump(), seconds={}, **facts)
    with timed(seconds, "look up the evidence"), Reasons(samples, logs, truth, train_day) as reasons:
        pair = [(name, retrievers[name]) for name in (BASELINE, arms[-1].name)]
        summary, chosen = choose_queries(logs, truth, test_day, pair[0][1], pair[1][1])
        cases = Cases([side_by_side(asked, pair[0], pair[1], reasons) for asked in chosen], summary)
    seconds["total"] = time.perf_counter() - start
    bubble = bubble_section(logs, truth)
    page = demo_page(run, mined, arms, results, not_tested, bubble, cases, seconds)
    write_page(page, out / REPORT)
    _print_means(results, f"test day {test_day}. {coverage_text(mined)}")
    ambiguous = (f", e.g. “{one.text}”" for one in chosen if one.need_id is None)
    ended(
        f"open [bold]{out / 'report.html'}[/bold] ({seconds['total'] / 60:.1f} minutes)",
        f"crops serve {out}    # before and after in a browser{next(ambiguous, '')}",
    )
    return out / REPORT


REPORT = "report.html"
_MADE = ("index/[0-9][0-9][0-9]", "models/[0-9][0-9][0-9]", "samples", "recommended", "evaluation")
"""Folders that a demo makes of its world; what else lies in index/ and models/ is somebody's own."""
EXPANDED, RECOMMENDED = "ours: baseline, expanded", "ours: recommended"


def _ours(
    out: Path, logs: Path, day: str, testsets: TestSets, run: RunConfig, baseline: Arm
) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """Evaluate the baseline with the queries of rewordings in its texts, and the recipe `recommended`.

    Where no query of enough people was reworded, both are left out; returned is also why.
    """
    own = with_recipe(run, "recommended")
    samples, model, expanded = out / "samples", out / "model", out / "expanded"
    mine_day(logs, day, samples, own)
    try:
        expand(samples, expanded, own.expansion)  # its rewordings are not filtered by theta
    except NothingToAddError as error:
        return {}, dict.fromkeys((EXPANDED, RECOMMENDED), str(error))
    console.print(f"[bold]{RECOMMENDED}[/bold]")
    train_model(samples, model, own.training, own.seed, fields=own.document.fields)
    found = evaluate_models({EXPANDED: baseline.folder}, logs, testsets, run, expanded)[0]
    return found | evaluate_models({RECOMMENDED: model}, logs, testsets, own, expanded)[0], {}


def _print_means(results: dict[str, Evaluation], title: str) -> None:
    for table in means_tables(results, title):
        console.print(printed(table))


# `crops demo --judged`: the same training, evaluation and report on real texts and human grades.


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
    run = with_readable_encoder([*judged.texts[:SAMPLED], *judged.queries[:SAMPLED]], run)
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
    write_page(judged_page(run, judged, results, seconds), out / REPORT)
    _print_means(results, f"{folder.name}, {len(judged.queries)} queries in {FOLDS} folds")
    ended(f"open [bold]{out / 'report.html'}[/bold]")
    return out / REPORT


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
