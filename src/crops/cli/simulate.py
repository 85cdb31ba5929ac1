"""`crops simulate`: days of behaviour on a platform whose own retriever learns from its own clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crops import pipeline
from crops.cli.options import DEFAULTS, ConfigOption, SeedOption, command
from crops.config import load_config
from crops.outputs import console
from crops.platform import SIZES


@command
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to write: logs/, truth/, deployed_model/.")],
    size: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(SIZES)}.", show_default=DEFAULTS.platform.size)
    ] = None,
    days: Annotated[
        int | None,
        typer.Option(help="Days: warm-up, train, gap, test.", show_default=str(DEFAULTS.platform.days)),
    ] = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
    *,
    world: Annotated[
        str | None,
        typer.Option(
            help="topics, or a folder of docs, queries and qrels.", show_default=DEFAULTS.platform.world
        ),
    ] = None,
    bubble: Annotated[
        str | None,
        typer.Option(help="Filter bubble: weak, default or strong.", show_default=DEFAULTS.platform.bubble),
    ] = None,
    click_model: Annotated[
        str | None, typer.Option(help="dbn, dcm or pbm.", show_default=DEFAULTS.platform.click_model)
    ] = None,
    null: Annotated[
        bool,
        typer.Option("--null", help="Later queries and the feed say nothing about what a searcher needs."),
    ] = False,
) -> Path:
    """Simulate a short-video platform: search and feed logs, and the truth beside them.

    On the first day the search finds items by words and popularity only. The platform then trains its own
    dense retriever on that day's clicks and deploys it: from there on it learns from what it showed.
    """
    run = load_config(
        config,
        seed=seed,
        platform__size=size,
        platform__days=days,
        platform__world=world,
        platform__bubble=bubble,
        platform__click_model=click_model,
        platform__informative=False if null else None,
    )
    pipeline.simulate(out, run)
    console.print(f"platform in [bold]{out}[/bold]; next: crops check {out / 'logs'} {out / 'checked'}")
    return out
