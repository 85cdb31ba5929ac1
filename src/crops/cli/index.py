"""`crops index`: a catalogue ready to be searched; `crops encode`: its vectors for any other store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from crops.cli.options import Options, command
from crops.config import RunConfig
from crops.errors import CropsError
from crops.outputs import console, timed
from crops.retrieval import (
    IndexManifest,
    build_index,
    load_items,
    load_model,
    load_queries,
    update_index,
    write_vectors,
)
from crops.retrieval.catalogue import read_item_columns


@command
def index(
    model: Annotated[str, typer.Argument(help="Model folder, preset or SentenceTransformer.")],
    items: Annotated[
        Path | None,
        typer.Argument(help="Items: a logs folder, mined samples or items.parquet.", show_default=False),
    ] = None,
    out: Annotated[
        str, typer.Option(help="Folder of the index, or milvus:FILE.db or milvus:http://HOST:PORT.")
    ] = "out/index",
    queries: Annotated[
        Path | None, typer.Option(help="Queries to measure recall with.", show_default="documents")
    ] = None,
    update: Annotated[
        Path | None, typer.Option(help="Items to put into the index, or to replace there.")
    ] = None,
    delete: Annotated[
        str | None, typer.Option(help="Ids to take out: 3,17,29 or a Parquet file with item_id.")
    ] = None,
    *,
    run: Annotated[RunConfig, Options(kind="index.kind", int8="index.int8", dims="index.dims")],
) -> IndexManifest:
    """Encode a catalogue into a new version of an index, or change the one that is there."""
    changes = update is not None or delete is not None
    if (items is None) != changes:
        raise CropsError("name the items of a new index, or what to --update or --delete in an old one")
    seconds: dict[str, float] = {}
    with timed(seconds, f"load {model}"):
        loaded = load_model(model)
    with timed(seconds, f"index in {out}"):
        if items is not None:
            manifest = build_index(out, loaded, items, run.index, queries)
        else:
            gone = _ids(delete) if delete else np.empty(0, dtype=np.int64)
            manifest = update_index(out, loaded, update, gone)
    console.print(summary(manifest))
    return manifest


def _ids(text: str) -> NDArray[np.int64]:
    """Return the ids that `--delete` names."""
    if text.endswith(".parquet"):
        if not Path(text).exists():
            raise CropsError(f"--delete {text}: there is no such file")
        ids: NDArray[np.int64] = read_item_columns(Path(text), ())["item_id"].to_numpy()
        return ids
    try:
        return np.array([int(part) for part in text.split(",")], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise CropsError(f"--delete {text}: give ids separated by commas, or a Parquet file") from error


def summary(manifest: IndexManifest) -> str:
    """Return what the command says of the version that it made."""
    found = manifest.recall
    kind = manifest.kind + (" int8" if manifest.int8 else "")
    lines = [
        f"version {manifest.version}: {manifest.count:,} items, {manifest.dim} numbers each, {kind}",
        f"recall@100 against exact search: {found.at_100:.4f} ({found.queries} {found.source})",
    ]
    if manifest.dim < manifest.model_dim and found.full_width is not None:
        lines.append(f"against exact search in all {manifest.model_dim} numbers: {found.full_width:.4f}")
    if found.at_100 < found.target:
        lines.append(f"[yellow]below the target {found.target}[/yellow]: choose another kind or no int8")
    return "\n".join(lines)


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
    """Write ids and unit vectors as Parquet; resumes if interrupted."""
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
