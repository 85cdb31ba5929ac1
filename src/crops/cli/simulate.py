"""`crops simulate`, `platform-report` and `reproduce`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from markupsafe import Markup

from crops import pipeline, platform
from crops.cli.evaluate import evaluate
from crops.cli.options import Options, command
from crops.config import RunConfig
from crops.engine.mined import read_mined
from crops.errors import CropsError
from crops.logs import check
from crops.outputs import MANIFEST, console, ended, publish, read_manifest, to_json, write_manifest
from crops.pipeline import BM25, mine_day, packaged_documents, require_encoder, train_model
from crops.platform import ANCHORS, BUBBLE, ROUTES, Days, distributions, observe
from crops.report import Figure, Line, Page, Section, Table, printed, write_page
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
    pipeline.simulate(out, run)
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
BASELINE = "baseline"
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
    for section in page.sections:
        for table in section.tables:
            console.print(printed(table))
    ended(f"open [bold]{out / 'report' / 'report.html'}[/bold]")
    return out / "report" / "report.html"


def _measure(world: Path, out: Path, run: RunConfig) -> World:
    manifest = read_manifest(world, "simulate")
    days = Days(manifest["days"]["train"], manifest["days"]["test"])
    logs, truth = world / "logs", world / "truth"
    measured = observe(logs, days, ROUTES, truth)
    if not _evaluated(out, manifest):
        _evaluate_old_system(logs, truth, days, out, run)
        write_manifest(out, COMMAND, config=run.dump(), seconds={}, world=manifest)
    summary = json.loads((out / "evaluation" / "summary.json").read_text())
    for model, metrics in summary.items():
        name = BM25 if model == BM25 else BASELINE
        measured |= {f"{name} {metric}": value["mean"] for metric, value in metrics.items() if value["n"]}
    return World(world.name, measured, distributions(logs, days), manifest["platform"])


def _evaluated(out: Path, world: dict[str, Any]) -> bool:
    """Whether `out` holds the old system's evaluation on exactly this world."""
    return (out / MANIFEST).exists() and read_manifest(out, COMMAND)["world"] == world


def _evaluate_old_system(logs: Path, truth: Path, days: Days, out: Path, run: RunConfig) -> None:
    check(logs, out / "checked", run.engine.memory)
    accepted = out / "checked" / "accepted"
    engine = run.engine.model_copy(update={"sources": ("search",)})
    mine_day(accepted, days.train, out / "samples", run.model_copy(update={"engine": engine}))
    train_model(out / "samples", out / BASELINE, run.training, run.seed, fields=run.document.fields)
    models = [BM25, str(out / BASELINE)]
    evaluate(
        models,
        logs=accepted,
        day=[days.test],
        truth=truth,
        samples=out / "samples",
        out=out / "evaluation",
        run=run,
    )


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
    realism = Table(
        "Realism",
        ["Row", "Elsewhere", "Accepted", *names],
        [
            [
                f"{anchor.name}\n{anchor.source}" if anchor.source else anchor.name,
                anchor.figure,
                "–" if anchor.low is None else f"{anchor.low:.2f}–{anchor.high:.2f}",
                *(_cell(value, anchor.holds(value)) for value in values),
            ]
            for anchor, values in measured.items()
        ],
        headed=False,
    )
    bubble = Table(
        "The filter bubble",
        ["Row", *names],
        [[name, *(_cell(one.measured.get(name, math.nan)) for one in worlds)] for name in BUBBLE],
        headed=False,
    )
    return Page(
        "Does the platform look real?",
        headline,
        [
            Section(
                "Realism",
                "Shares in [0, 1] on the test day. Only these rows were tuned, on the old system alone. "
                "–: the logs have no such case.",
                [realism],
            ),
            Section(
                "The filter bubble",
                "What the logs show of it, and of what they never showed.",
                [bubble],
            ),
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
        curves = {"CosoBe": _cosobe(), **curves}
    return Figure(title, [Line(name, x, y, tone) for tone, (name, (x, y)) in enumerate(curves.items(), 1)])


def _cosobe() -> tuple[list[float], list[float]]:
    points = [
        (float(anchor.name.removeprefix(_CTR)), float(anchor.figure))
        for anchor in ANCHORS
        if anchor.name.startswith(_CTR)
    ]
    return [x for x, _ in points], [y for _, y in points]


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
        bool, typer.Option("--tune", help="Tune each method again, on held-out queries of the training day.")
    ] = False,
    folds: Annotated[
        int, typer.Option(min=1, max=10, help="Tenths of the queries that --tune holds out, in turn.")
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
            design = tuned(design, target, wanted[0][0], out, folds)
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
