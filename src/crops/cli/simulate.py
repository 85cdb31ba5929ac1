"""`crops simulate`, `annotate`, `platform-report`, `reproduce` and `demo`."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import typer
from markupsafe import Markup

from crops import platform, simulation
from crops.cli.experiment import bubble_section
from crops.cli.models import evaluate, write_results
from crops.cli.options import Options, command, option
from crops.config import RunConfig, TrainingConfig, with_recipe
from crops.engine.documents import NothingToAddError, expand
from crops.engine.mined import read_mined
from crops.errors import CropsError
from crops.evaluation import Evaluation, Fold, TestSets, evaluate_judged, folds, pool_evaluations
from crops.labels import SEARCH_SOURCES, Source
from crops.logs import Judged, check, load_judged
from crops.outputs import (
    MANIFEST,
    cache_folder,
    console,
    ended,
    is_done,
    publish,
    read_manifest,
    timed,
    to_json,
    write_manifest,
)
from crops.pipeline import (
    BM25,
    day_testsets,
    evaluate_models,
    load_retriever,
    mine_day,
    packaged_documents,
    require_encoder,
    train_model,
)
from crops.platform import ANCHORS, BUBBLE, ROUTES, Days, distributions, observe
from crops.pretrained import with_readable_encoder, with_readable_theta
from crops.report import Figure, Line, Page, Section, Table, printed, write_page
from crops.report.demo import Arm, coverage_text, demo_page, judged_page
from crops.report.evaluation import means_tables
from crops.report.side_by_side import Cases, Reasons, choose_queries, side_by_side
from crops.reproduce.design import (
    ALL,
    DEFAULT,
    LAYOUTS,
    MAP_NAME,
    TARGETS,
    Design,
    build_world,
    generated_files,
    parse_seeds,
    parse_target,
    parse_worlds,
    stored_points,
)
from crops.reproduce.make import opened, remove_outdated
from crops.reproduce.produce import PAGE, produce, produce_map, tuned, write_all, write_docs
from crops.retrieval.catalogue import SAMPLED, sample_texts
from crops.simulation import make_world


@command
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to write: logs/, truth/, deployed_model/.")],
    *,
    null: Annotated[
        bool,
        typer.Option("--null", help="Later queries and the feed say nothing about what a searcher needs."),
    ] = False,
    run: Annotated[
        RunConfig,
        Options(
            size="platform.size",
            edition="platform.edition",
            days="platform.days",
            world="platform.world",
            bubble="platform.bubble",
            click_model="platform.click_model",
            seed="seed",
        ),
    ],
) -> Path:
    """Simulate a short-video platform: search and feed logs, and the truth next to them.

    On the first day the search finds items by words and popularity only. The platform then trains its own
    dense retriever on that day's clicks and deploys it: from there on it learns from what it showed.
    """
    if null:
        run = run.model_copy(update={"platform": run.platform.model_copy(update={"informative": False})})
    simulation.simulate(out, run)
    ended(f"platform in [bold]{out}[/bold]", f"crops check {out / 'logs'} {out / 'checked'}")
    return out


@command
def annotate(
    world: Annotated[Path, typer.Argument(help="Folder that `crops simulate` wrote.")],
    samples: Annotated[Path, typer.Argument(help="A mining of its training day: its pairs are judged.")],
    out: Annotated[Path, typer.Option(help="CSV to write: day, query, item_id, grade.")],
    budget: Annotated[int, typer.Option(help="Judgements.", min=1)] = 2000,
    noise: Annotated[float, typer.Option(help="Share of wrong grades.", min=0, max=1)] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the pairs and of the errors.")] = 0,
) -> Path:
    """Have a simulated editor judge pairs of query and item: grades of 0 to 3, some of them wrong.

    The editor reads both and knows no searcher: an item is as good as it is for any need that the query was
    searched with. Pairs are drawn alike from all origins. The file is no truth; learning may read it
    (`crops theta fit`). The test day is refused.
    """
    mined = read_mined(samples)
    days = read_manifest(world, "simulate")["days"]
    if days["test"] in mined.report["days"]:
        raise CropsError(f"{samples} was mined from {days['test']}, the test day: nobody judges its answers")
    ((logs, _), *_) = mined.open_logs(None)
    judged = platform.annotate(
        mined.folder,
        logs.path,
        mined.report["days"],
        world / "truth",
        out,
        budget=budget,
        noise=noise,
        seed=seed,
    )
    console.print(
        f"{len(judged):,} judgements in [bold]{out}[/bold]; "
        f"next: crops theta fit {out} --samples {samples} --out THETA"
    )
    return out


COMMAND = "platform-report"
OLD_SYSTEM = "baseline"
"""Name of the multi-stage baseline in the anchors."""
_CTR = "CTR at rank "


@dataclass(frozen=True)
class World:
    """A simulated world and what was measured of it."""

    name: str
    measured: dict[str, float]
    curves: dict[str, tuple[list[float], list[float]]]
    version: str


@command
def platform_report(
    world: Annotated[list[Path], typer.Argument(help="Folders that `crops simulate` wrote.")],
    out: Annotated[
        Path, typer.Option(help="Folder for report.html, realism.json and the old system's runs.")
    ],
    *,
    run: Annotated[RunConfig, Options()],
) -> Path:
    """Compare simulated platforms with public figures, row by row, and read the bubble off their logs.

    For each world the old system is evaluated as the paper does it: BM25 and the multi-stage baseline,
    trained on the training day and tested two days later. A world that OUT already holds is not evaluated
    again.
    """
    if len({folder.name for folder in world}) < len(world):
        raise CropsError("two worlds have the same folder name, which names them in the report; rename one")
    worlds = [_measure(folder, out / folder.name, run) for folder in world]
    page = realism_page(worlds)
    with publish(out / "report", COMMAND) as folder:
        write_page(page, folder / "report.html")
        (folder / "realism.json").write_text(to_json({one.name: one.measured for one in worlds}))
        write_manifest(
            folder, "platform-report", config=run.dump(), seconds={}, worlds=[one.name for one in worlds]
        )
    for table in (table for section in page.sections for table in section.tables):
        console.print(printed(table))
    ended(f"open [bold]{out / 'report' / 'report.html'}[/bold]")
    return out / "report" / "report.html"


def _measure(world: Path, out: Path, run: RunConfig) -> World:
    manifest = read_manifest(world, "simulate")
    days = Days(manifest["days"]["train"], manifest["days"]["test"])
    logs, truth = world / "logs", world / "truth"
    measured = observe(logs, days, ROUTES, truth)
    if not (out / MANIFEST).exists() or read_manifest(out, COMMAND)["world"] != manifest:
        _evaluate_old_system(logs, truth, days, out, run)
        write_manifest(out, COMMAND, config=run.dump(), seconds={}, world=manifest)
    summary = json.loads((out / "evaluation" / "summary.json").read_text())
    for model, metrics in summary.items():
        name = BM25 if model == BM25 else OLD_SYSTEM
        measured |= {f"{name} {metric}": value["mean"] for metric, value in metrics.items() if value["n"]}
    return World(world.name, measured, distributions(logs, days), manifest["platform"])


def _evaluate_old_system(logs: Path, truth: Path, days: Days, out: Path, run: RunConfig) -> None:
    check(logs, out / "checked", run.engine.memory)
    accepted = out / "checked" / "accepted"
    engine = run.engine.model_copy(update={"sources": ("search",)})
    mine_day(accepted, days.train, out / "samples", run.model_copy(update={"engine": engine}))
    train_model(out / "samples", out / OLD_SYSTEM, run.training, run.seed, fields=run.document.fields)
    models, samples, found = [BM25, str(out / OLD_SYSTEM)], out / "samples", out / "evaluation"
    evaluate(models, logs=accepted, day=[days.test], truth=truth, samples=samples, out=found, run=run)


def realism_page(worlds: Sequence[World]) -> Page:
    """Return the page of simulated worlds next to what was measured on people."""
    measured = {anchor: [one.measured.get(anchor.name, math.nan) for one in worlds] for anchor in ANCHORS}
    verdicts = [
        (anchor.name, holds)
        for anchor, values in measured.items()
        for value in values
        if not math.isnan(value) and (holds := anchor.holds(value)) is not None
    ]
    failing = list(dict.fromkeys(name for name, holds in verdicts if not holds))
    headline = [
        f"{sum(holds for _, holds in verdicts)} of {len(verdicts)} figures with a range are inside it, over "
        f"{len(worlds)} world(s)."
    ]
    if failing:
        headline.append(f"Outside in at least one world: {', '.join(failing)}.")
    names = [one.name for one in worlds]
    realism = [
        [
            f"{anchor.name}\n{anchor.source}" if anchor.source else anchor.name,
            anchor.figure,
            "–" if anchor.low is None else f"{anchor.low:.2f}–{anchor.high:.2f}",
            *(_cell(value, anchor.holds(value)) for value in values),
        ]
        for anchor, values in measured.items()
    ]
    bubble = [[name, *(_cell(one.measured.get(name, math.nan)) for one in worlds)] for name in BUBBLE]
    lead = (
        "Shares in [0, 1] on the test day. Only these rows were tuned, on the old system alone. "
        "–: the logs have no such case."
    )
    elsewhere = Table("Realism", ["Row", "Elsewhere", "Accepted", *names], realism, headed=False)
    forming = Table("The filter bubble", ["Row", *names], bubble, headed=False)
    return Page(
        "Does the platform look real?",
        headline,
        [
            Section("Realism", lead, [elsewhere]),
            Section(forming.title, "What the logs show of it, and of what they never showed.", [forming]),
            Section("Drawn", figures=[_figure(title, worlds) for title in worlds[0].curves]),
        ],
        [(one.name, f"platform {one.version}") for one in worlds],
    )


def _cell(value: float, holds: bool | None = None) -> str:
    if math.isnan(value):
        return "–"
    return Markup("<b>outside </b>{}").format(f"{value:.3f}") if holds is False else f"{value:.3f}"


def _figure(title: str, worlds: Sequence[World]) -> Figure:
    curves = {one.name: one.curves[title] for one in worlds}
    if title == "CTR by rank":
        known = {one.name.removeprefix(_CTR): one.figure for one in ANCHORS if one.name.startswith(_CTR)}
        curves = {"CosoBe": (list(map(float, known)), list(map(float, known.values()))), **curves}
    return Figure(title, [Line(name, x, y, tone) for tone, (name, (x, y)) in enumerate(curves.items(), 1)])


@command
def reproduce(
    what: Annotated[str, typer.Argument(help=f"One of {', '.join(TARGETS)}.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the cells and tables; what is there is not made again.")
    ] = Path("out/reproduce"),
    size: Annotated[str, typer.Option(help="Size of the worlds.")] = "small",
    seeds: Annotated[str, typer.Option(help="How many seeds, or a list, e.g. 0,1,2.")] = "3",
    worlds: Annotated[
        str, typer.Option(help="default, dcm, pbm, null, weak, strong, v2, judged: a list of these, or all.")
    ] = "default",
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="Tune each method again, on held-out queries of the training days of all seeds."
        ),
    ] = False,
    folds: Annotated[
        int, typer.Option(min=1, max=10, help="Tenths of a world's queries that --tune holds out, in turn.")
    ] = 1,
    trainings: Annotated[
        int, typer.Option(min=1, max=10, help="Trainings of each row of a table in each world.")
    ] = 1,
    generated: Annotated[
        Path | None,
        typer.Option(
            help="Folder of LLM documents, one <size>-<world>-<seed>.jsonl for each world.",
            show_default="those that come with crops",
        ),
    ] = None,
    judged: Annotated[
        Path | None, typer.Option(help="Docs, queries and qrels of the world `judged`, as Parquet.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="First remove cells that were evaluated before all metrics were.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    docs: Annotated[
        Path | None,
        typer.Option(
            help="Also write the tables as Markdown here, e.g. docs/results.md, and their cells next to them."
        ),
    ] = None,
    *,
    run: Annotated[RunConfig, Options(encoder="training.encoder")],
) -> Path:
    """Measure the paper's methods under one trainer, one budget and one evaluation, and judge its claims.

    Every cell of a table is measured once and kept; an interrupted run resumes. The tables are
    printed, and written to OUT/WHAT (OUT/WHAT-WORLDS unless WORLDS is `default`) as report.html, results.md,
    tables.json and verdicts.json.
    """
    target, numbers = parse_target(what), parse_seeds(seeds)
    if trainings > 1 and target not in (*LAYOUTS, ALL):
        raise CropsError(f"--trainings {trainings}: {target} has one training a world; name a table, or all")
    wanted = [[build_world(name, size, seed, judged) for seed in numbers] for name in parse_worlds(worlds)]
    documents = generated_files(generated, packaged_documents())
    require_encoder(run.training)
    tables = out / (target if worlds == DEFAULT else f"{target}-{worlds.replace(',', '-')}")
    with opened(out):
        if again:
            console.print(f"{remove_outdated(out):,} cells of older metrics removed")
        design = Design(run, stored_points(run.training.encoder), documents, trainings)
        if tune:
            design = tuned(design, target, wanted[0], out, folds)
        if target == MAP_NAME:
            made = produce_map(design, size, numbers, out, jobs)
        else:
            made = produce(target, wanted, design, out, jobs)
        write_all(made, tables)
        if docs is not None:
            write_docs(made, docs)
    for section in made.page.sections:
        for table in section.tables[:1]:  # the others are in the files
            console.print(printed(table, lines=True))
    ended(f"open [bold]{tables / PAGE}[/bold]")
    if made.failed:
        label, why = next(iter(made.failed.items()))
        raise CropsError(
            f"{len(made.failed)} of the cells failed, e.g. {label}: {why}; run again to retry them"
        )
    return tables / PAGE


# `crops demo`: a filter bubble forms and breaks, in one command.

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
    for table in means_tables(results, f"test day {test_day}. {coverage_text(mined)}"):
        console.print(printed(table))
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


# `crops demo --judged`: the same training, evaluation and report on real texts and human grades.


FOLDS = 5
LOSSES = ("infonce_binary", "h_infonce")
DOCS_PER_GRADE = 8
"""Documents drawn per grade and step: a judged query has a few dozen, not the hundreds of a log."""


def judged_demo(folder: Path, out: Path, run: RunConfig, positive_label: int | None) -> Path:
    """Compare BM25, the untrained encoders and both losses on a judged collection, split by query."""
    start = time.perf_counter()
    seconds: dict[str, float] = {}
    judged = load_judged(folder, positive_label)
    if judged.rejects:
        console.print(f"left out: {judged.rejects}")
    console.print(f"document text = {' + '.join(judged.text_columns)}")
    run = with_readable_encoder([*judged.texts[:SAMPLED], *judged.queries[:SAMPLED]], run)
    parts = folds(judged.query_ids(), FOLDS, run.seed)
    results = {}
    for name in dict.fromkeys([BM25, "minilm", run.training.encoder]):
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
    for table in means_tables(results, f"{folder.name}, {len(judged.queries)} queries in {FOLDS} folds"):
        console.print(printed(table))
    ended(f"open [bold]{out / 'report.html'}[/bold]")
    return out / REPORT


def _cross_validated(loss: str, judged: Judged, parts: list[Fold], out: Path, run: RunConfig) -> Evaluation:
    """Train on four folds, test on the fifth, and put the five test parts together."""
    from crops import training  # torch takes seconds to import: not for --help

    docs = pa.table({"doc_id": judged.item_ids(), "text": pa.array(judged.texts)})
    queries = pa.table({"query_id": judged.query_ids(), "text": pa.array(judged.queries)})
    grades = judged.judgements.rename_columns(["query_id", "doc_id", "grade"])
    evaluations = []
    for number, fold in enumerate(parts):
        known = grades.filter(pc.is_in(grades["query_id"], pa.array(fold.train)))
        data = training.from_judgements(docs, queries, known)
        changed = {
            "loss": loss,
            "positive_label": judged.positive_label,
            "docs_per_source": max(run.training.docs_per_source, DOCS_PER_GRADE),
            "batch_queries": min(run.training.batch_queries, max(2, data.groups // 2)),
        }
        settings = TrainingConfig(**{**run.training.model_dump(), **changed})
        model = out / "models" / f"{loss}-{number}"
        training.train(data, model, settings, seed=run.seed, cache=cache_folder())
        retriever = load_retriever(model, judged.item_ids(), judged.texts)
        evaluations.append(evaluate_judged(retriever, judged, fold.test, run.evaluation, run.seed))
    return pool_evaluations(evaluations, run.evaluation.resamples, run.seed)
