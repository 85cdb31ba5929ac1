"""`crops search`: ask a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from crops.cli.options import command
from crops.errors import CropsError
from crops.outputs import console
from crops.pipeline import load_retriever
from crops.retrieval import load_items
from crops.text import normalise_query


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
