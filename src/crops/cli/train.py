"""`crops train`: a retriever from graded samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from crops.cli.options import DEFAULTS, ConfigOption, SeedOption
from crops.config import load_config
from crops.labels import ALL_SOURCES, parse_sources
from crops.outputs import cache_folder, console


def train(
    samples: Annotated[Path, typer.Argument(help="Output of `crops mine`.")],
    out: Annotated[Path, typer.Argument(help="Folder for the model (a plain SentenceTransformer).")],
    encoder: Annotated[
        str | None,
        typer.Option(
            help="static, minilm, or a SentenceTransformer path or name.",
            show_default=DEFAULTS.training.encoder,
        ),
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="h_infonce or infonce_binary.", show_default=DEFAULTS.training.loss)
    ] = None,
    sources: Annotated[
        str | None, typer.Option(help="Learn only from these, of search,p1,p2,p3.", show_default="all")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps.", show_default=str(DEFAULTS.training.steps))
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="0.002 suits static; transformers want about 2e-5.",
            show_default=str(DEFAULTS.training.learning_rate),
        ),
    ] = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
) -> dict[str, Any]:
    """Train a dual encoder on ragged groups of graded documents."""
    run = load_config(
        config,
        seed=seed,
        training__encoder=encoder,
        training__loss=loss,
        training__steps=steps,
        training__learning_rate=learning_rate,
    )
    from crops import training  # torch takes seconds to import: not for --help

    keep = parse_sources(sources.split(",")) if sources else ALL_SOURCES
    data = training.load_samples(samples, keep=keep)
    facts = training.train(data, out, run.training, seed=run.seed, cache=cache_folder())
    console.print(f"model in [bold]{out}[/bold]; next: crops evaluate {out} --logs LOGS --day DAY")
    return facts
