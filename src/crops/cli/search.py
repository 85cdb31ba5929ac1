"""`crops search`: ask a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from crops.cli.options import command
from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.evaluation import ScoringRetriever
from crops.outputs import cache_folder, console
from crops.retrieval import BM25Retriever, ExactRetriever, load_items
from crops.retrieval.bm25 import Tokeniser
from crops.text import PLAIN, normalise_query


@command
def search(
    model: Annotated[str, typer.Argument(help="Model folder, or bm25.")],
    query: Annotated[str, typer.Argument(help="What to search for.")],
    items: Annotated[
        Path, typer.Option(help="Items to search: a logs folder, mined samples or items.parquet.")
    ],
    k: Annotated[int, typer.Option(help="Results.")] = 10,
) -> list[tuple[int, float, str]]:
    """Search items with a model; prints and returns (item_id, score, text), best first."""
    text = normalise_query(query)
    if not text:
        raise CropsError("the query is empty; give at least one word")
    ids, texts = load_items(items)
    retriever = load_retriever(model, ids, texts, items)
    found, scores = retriever.search([text], k)
    by_id = dict(zip(ids.tolist(), texts, strict=True))
    pairs = zip(found[0].tolist(), scores[0].tolist(), strict=True)
    hits = [(item, score, by_id[item]) for item, score in pairs if item >= 0]
    table = Table("rank", "item_id", "score", "text", title=text)
    for rank, (item, score, document) in enumerate(hits, 1):
        table.add_row(str(rank), str(item), f"{score:.3f}", document)
    console.print(table)
    if not hits:
        console.print("nothing was found: the model knows no word of this query, or no item holds one")
    return hits


# ------------------------------------------------------------------------------
# From the name of a model to a retriever.


BM25 = "bm25"


def require_encoder(training: TrainingConfig) -> None:
    """Load the encoder once, so that a wrong name is refused before the minutes that a world takes.

    Raises:
        CropsError: as `crops.encoders.load_encoder`.
    """
    from crops.encoders import load_encoder  # torch takes seconds to import: not for --help

    load_encoder(training, cache_folder())


def load_retriever(
    model: str | Path, ids: NDArray[np.int64], texts: Sequence[str], items: Path | None = None
) -> ScoringRetriever:
    """Return a retriever over a catalogue: BM25, or exact search with a dual encoder.

    Args:
        model: `bm25`, `bm25:bigrams` (any tokeniser of `crops.retrieval.bm25`), an encoder preset, a model
            folder or a SentenceTransformer name.
        ids: item ids, [n].
        texts: their document texts, n.
        items: the item table, for an encoder that reads ids and not texts (see `load_items`).

    Raises:
        CropsError: there is no such model or tokeniser, or it needs the item table.
    """
    name, _, tokeniser = str(model).partition(":")
    if name == BM25:
        return BM25Retriever(ids, texts, tokeniser=cast(Tokeniser, tokeniser or "english"))
    from crops.encoders import load_encoder, rendering_of  # torch takes seconds to import: only when needed

    encoder = load_encoder(TrainingConfig(encoder=str(model)), cache_folder())
    rendering = rendering_of(encoder)
    if rendering is PLAIN:
        return ExactRetriever(encoder, ids, texts)
    if items is None:
        raise CropsError(
            f"{model} reads ids of items, not texts; there is no item table here to take them from"
        )
    ids, texts = load_items(items, keep=ids, rendering=rendering)
    return ExactRetriever(encoder, ids, texts, render_query=rendering.query)
