"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML of the run; options override it.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of everything random [default: 0].")]
