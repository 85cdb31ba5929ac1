"""Options that several commands share, and the defaults that help texts show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crops.config import RunConfig

DEFAULTS = RunConfig()
"""An option left out falls back to the run's TOML, and that to these."""

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML of the run; options override it.")]
RelevanceOption = Annotated[
    str | None,
    typer.Option(
        help="theta: minilm, a SentenceTransformer path or name, or none.",
        show_default=DEFAULTS.relevance.model,
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(help="Seed of everything random.", show_default=str(DEFAULTS.seed))
]
LogsOption = Annotated[
    Path | None,
    typer.Option(help="Accepted logs of a mining.", show_default="where the mining found them"),
]
