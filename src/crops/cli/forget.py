"""`crops forget`: users and items out of everything that was mined."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crops.cli.command import command
from crops.cli.mine import job
from crops.cli.options import ConfigOption, LogsOption, RelevanceOption
from crops.cli.theta import NONE
from crops.config import load_config
from crops.engine.forget import ForgetReport, mined_with
from crops.engine.forget import forget as forget_ids
from crops.outputs import RESOLVED_CONFIG, console


@command
def forget(
    samples: Annotated[Path, typer.Argument(help="Output of `crops mine`, daily or not.")],
    user: Annotated[list[int] | None, typer.Option(help="Id of a user; repeat for more.")] = None,
    item: Annotated[list[int] | None, typer.Option(help="Id of an item; repeat for more.")] = None,
    logs: LogsOption = None,
    models: Annotated[
        list[Path] | None,
        typer.Option(help="Folder to search for trained models.", show_default="the folder around SAMPLES"),
    ] = None,
    relevance: RelevanceOption = None,
    config: ConfigOption = None,
) -> ForgetReport:
    """Remove users and items from mined samples, exactly, and list the models that must be retrained.

    The days that held them are mined again from the logs without their rows, with the settings of the first
    time; theta must be the same. SAMPLES/forget-report.json says what was done and what is left to do.
    """
    folder, manifest = mined_with(samples)
    unscored = set(manifest["scorers"].values()) == {NONE}
    named = load_config(config, relevance__model=relevance or (NONE if unscored else None))
    run = load_config(folder / RESOLVED_CONFIG).model_copy(update={"relevance": named.relevance})
    report = forget_ids(
        samples,
        job(logs or Path(manifest["logs"]), run, None),
        users=user or (),
        items=item or (),
        logs=logs,
        models=models or [samples.absolute().parent],
    )
    console.print(f"mined again: {', '.join(report.rebuilt) or 'nothing held them'}")
    for model in report.retrain:
        console.print(f"[bold]retrain[/bold] {model}")
    for sentence in report.left:
        console.print(f"· {sentence}")
    return report
