"""`crops engine-report`: what a mining did, as table, JSON and one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from crops.cli.options import LogsOption, command
from crops.engine.report import insights
from crops.outputs import console, publish, write_manifest
from crops.report import printed, write_page
from crops.report.training import mining_page


@command
def engine_report(
    samples: Annotated[Path, typer.Argument(help="Output of `crops mine`, daily or not.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html and report.json.", show_default="SAMPLES.report"),
    ] = None,
    logs: LogsOption = None,
    owner: Annotated[
        bool, typer.Option("--owner", help="For the owner of the logs only: no limit k, and user ids.")
    ] = False,
) -> dict[str, Any]:
    """Report what a mining did: sources from candidates to kept, novelty, coverage, disagreements, influence.

    There is no report unless at least engine.k users searched, and are behind the positives of each source;
    rows that fewer are behind have no counts. The owner of the logs sees all.
    """
    found = insights(samples, logs, owner=owner)
    target = out or samples.with_name(f"{samples.name}.report")
    page = mining_page(found)
    with publish(target, "engine-report") as folder:
        write_page(page, folder / "report.html")
        (folder / "report.json").write_text(json.dumps(found, indent=2) + "\n")
        write_manifest(folder, "engine-report", config={}, seconds={}, samples=str(samples), owner=owner)
    for table in (one for section in page.sections for one in section.tables):
        console.print(printed(table))
    console.print(f"open [bold]{target / 'report.html'}[/bold]")
    return found
