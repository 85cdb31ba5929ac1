"""`crops encode`: vectors for any other store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crops.cli.command import command
from crops.outputs import console, timed
from crops.retrieval import load_items, load_model, load_queries, write_vectors


@command
def encode(
    model: Annotated[str, typer.Argument(help="Model folder, preset or SentenceTransformer.")],
    source: Annotated[
        Path,
        typer.Argument(help="Items (logs folder, mined samples, items.parquet), or queries."),
    ],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    queries: Annotated[
        bool, typer.Option("--queries", help="Encode the queries of a logs folder, mined samples or a table.")
    ] = False,
    dims: Annotated[
        int | None, typer.Option(min=1, help="Keep the first numbers of a vector.", show_default="all")
    ] = None,
) -> Path:
    """Write ids and unit vectors as Parquet; an interrupted run goes on where it was."""
    seconds: dict[str, float] = {}
    with timed(seconds, f"load {model}"):
        loaded = load_model(model)
    if queries:
        ids, texts = load_queries(source)
        texts = [loaded.rendering.query(text) for text in texts]
    else:
        ids, texts = load_items(source, rendering=loaded.rendering)
    role = "query" if queries else "document"
    with timed(seconds, f"encode {len(ids):,} texts"):
        width = write_vectors(loaded, ids, texts, out, role=role, dims=dims)
    console.print(f"{len(ids):,} vectors of {width} numbers in [bold]{out}[/bold]")
    return out
