"""`crops reproduce`: the paper's tables and figures, and a verdict on each of its claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crops.cli.options import Options, command
from crops.config import RunConfig
from crops.errors import CropsError
from crops.outputs import console
from crops.pipeline import packaged_documents, require_encoder
from crops.report import printed
from crops.reproduce.design import (
    DEFAULT,
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
from crops.reproduce.make import opened
from crops.reproduce.produce import PAGE, produce, produce_map, tuned, write_all, write_docs


@command
def reproduce(
    what: Annotated[str, typer.Argument(help=f"One of {', '.join(TARGETS)}.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the cells and tables; what is there is not made again.")
    ] = Path("out/reproduce"),
    size: Annotated[str, typer.Option(help="Size of the worlds.")] = "small",
    seeds: Annotated[str, typer.Option(help="How many seeds, or a list, e.g. 0,1,2.")] = "3",
    worlds: Annotated[
        str, typer.Option(help="default, dcm, pbm, null, weak, strong, judged: a list of these, or all.")
    ] = "default",
    tune: Annotated[
        bool, typer.Option("--tune", help="Tune each method again, on held-out queries of the training day.")
    ] = False,
    folds: Annotated[
        int, typer.Option(min=1, max=10, help="Tenths of the queries that --tune holds out, in turn.")
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
    wanted = [[build_world(name, size, seed, judged) for seed in numbers] for name in parse_worlds(worlds)]
    documents = generated_files(generated, packaged_documents())
    require_encoder(run.training)
    tables = out / (target if worlds == DEFAULT else f"{target}-{worlds.replace(',', '-')}")
    with opened(out):
        design = Design(run, stored_points(run.training.encoder), documents)
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
    console.print(f"open [bold]{tables / PAGE}[/bold]")
    if made.failed:
        label, why = next(iter(made.failed.items()))
        raise CropsError(
            f"{len(made.failed)} of the cells failed, e.g. {label}: {why}; run again to retry them"
        )
    return tables / PAGE
