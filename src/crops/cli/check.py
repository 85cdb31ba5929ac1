"""`crops check`: which rows keep the contract, and why the others do not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crops import logs as logs_room
from crops.cli.command import command
from crops.outputs import console


@command
def check(
    logs: Annotated[Path, typer.Argument(help="Folder with items, search_impressions and feed_events.")],
    out: Annotated[
        Path | None, typer.Argument(help="Folder for accepted/ and rejects/; without it, only report.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory limit.")] = "2GB",
) -> logs_room.CheckReport:
    """Check logs against the table contracts: rejected rows go aside with their reasons, nothing is lost."""
    report = logs_room.check(logs, out, memory)
    console.print(logs_room.render(report))
    if out is not None:
        console.print(
            f"accepted rows in [bold]{out / 'accepted'}[/bold]; next: crops mine {out / 'accepted'} MINED"
        )
    return report
