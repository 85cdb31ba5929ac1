"""`crops mine`: logs in, graded training samples out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from crops.cli.options import Options, command
from crops.config import RunConfig
from crops.engine.daily import mine_daily
from crops.engine.mined import WINDOW
from crops.engine.without import read_without
from crops.errors import CropsError
from crops.logs import open_logs
from crops.outputs import console
from crops.pipeline import accepted_logs, mine_logs, mining_job


@command
def mine(
    logs: Annotated[Path, typer.Argument(help="Logs folder, raw or accepted by `crops check`.")],
    out: Annotated[Path, typer.Argument(help="Folder for samples, queries, evidence and items.")],
    generated: Annotated[
        Path | None, typer.Option(help="JSON lines of documents that an LLM wrote (P3).")
    ] = None,
    daily: Annotated[
        bool, typer.Option("--daily", help="Add the days to OUT/day=.../ and merge OUT/window.")
    ] = False,
    window: int | None = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Mine days again that are built already (--daily).")
    ] = False,
    without: Annotated[
        list[Path] | None,
        typer.Option(help="List of ids to leave out, users.txt or items.txt, one a line; repeat for both."),
    ] = None,
    *,
    run: Annotated[
        RunConfig,
        Options(
            day="engine.days",
            sources="engine.sources",
            engine="engine.engine",
            master="engine.master",
            memory="engine.memory",
            window="engine.daily.window",
            relevance="relevance.model",
            seed="seed",
        ),
    ],
) -> dict[str, Any]:
    """Mine graded samples: clicks and stages, reformulations (P1), feed (P2), LLM documents (P3).

    Consumed means clicked, liked or played for 18 s, or to the end if the item is shorter (a length of 0 is
    unknown). Of the pairs that one user adds to a query beyond the cap P1 stays first, then the higher theta;
    among equals --seed decides, as it does among the documents of a stage.

    Scores of theta are kept in the cache folder: a mining that was killed resumes from them. Raw logs are
    checked first: the accepted rows are mined, the rejected ones stay in OUT.checked/rejects.

    With --daily each day is mined once into a folder of its own, and OUT/window holds the last of them
    merged: what is older weighs less.

    With --without the result is that of logs that never held these users and items; report.json counts the
    rows. With --daily every day of the window that held them is mined again.
    """
    if not daily and (window is not None or rebuild):
        raise CropsError("--window and --rebuild belong to daily builds; add --daily")
    left_out = None if without is None else read_without(without)
    accepted = accepted_logs(logs, out.with_name(f"{out.name}.checked"), run)
    if daily:
        days = run.engine.days or ()
        job = mining_job(accepted, run, generated, left_out)
        report = mine_daily(open_logs(accepted), out, job, days, rebuild=rebuild)
    else:
        report = mine_logs(accepted, out, run, generated, left_out)
    if without is not None:
        left = report.get("input", {}).get("without", {})
        rows = ", ".join(f"{n:,} of {table}" for table, n in left.items() if n)
        console.print(f"rows left out: {rows or 'none, these users and items are not in the logs'}")
    samples = out / WINDOW if daily else out
    console.print(f"samples in [bold]{samples}[/bold]; next: crops train {samples} MODEL")
    return report
