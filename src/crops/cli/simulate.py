"""`crops simulate`: days of behaviour on a platform whose own retriever learns from its own clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crops import pipeline
from crops.cli.options import Options, command
from crops.config import RunConfig
from crops.outputs import console


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
    console.print(f"platform in [bold]{out}[/bold]; next: crops check {out / 'logs'} {out / 'checked'}")
    return out
